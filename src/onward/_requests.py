"""From what the caller of a client writes to operations and filters, and from outcomes to errors; used by `client.py`.

All checks of a call are made here, before anything is written and before a caller's connection is touched.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from msgspec.structs import replace

from onward._engine.replay.calls import current_execution
from onward._engine.specs import StartOptions, WorkflowSpec
from onward._engine.starts import new_seed, new_seeds, new_workflow, new_workflow_ids
from onward._store.operations import AlreadyFinal, IdConflict, NotFound, Outcome, SignalOp, Started, StartOp
from onward._store.records import FINAL, Filter, NewWorkflow
from onward._store.within.base import CallerConnection
from onward.context import Signal
from onward.definitions import BoundWorkflow, Workflow
from onward.errors import (
    ConfigurationError,
    NotAllowedInWorkflow,
    UsageError,
    WorkflowAlreadyEnded,
    WorkflowIdConflict,
    WorkflowNotFound,
    WrongEventLoop,
)
from onward.info import WorkflowInfo, microseconds
from onward.worker import is_worker_loop

R = TypeVar("R")
T = TypeVar("T")

SHARE = 1_000
"""Starts of one call whose operations are made in one go."""


def refuse_in_workflow() -> None:
    """No client works in a workflow function."""
    if current_execution() is not None:
        raise NotAllowedInWorkflow("a client does I/O; do this in a step, or use onward.start() for a child workflow")


def refuse_blocking_call() -> None:
    """A blocking call must not be made in a workflow, nor on the loop of a worker."""
    refuse_in_workflow()
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    if is_worker_loop(loop):
        raise WrongEventLoop(
            "a blocking Client on the event loop of a worker would stop that worker; "
            "use `async with onward.AsyncClient()` here, or make the step a plain `def`"
        )


def checked_workflow(workflow: object) -> Workflow[..., Any]:
    """What was given as a workflow, if it is one."""
    if not isinstance(workflow, Workflow):
        hint = "; decorate it with @onward.workflow" if callable(workflow) else ""
        raise ConfigurationError(f"not a workflow: {workflow!r}{hint}")
    return workflow


def bound_workflow(workflow: object, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> BoundWorkflow[Any]:
    """The workflow of a `start` or `run` with its arguments."""
    if isinstance(workflow, BoundWorkflow):
        return workflow
    return checked_workflow(workflow).bind(*args, **kwargs)


def bound_workflows(workflows: Iterable[BoundWorkflow[R]]) -> tuple[list[BoundWorkflow[R]], CallerConnection | None]:
    """The workflows of a `start_many`, and the one `tx=` of all of them."""
    bounds = list(workflows)
    tx: CallerConnection | None = None
    options: StartOptions | None = None
    for bound in bounds:
        if not isinstance(bound, BoundWorkflow):
            raise ConfigurationError(f"start_many takes bound workflows: my_workflow.bind(args), not {bound!r}")
        if bound.options is options:
            continue
        if options is None:
            tx = bound.options.tx
        options = bound.options
        if options.tx is not tx:
            raise ConfigurationError(
                "start_many writes in one transaction: give all workflows the same using(tx=), or none"
            )
    return bounds, tx


def refuse_tx_of_run(bound: BoundWorkflow[Any]) -> None:
    """`run` works on what is committed."""
    if bound.options.tx is not None:
        raise UsageError(
            "run() works on the workflow at once, and cannot see a start that is not committed: start it with using(tx=), "
            "commit, then run the same id without tx="
        )


def start_ops(bounds: Sequence[BoundWorkflow[Any]]) -> Iterator[StartOp]:
    """The inserts of some starts. All checks of all of them are made here; the operations themselves are made as they are
    taken, while the database writes those before."""
    encoded: list[tuple[str, str]] = []
    spec: WorkflowSpec | None = None
    for bound in bounds:
        if bound.spec is not spec:
            spec = bound.spec
            spec.arguments.resolve()
            spec.result.resolve()
            encode = spec.arguments.encode_with_digest
        encoded.append(encode(bound.args, bound.kwargs))
    return itertools.chain.from_iterable(
        _share_of_ops(bounds[at : at + SHARE], encoded[at : at + SHARE]) for at in range(0, len(bounds), SHARE)
    )


def _share_of_ops(bounds: Sequence[BoundWorkflow[Any]], encoded: Sequence[tuple[str, str]]) -> list[StartOp]:
    ids, seeds = new_workflow_ids(len(bounds)), new_seeds(len(bounds))
    ops: list[StartOp] = []
    alike: NewWorkflow | None = None
    spec: WorkflowSpec | None = None
    options: StartOptions | None = None
    for bound, (payload, digest), own_id, seed in zip(bounds, encoded, ids, seeds, strict=True):
        workflow_id = bound.options.id or own_id
        if alike is not None and bound.options is options and bound.spec is spec:
            new = replace(alike, id=workflow_id, payload=payload, digest=digest, seed=seed)
        else:
            spec, options = bound.spec, bound.options
            new = alike = new_workflow(spec, options, workflow_id, payload, digest, seed=seed)
        ops.append(StartOp(new, has_new_id=workflow_id is own_id))
    return ops


def signal_op(workflow_id: str, signal: Signal[T], value: T) -> SignalOp:
    """The message of a signal."""
    if not isinstance(signal, Signal):
        raise ConfigurationError(f"not a signal: {signal!r}; pass an onward.Signal: Signal('approved', bool)")
    return SignalOp(workflow_id, signal.name, signal.codec.encode(value), new_seed())


def checked_start(outcome: Outcome, spec: WorkflowSpec) -> Started:
    """The outcome of a start, or its error."""
    if isinstance(outcome, IdConflict):
        raise WorkflowIdConflict(outcome.id, outcome.existing_type, spec.name)
    assert isinstance(outcome, Started)
    return outcome


def check_delivered(outcome: Outcome, workflow_id: str, database: str) -> None:
    """Raise the error of a signal that was not delivered."""
    if isinstance(outcome, NotFound):
        raise WorkflowNotFound(workflow_id, database)
    if isinstance(outcome, AlreadyFinal):
        raise WorkflowAlreadyEnded(workflow_id, outcome.status)


def list_filter(
    status: str | Iterable[str],
    type_name: str | Workflow[..., Any] | None,
    tags: Mapping[str, str] | None,
    created_after: datetime | None,
    created_before: datetime | None,
    before: WorkflowInfo | None,
    limit: int,
) -> Filter:
    """The filter of a `list`."""
    statuses = (status,) if isinstance(status, str) else tuple(status)
    known = FINAL | {"pending", "running", "waiting"}
    for name in statuses:
        if name not in known:
            raise ConfigurationError(f"no such status: {name!r}; there are {', '.join(sorted(known))}")
    if not 1 <= limit <= 1000:
        raise ConfigurationError(f"limit must lie between 1 and 1000, not {limit!r}")
    for at in (created_after, created_before):
        if at is not None and at.tzinfo is None:
            raise ConfigurationError(f"datetimes must be timezone-aware, not {at!r}")
    return Filter(
        status=statuses,
        types=() if type_name is None else (type_name if isinstance(type_name, str) else type_name.spec.name,),
        created_after=None if created_after is None else microseconds(created_after),
        created_before=None if created_before is None else microseconds(created_before),
        tags=tuple((tags or {}).items()),
        before=None if before is None else (microseconds(before.created_at), before.id),
        limit=limit,
    )

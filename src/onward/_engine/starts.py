"""From a definition and its start options to the row of a new workflow; the same for clients and for parents."""

from __future__ import annotations

import secrets
import time

import msgspec

from onward._engine.replay.commands import StartChild
from onward._engine.specs import StartOptions, WorkflowSpec
from onward._store.records import Claimed, NewWorkflow


def new_workflow_id() -> str:
    """A UUIDv7 string: ids sort by the time of their making, which keeps the tables' trees compact."""
    millis = time.time_ns() // 1_000_000
    value = (millis << 80) | (0x7 << 76) | (secrets.randbits(12) << 64) | (0b10 << 62) | secrets.randbits(62)
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def new_seed() -> str:
    """128 random bits as hex: the source of the workflow's `uuid4` and `random`, and the token of its start."""
    return secrets.token_hex(16)


def new_workflow(
    spec: WorkflowSpec,
    options: StartOptions,
    workflow_id: str,
    payload: str,
    digest: str,
    *,
    seed: str,
    parent: Claimed | None = None,
) -> NewWorkflow:
    """The row to insert. A child that names no queue goes to its parent's."""
    queue = options.queue or spec.queue
    if parent is not None and options.queue is None and spec.queue == "default":
        queue = parent.queue
    return NewWorkflow(
        id=workflow_id,
        type=spec.name,
        payload=payload,
        digest=digest,
        seed=seed,
        queue=queue,
        priority=options.priority,
        partition=options.partition,
        tags=msgspec.json.encode(dict(options.tags)).decode() if options.tags else None,
        max_attempts=options.max_attempts or spec.max_attempts,
        delay_us=round((options.delay_s or 0) * 1e6),
        run_at=options.run_at_us,
        timeout_us=None if options.timeout_s is None else round(options.timeout_s * 1e6),
        parent_id=None if parent is None else parent.id,
    )


def child_workflow(command: StartChild, *, parent: Claimed, seed: str) -> NewWorkflow:
    """The row of a child that a parent's command starts."""
    return new_workflow(
        command.spec, command.options, command.child_id, command.payload, command.digest, seed=seed, parent=parent
    )

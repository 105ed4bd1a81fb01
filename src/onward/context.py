"""What workflow code calls beside plain asyncio: time, randomness, signals, children, progress; and, in a step, `current_step`.

Each function finds the execution by the running loop and its current task. Outside of workflows `sleep`, `sleep_until`, `now`,
`uuid4`, `random` and `log` are the ordinary ones; the rest raises `NotInWorkflow`. Nothing here does I/O.
"""

from __future__ import annotations

import asyncio
import logging
import random as _random
import uuid as _uuid
from collections.abc import Coroutine, Mapping, MutableMapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from onward._engine.replay.calls import ChildHandle, current_execution, start_child, wait_signal, wrap
from onward._engine.specs import PROGRESS, WorkflowSpec
from onward._engine.stepinfo import StepInfo, current_step_info
from onward._options import refuse_tx
from onward._wrappers import BoundWorkflow, Workflow
from onward.codec import ValueCodec
from onward.errors import ConfigurationError, NotInWorkflow, UsageError
from onward.retry import Duration, seconds

if TYPE_CHECKING:
    from onward._engine.replay.matching import Execution

P = ParamSpec("P")
T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class CurrentWorkflow:
    """The workflow that runs, as `current()` gives it.

    Attributes:
        id: its id.
        type: its type name.
        attempt: 1 at first; one more after each attempt that ended with an error; 1 again once a step is recorded. For logs:
            it differs between executions, so do not let it decide anything, nor pass it to a step.
        run: 0 at first; one more after each continuation as new.
        tags: what it was started with.
        replaying: whether this code runs to rebuild its state from the journal, and did run before.
    """

    id: str
    type: str
    attempt: int
    run: int
    tags: Mapping[str, str] = field(default_factory=dict)
    replaying: bool = False


def current() -> CurrentWorkflow:
    """The workflow that this code belongs to.

    Raises:
        NotInWorkflow: outside of workflow code (in a step, see `current_step`).
    """
    execution = _execution("current()")
    return CurrentWorkflow(
        execution.workflow_id,
        execution.spec.name,
        execution.attempt,
        execution.run,
        execution.tags,
        execution.is_replaying,
    )


def current_step() -> StepInfo:
    """The try of a step that this code belongs to: `idempotency_key`, `try_number`, `heartbeat(...)`, `cancelled`.

    Raises:
        UsageError: outside of a step's body.
    """
    info = current_step_info()
    if info is None or current_execution() is not None:
        raise UsageError("current_step() belongs into a step's body; in a workflow use onward.current()")
    return info


def sleep(delay: Duration) -> Coroutine[Any, Any, None]:
    """Sleep so many seconds (or a timedelta); in a workflow durably, like `asyncio.sleep`: for days and across restarts.

    >>> asyncio.run(sleep(0.001))
    """
    coroutine: Coroutine[Any, Any, None] = asyncio.sleep(seconds(delay, "sleep(delay)"))
    execution = current_execution()
    return coroutine if execution is None else wrap(execution, coroutine)


def sleep_until(when: datetime) -> Coroutine[Any, Any, None]:
    """Sleep until this moment (timezone-aware); in a workflow durably. Returns at once where it is past.

    Raises:
        ConfigurationError: the datetime has no timezone.
    """
    if when.tzinfo is None:
        raise ConfigurationError(f"sleep_until() needs a timezone-aware datetime, not {when!r}; add tzinfo=UTC")
    return sleep(max(0.0, (when - now()).total_seconds()))


def now() -> datetime:
    """The time, in UTC; in a workflow that of the last journal entry, the same on every replay."""
    execution = current_execution()
    return datetime.now(UTC) if execution is None else _EPOCH + timedelta(microseconds=execution.now_us)


def uuid4() -> _uuid.UUID:
    """A random UUID; in a workflow the same on every replay, and not to be guessed from its id."""
    execution = current_execution()
    return _uuid.uuid4() if execution is None else execution.randomness.uuid4()


def random() -> float:
    """A random number in [0, 1); in a workflow the same on every replay."""
    execution = current_execution()
    return _random.random() if execution is None else execution.randomness.random()


def progress(value: object) -> None:
    """Show a value (anything that JSON can carry) as the workflow's progress: in `handle.info()`, `onward show` and the row.

    In workflow code it is shown with the next commit. A step's body, on whatever thread, may call it as often as it likes
    (an answer that streams in): ten values a second are written, and always the newest. The workflow and all its steps share
    one value. It is for people and pages: it is not part of the journal, and after a crash the step shows anew.

    Raises:
        NotInWorkflow: outside of workflows and their steps.
        CodecError: JSON cannot carry the value.
    """
    info = current_step_info()
    execution = current_execution()
    if execution is not None:
        execution.set_progress(value)
    elif info is not None:
        info.show(PROGRESS.encode(value))
    else:
        _execution("progress()")


def patched(patch_id: str) -> bool:
    """Whether new code may run here: true for workflows that reach this point for the first time, and for ever after for
    those; false for those that passed it under older code. One id has one answer within a workflow.

    Raises:
        NotInWorkflow: outside of workflow code.
    """
    return _execution("patched()").patched(patch_id)


@overload
def start(
    workflow: Workflow[P, R_co], /, *args: P.args, **kwargs: P.kwargs
) -> Coroutine[Any, Any, ChildHandle[R_co]]: ...
@overload
def start(workflow: BoundWorkflow[R_co], /) -> Coroutine[Any, Any, ChildHandle[R_co]]: ...
def start(workflow: Any, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, ChildHandle[Any]]:
    """Start a child workflow without waiting for its end; awaiting gives its handle once the start is durable.

    The child's id comes from the parent's and the call's place (or `using(id=)`), so a crash never starts it twice.
    A child is awaited with its handle: ``await handle.result()``.

    Raises:
        NotInWorkflow: outside of workflow code; use a client there.
    """
    execution = _execution("start()", "start it with a client: client.start(workflow, ...)")
    if not isinstance(getattr(workflow, "spec", None), WorkflowSpec):
        raise UsageError(f"start() takes a function under @workflow, not {workflow!r}")
    if not args and not kwargs and hasattr(workflow, "args"):
        args, kwargs = workflow.args, workflow.kwargs
    workflow.spec.arguments.bind(args, kwargs)
    refuse_tx(workflow.options, workflow.spec.name)
    return start_child(execution, workflow.spec, workflow.options, args, dict(kwargs))


class Signal(Generic[T]):
    """A message to one workflow, under a name, with a payload of one type.

    The workflow awaits it with `wait`; a client sends it with `client.signal(workflow, approved, True)`. Messages are kept
    in order until they are waited for, and each is delivered once.

    Args:
        name: what senders call it; 1 to 200 printable characters.
        hint: the payload's type.

    Raises:
        ConfigurationError: the name has another form.

    >>> approved = Signal("approved", bool)
    >>> approved
    Signal('approved')
    """

    __slots__ = ("codec", "name")

    @overload
    def __init__(self: Signal[T], name: str, hint: type[T]) -> None: ...
    @overload
    def __init__(self: Signal[Any], name: str, hint: Any) -> None: ...
    def __init__(self, name: str, hint: Any) -> None:
        if not isinstance(name, str) or not 1 <= len(name) <= 200 or not name.isprintable():
            raise ConfigurationError(f"a signal's name is 1 to 200 printable characters, not {name!r}")
        self.name = name
        self.codec = ValueCodec(hint, f"signal {name!r}")

    def wait(self, timeout: Duration | None = None) -> Coroutine[Any, Any, T]:
        """Wait for the next message and return its payload.

        Args:
            timeout: seconds or timedelta of workflow time; None waits for ever.

        Raises:
            TimeoutError: no message came in time.
            NotInWorkflow: outside of workflow code.
        """
        execution = _execution(f"signal {self.name!r}: wait()", "only a workflow can wait for a signal")
        limit = None if timeout is None else seconds(timeout, "wait(timeout=)")
        return wait_signal(execution, self.name, self.codec, limit)

    def __repr__(self) -> str:
        return f"Signal({self.name!r})"


class WorkflowLog(logging.LoggerAdapter[logging.Logger]):
    """A logger for workflow code: adds the workflow's id, and is silent while replaying."""

    def __init__(self) -> None:
        super().__init__(logging.getLogger("onward.workflow"), {})

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802  # logging's name
        """Whether a message of this level would be logged here and now."""
        execution = current_execution()
        return (execution is None or not execution.is_replaying) and super().isEnabledFor(level)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Add the workflow's fields."""
        execution = current_execution()
        if execution is not None:
            own = {"workflow_id": execution.workflow_id, "attempt": execution.attempt}
            kwargs["extra"] = {**own, **(kwargs.get("extra") or {})}
        return msg, kwargs


log = WorkflowLog()
"""The logger for workflow code, on the logger "onward.workflow"."""


def _execution(what: str, cure: str = "call it in the workflow function, or in what that awaits") -> Execution:
    execution = current_execution()
    if execution is None:
        raise NotInWorkflow(f"{what} was called outside a workflow; {cure}")
    return execution

"""What workflow code awaits: calls of steps and children, and the futures that stand for their journal entries.

A *call* is what `step(...)` gives: a coroutine that hashes by its number (sets of them have one order on each replay) and does
nothing until it is awaited or made a task. A *wait* is the future under it: outstanding under its key until its entry settles
it or its await is cancelled. Made by `Execution` (matching.py); knows nothing of the runner.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from onward._codec.undecodable import Undecodable
from onward._engine.failures import rebuild_step, rebuild_workflow
from onward._engine.replay.commands import RunStep, StartChild, Waiting, WatchChild
from onward._engine.replay.loop import Future
from onward._engine.replay.private import current_task, here
from onward._engine.specs import StartOptions, StepSpec, WorkflowSpec
from onward._store.records import Entry
from onward.codec import ValueCodec
from onward.errors import CodecError, NotInWorkflow

if TYPE_CHECKING:
    from onward._engine.replay.matching import Execution

T = TypeVar("T")
R = TypeVar("R")


def current_execution() -> Execution | None:
    """The execution whose task is being stepped by this very code; None outside of workflows.

    Raises NotInWorkflow in a callback of a workflow's loop, which is no place for a durable call.
    """
    loop = here.loop
    if loop is None:
        return None
    if current_task(loop) is None and not loop.closing:
        raise NotInWorkflow("a durable call in a callback (call_soon, add_done_callback, __del__); make it from a task")
    owner: Any = loop.owner
    return owner  # type: ignore[no-any-return]  # an Execution; cast() would be a call for every step


class Call(Coroutine[Any, Any, T]):
    """A coroutine object, hashed by its number, that begins what it stands for when it is first awaited."""

    __slots__ = ("_inner", "_number", "execution", "key")

    def __init__(self, execution: Execution, key: str) -> None:
        loop = execution.loop
        self.execution = execution
        self.key = key
        self._number = loop.number = number = loop.number + 1
        self._inner: Any = None
        execution.unawaited[number] = self

    def __hash__(self) -> int:
        return self._number

    def __repr__(self) -> str:
        return f"<call of {self.key!r}>"

    def begin(self) -> Any:
        """Start it; returns what to await."""
        raise NotImplementedError

    def _used(self) -> None:
        if self._inner is not None:
            raise RuntimeError(f"this call of {self.key!r} has been awaited already; call it again to run it again")
        self._inner = _SPENT
        self.execution.unawaited.pop(self._number, None)

    def __await__(self) -> Generator[Any, Any, T]:
        if self._inner is not None:
            self._used()
        self._inner = _SPENT
        self.execution.unawaited.pop(self._number, None)
        return self.begin().__await__()  # type: ignore[no-any-return]  # as above

    def send(self, value: Any) -> Any:
        """As a coroutine's."""
        if self._inner is None:
            self._inner = self.__await__()
        return self._inner.send(value)

    def throw(self, typ: Any, val: Any = None, tb: TracebackType | None = None) -> Any:
        """As a coroutine's; one that has not begun never does."""
        if self._inner is None:
            self._used()
        error = typ if isinstance(typ, BaseException) else val if isinstance(val, BaseException) else typ()
        try:
            if self._inner is _SPENT:
                raise error
            return self._inner.throw(error)
        finally:
            del error, typ, val  # this frame is in the error's traceback: a cycle, were it kept here

    def close(self) -> None:
        """As a coroutine's; one that has not begun never does."""
        if self._inner is None:
            self._used()
        elif self._inner is not _SPENT:
            self._inner.close()


_SPENT = object()


class StepCall(Call[Any]):
    """A call of a step: its key and its arguments are taken now, its command is issued when it is awaited."""

    __slots__ = ("args", "arguments", "digest", "kwargs", "spec")

    def __init__(self, execution: Execution, spec: StepSpec, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.key = execution.take_key(spec.key if spec.key is not None else spec.name)
        self.spec = spec
        self.args, self.kwargs, self.digest, self.arguments = spec.arguments.take(args, kwargs)
        self.execution = execution  # from here as in Call.__init__: this is made for every step
        loop = execution.loop
        self._number = loop.number = number = loop.number + 1
        self._inner = None
        execution.unawaited[number] = self

    def begin(self) -> asyncio.Future[Any]:
        """Issue the command."""
        execution, key = self.execution, self.key
        loop = execution.loop
        if (loop.closing or here.loop is not loop) and execution.refuses():
            return Future(loop)
        execution.commands[key] = RunStep(
            key, execution.last_seq, self.spec, self.args, self.kwargs, self.digest, self.arguments
        )
        wait: StepWait = StepWait(loop=loop)
        wait.execution = execution
        wait.key = key
        wait.call = self
        wait.digest = self.digest
        wait.codec = self.spec.result
        wait.held = None
        execution.outstanding[key] = wait
        return wait


class ChildCall(Call[Any]):
    """A call of a child workflow; `confirm`: its start is awaited, giving a `ChildHandle`, else its end."""

    __slots__ = ("child_id", "confirm", "digest", "options", "payload", "spec")

    def __init__(
        self,
        execution: Execution,
        key: str,
        spec: WorkflowSpec,
        options: StartOptions,
        payload: str,
        digest: str,
        *,
        confirm: bool,
    ) -> None:
        super().__init__(execution, key)
        self.spec = spec
        self.options = options
        self.child_id = options.id or execution.child_id(key)
        self.payload = payload
        self.digest = digest
        self.confirm = confirm

    def begin(self) -> asyncio.Future[Any]:
        """Issue the command."""
        execution, key, child_id, confirm = self.execution, self.key, self.child_id, self.confirm
        if execution.refuses():
            return Future(execution.loop)
        handle: ChildHandle[Any] = ChildHandle(execution, self.spec, child_id)
        wait = ChildWait(execution, key, "start" if confirm else "child", handle, self.digest)
        command = StartChild(
            key,
            execution.last_seq,
            self.spec,
            self.options,
            child_id,
            self.payload,
            self.digest,
            watch=not confirm,
            confirm=confirm,
        )
        return execution.issue(command, wait)


class ResultCall(Call[Any]):
    """The end of a started child."""

    __slots__ = ("handle",)

    def __init__(self, execution: Execution, key: str, handle: ChildHandle[Any]) -> None:
        super().__init__(execution, key)
        self.handle = handle

    def begin(self) -> asyncio.Future[Any]:
        """Issue the command, or give the end that is known already."""
        execution, handle = self.execution, self.handle
        if execution.refuses():
            return Future(execution.loop)
        wait = ChildWait(execution, self.key, "child", handle, None)
        if handle.outcome is not None:
            wait.settle(handle.outcome)
            return wait
        return execution.issue(WatchChild(self.key, execution.last_seq, handle.id), wait)


class WrappedCall(Call[T]):
    """Any coroutine of this library's own, made hashable by number (signal waits, sleeps)."""

    __slots__ = ("_coroutine",)

    def __init__(self, execution: Execution, key: str, coroutine: Coroutine[Any, Any, T]) -> None:
        super().__init__(execution, key)
        self._coroutine = coroutine

    def begin(self) -> Any:
        """Hand over to the coroutine."""
        return self._coroutine

    def _used(self) -> None:
        super()._used()
        self._coroutine.close()


class ChildHandle(Generic[R]):
    """A child workflow that has been started; await it, or `result()`, for its result.

    Attributes:
        id: the child's workflow id.
    """

    __slots__ = ("_execution", "_spec", "id", "outcome")

    def __init__(self, execution: Execution, spec: WorkflowSpec, child_id: str) -> None:
        self.id = child_id
        self.outcome: Entry | None = None
        self._execution = execution
        self._spec = spec

    def result(self) -> Coroutine[Any, Any, R]:
        """Wait for the child's end and return its result.

        Raises WorkflowFailed (or WorkflowCancelled, WorkflowTimedOut) for any other end. May be awaited several times.
        """
        execution = self._execution
        if current_execution() is not execution:
            raise NotInWorkflow(f"the result of child {self.id!r} can be awaited by the workflow that started it only")
        return ResultCall(execution, execution.take_key(f"result:{self._spec.name}"), self)

    def __await__(self) -> Generator[Any, Any, R]:
        return self.result().__await__()

    @property
    def spec(self) -> WorkflowSpec:
        """The child's definition."""
        return self._spec

    def __repr__(self) -> str:
        return f"<ChildHandle {self.id!r}>"


class Wait(asyncio.Future[Any]):
    """Something outstanding: settled by the journal entry of its key and kind."""

    __slots__ = ("execution", "key")

    kind = ""
    digest: str | None = None
    checks_digest = True
    index: tuple[str, str] | None = None
    held: tuple[Any] | None = None
    """The message of a cancellation that is held back until the entry comes."""
    codec: ValueCodec

    def __init__(self, execution: Execution, key: str) -> None:
        super().__init__(loop=execution.loop)
        self.execution = execution
        self.key = key

    def cancel(self, msg: Any = None) -> bool:
        """The await is cancelled: nothing is outstanding any more."""
        if self.done():
            return False
        self.execution.forget(self)
        return super().cancel(msg)

    def settle(self, entry: Entry) -> None:
        """Give what the entry recorded to the awaiting code, decoded. A cancellation that was held back ends the await
        whatever the body did."""
        if self.held is not None:
            asyncio.Future.cancel(self, *self.held)
        if self.done():
            return
        if entry.error is not None:
            self.fail(self.rebuild(entry.error), entry)
            return
        try:
            value = self.value(entry)
        except CodecError as error:
            if isinstance(entry.result, Undecodable):  # nothing for workflow code to catch: another codec can read it
                raise entry.result.error() from None
            self.fail(error, None)
        else:
            self.set_result(value)

    def fail(self, error: Exception, entry: Entry | None) -> None:
        """Give an error to the awaiting code, marked with the entry that recorded it."""
        if isinstance(error, StopIteration):  # a future cannot carry one
            error = RuntimeError(f"{self.key}: StopIteration: {error}")
        if entry is not None:
            error.__dict__["__onward_seq__"] = entry.seq
        self.set_exception(error)

    def value(self, entry: Entry) -> Any:
        """The entry's result."""
        return self.codec.decode(entry.result) if entry.result is not None else None

    def rebuild(self, error: str) -> Exception:
        """The entry's error."""
        raise NotImplementedError

    def describe(self) -> Waiting:
        """What people and the runner see of it."""
        return Waiting(self.key, self.kind, self.index[1] if self.index is not None else "")


class StepWait(Wait):
    """A step without an entry yet. With on_cancel="wait" a cancellation is held back until the entry comes."""

    __slots__ = ("call", "codec", "digest", "held")

    kind = "step"

    call: StepCall
    digest: str | None
    codec: ValueCodec
    held: tuple[Any] | None
    __init__ = asyncio.Future.__init__  # no call of Python, and `begin` sets the rest: it is made for every step

    @property
    def checks_digest(self) -> bool:  # type: ignore[override]  # the class attribute is the default of those without
        """Whether other arguments are a divergence."""
        return self.call.spec.check_args

    def cancel(self, msg: Any = None) -> bool:
        """The await is cancelled: at once, or when the body has ended."""
        if self.call.spec.on_cancel == "wait" and not self.done() and not self.execution.loop.closing:
            if self.held is None:
                self.held = (msg,)
                self.execution.cancel_step(self.key, waits=True)
            return True
        return super().cancel(msg)

    def settle(self, entry: Entry) -> None:
        """As `Wait.settle`, for every step that has ended well."""
        if self.held is not None or entry.error is not None or self.done():
            super().settle(entry)
            return
        try:
            value = self.codec.decode(entry.result) if entry.result is not None else None
        except CodecError:
            super().settle(entry)
        else:
            self.set_result(value)

    def rebuild(self, error: str) -> Exception:
        """The entry's error."""
        return rebuild_step(error, self.key, self.call.spec.raises)


class SignalWait(Wait):
    """A wait for the next message under a signal's name."""

    __slots__ = ("codec", "index", "message")

    kind = "signal"

    def __init__(self, execution: Execution, key: str, name: str, codec: ValueCodec) -> None:
        super().__init__(execution, key)
        self.index = ("signal", name)
        self.codec = codec
        self.message: str | None = None

    def settle(self, entry: Entry) -> None:
        """As `Wait.settle`; the message is kept in case that the await is cancelled before it is taken."""
        self.message = entry.result
        super().settle(entry)


class ChildWait(Wait):
    """A wait for a child's end, or (kind start) for its start."""

    __slots__ = ("codec", "digest", "handle", "index", "kind")

    def __init__(self, execution: Execution, key: str, kind: str, handle: ChildHandle[Any], digest: str | None) -> None:
        super().__init__(execution, key)
        self.kind = kind
        self.index = (kind, handle.id)
        self.handle = handle
        self.digest = digest
        self.codec = handle.spec.result

    def value(self, entry: Entry) -> Any:
        """The child's result, or its handle."""
        if self.kind == "start":
            return self.handle
        self.handle.outcome = entry
        return super().value(entry)

    def rebuild(self, error: str) -> Exception:
        """The child's error."""
        return rebuild_workflow(error, self.handle.id, self.handle.spec.raises)


def call_child(
    execution: Execution, spec: WorkflowSpec, options: StartOptions, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> ChildCall:
    """A call of a child workflow: awaiting it gives the child's result."""
    payload, digest = spec.arguments.encode_with_digest(args, kwargs)
    return ChildCall(execution, execution.take_key(spec.name), spec, options, payload, digest, confirm=False)


def start_child(
    execution: Execution, spec: WorkflowSpec, options: StartOptions, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> ChildCall:
    """A call that starts a child workflow: awaiting it gives a `ChildHandle` once the start is durable."""
    payload, digest = spec.arguments.encode_with_digest(args, kwargs)
    key = execution.take_key(f"start:{spec.name}")
    return ChildCall(execution, key, spec, options, payload, digest, confirm=True)


def wait_signal(
    execution: Execution, name: str, codec: ValueCodec, timeout_s: float | None
) -> Coroutine[Any, Any, Any]:
    """Wait for the next message of a signal, at most so long."""
    return wrap(execution, _wait_signal(execution, name, codec, timeout_s))


def wrap(execution: Execution, coroutine: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
    """A coroutine of this library's own as one that hashes by its number."""
    return WrappedCall(execution, "", coroutine)


async def _wait_signal(execution: Execution, name: str, codec: ValueCodec, timeout_s: float | None) -> Any:
    if execution.refuses():
        return await Future(execution.loop)
    async with asyncio.timeout(timeout_s):
        key = execution.take_key(f"signal:{name}")
        returned = execution.take_back(name)
        if returned is not None:
            return codec.decode(returned)
        wait = SignalWait(execution, key, name, codec)
        try:
            return await execution.expect(wait)
        except asyncio.CancelledError:
            if wait.message is not None:
                execution.give_back(name, wait.message)
            raise

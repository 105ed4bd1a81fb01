"""Running the bodies of steps on the worker's real loop and in its threads, one try at a time.

The runner starts a body and is told its end; this file knows nothing of journals. A body runs in a copy of the context in
which the worker's `lifespan` was entered, so it sees the context variables set there and never those of workflow code.
Its own error is always passed on as a value: nothing that a body raises can stop the worker.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import msgspec

from onward._engine import failpoints
from onward._engine.failures import StepTimeout
from onward._engine.replay.commands import RunStep
from onward._engine.serving import Serving
from onward._engine.stepinfo import StepInfo, entered, surrounding_of_bodies
from onward._store.base import TransactionTimedOut
from onward._store.operations import Fence, JournalOp
from onward._store.records import Entry

TRANSACTION_LIMIT_S = 5.0
"""Default time limit of a transactional body on SQLite, where it holds the database's only writer."""


class Host(Protocol):
    """What a body needs of its runner."""

    def info_of(self, body: Body) -> StepInfo:
        """What the body can learn of its try. Called from any thread."""
        ...

    def body_done(self, body: Body, result: Any, error: BaseException | None) -> None:
        """One try has ended; `result` counts if `error` is None."""
        ...

    def body_unbegun(self, body: Body) -> None:
        """A try that was started has not begun: it may not begin now, or its result is no longer wanted."""
        ...

    def transaction_done(self, body: Body, entry: Entry | None, error: BaseException | None) -> None:
        """A transactional try has ended: committed with this entry, or rolled back with this error."""
        ...


class Transactor(Protocol):
    """The part of a store that runs a body inside one transaction with its journal entry."""

    async def run_transaction(
        self,
        fence: Fence,
        body: Callable[[Any], Any],
        finish: Callable[[Any], JournalOp],
        *,
        limit_s: float,
        context: contextvars.Context,
        is_async: bool = False,
    ) -> Any:
        """Run `body(connection)` in `context`, record `finish(its result)` and commit, all in one transaction. `is_async`: the
        body returns an awaitable, and its connection is an async one (only where the store has such)."""
        ...


_making_info = threading.Lock()


class Body(msgspec.Struct, eq=False):
    """One running try of a step."""

    command: RunStep
    host: Host
    tries: int
    """This try's number, 1 for the first."""
    started_at: int
    is_cancelled: bool = False
    """It was asked to end: whatever it raises, there is no further try."""
    is_dropped: bool = False
    """Its result is no longer wanted."""
    task: asyncio.Future[Any] | None = None
    _info: StepInfo | None = None

    @property
    def info(self) -> StepInfo:
        """What the body can learn of this try, made at the first question, on whatever thread that comes from."""
        info = self._info
        if info is None:
            with _making_info:  # several threads of one body may ask
                info = self._info = self._info or self.host.info_of(self)
            if self.is_cancelled:  # looked at after the info can be found: `cancel` sees it, or we see the flag
                info.cancel()
        return info

    def cancel(self) -> None:
        """Ask the body to end: an async body gets CancelledError, a thread body sees `current_step().cancelled`."""
        self.is_cancelled = True
        if self._info is not None:
            self._info.cancel()
        if self.task is not None and self.command.spec.is_async:
            self.task.cancel()


class Bodies:
    """Starts bodies: async ones as tasks of this loop, the others in a bounded pool of threads.

    Args:
        threads: at most this many `def` bodies run at once in this worker; further ones queue.
        context: the context that each body gets a copy of.
        may_begin: asked on the body's own thread at its very beginning (the lease holds, the worker is not stopping): a body
            may have waited for long behind others, or the whole process may have stood still since the runner asked.
        failed: told of an error that no body raised: a bug.
    """

    def __init__(
        self,
        threads: int,
        context: contextvars.Context,
        may_begin: Callable[[], bool] = lambda: True,
        failed: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self._may_begin = may_begin
        self._serving = Serving(self._run_async, context, failed)
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="onward-step")
        self._context = context
        self.running: set[Body] = set()
        """Those in threads and transactions."""
        self._abandoned: list[asyncio.Future[Any]] = []

    def start(self, body: Body) -> None:
        """Begin one try; `body.host` is told its end on this loop, never before this call has returned."""
        spec = body.command.spec
        if spec.is_async:
            kind = getattr(spec.fn, "__code__", None) or type(spec.fn).__qualname__  # closures of one code share it
            self._serving.start(body, kind)
            return
        self.running.add(body)
        context = self._context.copy()
        failpoints.hit("body:before")
        call = functools.partial(context.run, self._call_if_it_may_begin, body)
        body.task = asyncio.wrap_future(self._pool.submit(call), loop=self._loop)
        if spec.timeout_s is not None:
            timer = self._loop.call_later(spec.timeout_s, self._thread_timed_out, body, spec.timeout_s)
            body.task.add_done_callback(lambda _: timer.cancel())
        body.task.add_done_callback(functools.partial(self._thread_ended, body))

    def start_transaction(
        self, body: Body, store: Transactor, fence: Fence, finish: Callable[[Any], JournalOp]
    ) -> None:
        """Begin a transactional try; `finish` makes the journal entry from the result, inside the transaction."""
        self.running.add(body)
        body.task = self._loop.create_task(
            self._run_transaction(body, store, fence, finish), context=self._context.copy()
        )

    async def _run_transaction(
        self, body: Body, store: Transactor, fence: Fence, finish: Callable[[Any], JournalOp]
    ) -> None:
        command = body.command
        limit_s = command.spec.timeout_s
        if limit_s is None:
            limit_s = getattr(store, "transaction_limit_s", TRANSACTION_LIMIT_S)
        options = {"is_async": True} if command.spec.is_async else {}
        recorded: Entry | None = None
        error: BaseException | None = None

        def call(connection: Any) -> Any:
            failpoints.hit("body:before")
            return _call_in_thread(body, command.spec.fn, (connection, *command.args), command.kwargs)

        def record(result: Any) -> JournalOp:
            nonlocal recorded
            operation = finish(result)
            recorded = operation.entries[-1]
            return operation

        try:
            await store.run_transaction(fence, call, record, limit_s=limit_s, context=self._context.copy(), **options)
        except TransactionTimedOut:
            error = StepTimeout(f"the transactional body ran longer than {limit_s:g} s and was rolled back")
        except BaseException as caught:  # the body's error travels as a value; see the module docstring
            error = caught
        self.running.discard(body)
        try:
            body.host.transaction_done(body, recorded if error is None else None, error)
        finally:
            del error  # its traceback holds this frame: a cycle

    def _begins(self, body: Body) -> bool:
        """Whether a body in a thread may begin: asked by that thread."""
        return not body.is_dropped and not body.info.cancelled and self._may_begin()

    def _stay_unbegun(self, body: Body) -> None:
        self.running.discard(body)
        if body.is_cancelled and not body.is_dropped:  # the workflow waits for its end
            body.host.body_done(body, None, asyncio.CancelledError())
        else:
            body.host.body_unbegun(body)

    async def _run_async(self, body: Body) -> None:
        if body.is_dropped or body.is_cancelled or not self._may_begin():
            self._stay_unbegun(body)
            return
        result: Any = None
        error: BaseException | None = None
        command = body.command
        spec = command.spec
        entered(body)
        failpoints.hit("body:before")
        try:
            if spec.timeout_s is None:
                result = await spec.fn(*command.args, **command.kwargs)
            else:
                result = await self._within(command, spec.timeout_s)
        except BaseException as caught:  # passed on as a value; SystemExit in a step must not end the worker
            error = caught
        failpoints.hit("body:after")
        try:
            body.host.body_done(body, result, error)
        finally:
            del error  # its traceback holds this frame: a cycle

    async def _within(self, command: RunStep, limit_s: float) -> Any:
        scope = asyncio.timeout(limit_s)
        try:
            async with scope:
                return await command.spec.fn(*command.args, **command.kwargs)
        except TimeoutError:
            if scope.expired():
                raise StepTimeout(f"ran longer than its timeout of {limit_s:g} s") from None
            raise

    def _thread_timed_out(self, body: Body, limit_s: float) -> None:
        """The thread cannot be stopped: it is told, its result is dropped, and the try ends now."""
        if body not in self.running:
            return
        body.info.cancel()
        self.running.discard(body)
        body.host.body_done(
            body, None, StepTimeout(f"ran longer than its timeout of {limit_s:g} s (its thread goes on)")
        )

    def _thread_ended(self, body: Body, future: asyncio.Future[Any]) -> None:
        if body not in self.running:
            return
        self.running.discard(body)
        failpoints.hit("body:after")
        if future.cancelled():
            body.host.body_done(body, None, asyncio.CancelledError())
            return
        error = future.exception()
        if isinstance(error, _Unbegun):
            self._stay_unbegun(body)
        else:
            body.host.body_done(body, None if error else future.result(), error)

    def _call_if_it_may_begin(self, body: Body) -> Any:
        if not self._begins(body):
            raise _Unbegun
        command = body.command
        return _call_in_thread(body, command.spec.fn, command.args, command.kwargs)

    def abandon(self) -> None:
        """The worker dies: no end of any body is heard of any more."""
        for body in self.running:
            if body.task is not None:
                body.task.add_done_callback(_look_away)
                self._abandoned.append(body.task)
        self.running.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def bury(self) -> None:
        """After `abandon`: wait for what runs on this loop. Threads cannot be ended; nobody waits for them."""
        tasks = [one for one in self._abandoned if isinstance(one, asyncio.Task)]
        await asyncio.gather(*self._serving.tasks, *tasks, return_exceptions=True)
        self._abandoned.clear()

    def close(self) -> None:
        """Take no more bodies; threads that still run are left to end by themselves."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _look_away(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()


class _Unbegun(Exception):
    """The body has not begun."""


def _call_in_thread(body: Body, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    entered(body)
    surrounding = surrounding_of_bodies()
    try:
        if surrounding is None:
            return fn(*args, **kwargs)
        with surrounding():
            return fn(*args, **kwargs)
    except StopIteration as error:  # a future cannot carry it
        raise RuntimeError("the step raised StopIteration") from error


__all__ = ["TRANSACTION_LIMIT_S", "Bodies", "Body", "Host", "Transactor"]

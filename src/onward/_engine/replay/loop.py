"""The deterministic event loop in which workflow code runs: FIFO, without clock, sockets or threads.

Made by `Execution` (matching.py), one for each execution. `run` steps what is ready until nothing is; time stands still
meanwhile and moves only with journal entries. Timers are not fired here: each waits under a key for its entry. Its `Task`s
and `Future`s hash by a creation counter, so that sets of them have one order on every replay. It must never be reached from
another thread, and it refuses everything that would let the outside in (`NotAllowedInWorkflow`).
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from dataclasses import dataclass
from math import ceil
from typing import Any, ClassVar, NoReturn, Protocol, TypeVar

import msgspec

from onward._engine.replay.closing import Closer
from onward._engine.replay.commands import Waiting
from onward._engine.replay.private import called_by_as_completed, called_by_wait, task_of, timer_name, unlink
from onward._engine.replay.where import location
from onward._store.records import Entry
from onward.errors import NotAllowedInWorkflow, WorkflowStuck

T = TypeVar("T")
logger = logging.getLogger("onward.workflow")
_BY_ADDRESS: object = object.__hash__


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one execution may do between two entries, and while it is closed.

    `seconds` None switches the limit of time off (debugger, `onward dev`). `refusals`: how often cleanup code may wait for
    something while it is closed, before it is abandoned.
    """

    handles: int = 1_000_000
    seconds: float | None = 10.0
    refusals: int = 100


DEFAULT_LIMITS = Limits()


class Owner(Protocol):
    """What the loop asks of its execution."""

    workflow_id: str
    is_replaying: bool
    outstanding: dict[str, Any]

    def take_key(self, name: str) -> str:
        """The next journal key of this name."""
        ...

    def escape(self, error: BaseException) -> None:
        """End the execution with this error."""
        ...


class Handle(msgspec.Struct, eq=False):
    """A callback that is ready to run (`asyncio.Handle`, as small as can be)."""

    callback: Callable[..., object] | None
    args: tuple[Any, ...]
    context: Context

    def cancel(self) -> None:
        """Do not run it."""
        self.callback = None
        self.args = ()

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self.callback is None

    def get_context(self) -> Context:
        """The context it runs in."""
        return self.context


class Timer(Handle, eq=False):
    """A durable timer: outstanding under its key until its entry comes, or until it is cancelled.

    `relative` is when it fires, in seconds of the loop's time; `deadline` the same in µs of database time.
    """

    loop: Any
    key: str
    relative: float
    deadline: int

    kind: ClassVar[str] = "timer"
    digest: ClassVar[str | None] = None
    checks_digest: ClassVar[bool] = False

    def when(self) -> float:
        """The time of the loop at which it was asked for."""
        return self.relative

    def cancel(self) -> None:
        """Forget it; no entry will come."""
        if self.callback is not None:
            super().cancel()
            self.loop.forget_timer(self)

    def settle(self, entry: Entry) -> None:
        """Its entry came: the callback is ready."""
        callback, args = self.callback, self.args
        super().cancel()
        if callback is not None:
            self.loop.call_soon(callback, *args, context=self.context)

    def describe(self) -> Waiting:
        """What people and the runner see of it."""
        return Waiting(self.key, "timer", "", self.deadline)


class Future(asyncio.Future[T]):
    """A future that hashes by its number. Futures are numbered apart from tasks and calls: how many asyncio makes for its own
    use depends on the Python version, and the order of a set of tasks should not."""

    __slots__ = ("_number",)

    def __init__(self, loop: ReplayLoop) -> None:
        loop.future_count += 1
        self._number = loop.base - loop.future_count
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._number


class Task(asyncio.Task[T]):
    """A task that hashes by its number and has a name that is the same on every replay."""

    __slots__ = ("_number",)

    def __init__(
        self, coro: Coroutine[Any, Any, T], loop: ReplayLoop, name: str | None = None, context: Context | None = None
    ) -> None:
        loop.task_count += 1
        self._number = loop.number = loop.number + 1
        super().__init__(coro, loop=loop, name=name or f"Task-{loop.task_count}", context=context)

    def __hash__(self) -> int:
        return self._number


class ReplayLoop(asyncio.AbstractEventLoop):
    """One execution's event loop. `stopped` ends `run` at once; while `closing`, what is awaited never comes (see closing.py).

    `number` is that of the latest task or call: the order of creation, from a base of the workflow's own (asyncio keeps the
    tasks of all executions in one set; equal hashes there would make it slow).
    """

    __slots__ = (
        "_closer", "_handler", "_kept_tasks", "_ready", "_timer_number", "base", "closing", "future_count",
        "limits", "now_us", "number", "outer", "owner", "started_at", "stopped", "task_count", "tasks", "timers",
    )  # fmt: skip

    def __init__(
        self,
        owner: Owner,
        base: int,
        started_at: int,
        limits: Limits,
        outer: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.owner: Owner | None = owner
        self.outer = outer
        """The real loop from which it is always activated, if there is such."""
        self.limits = limits
        self.started_at = self.now_us = started_at
        self.stopped = self.closing = False
        self.tasks: list[Task[Any]] = []
        self.task_count = 0
        self._kept_tasks = 64
        self.base = base
        self.future_count = 0
        self.number = base
        self._ready: list[Handle] = []  # a deque would be a tenth of what an execution takes
        self.timers: list[tuple[int, int, Timer]] = []
        """A heap of what may be outstanding: cancelled ones count until `next_timer` has looked."""
        self._timer_number = 0
        self._closer: Closer | None = None
        self._handler: Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None = None

    # ------------------------------------------------------------------ for the execution

    @property
    def closer(self) -> Closer:
        """What closes tasks and async generators; made at the first need."""
        if self._closer is None:
            self._closer = Closer(self)
        return self._closer

    @property
    def has_buried(self) -> bool:
        """Whether cleanup code that never ends had to be abandoned; it must find this loop closing for ever."""
        return self._closer is not None and self._closer.has_buried

    def agen_started(self, agen: Any) -> None:
        """Hook: an async generator begins."""
        self.closer.agen_started(agen)

    def agen_dropped(self, agen: Any) -> None:
        """Hook: a suspended async generator is not wanted any more."""
        self.closer.agen_dropped(agen)

    def run(self) -> None:
        """Step what is ready until nothing is, the execution ends, or a limit is reached (`WorkflowStuck`)."""
        most = self.limits.handles
        seconds = self.limits.seconds
        latest, count = 0.0, 0
        while self._ready and not self.stopped:
            batch, self._ready = self._ready, []
            for handle in batch:
                callback = handle.callback
                if callback is None:
                    continue
                count += 1
                if count > most or (not count & 15 and seconds is not None):
                    now = time.monotonic()
                    if count > most or now > (latest or now):
                        self._stuck(callback, f"{count - 1:,} callbacks" if count > most else f"{seconds:g} s")
                        return
                    latest = latest or now + (
                        seconds or 0.0
                    )  # few workflows have so many: the time is not asked for before
                try:
                    handle.context.run(callback, *handle.args)
                except (SystemExit, KeyboardInterrupt) as error:
                    self._escape(error)
                except BaseException as error:
                    self.call_exception_handler({"message": f"Exception in callback {callback!r}", "exception": error})
                if self.stopped:
                    return

    def _stuck(self, callback: object, limit: str) -> None:
        task = task_of(callback)
        place = location(task.get_coro()) if task is not None else ""
        text = (
            f"the workflow did not come to rest within {limit}{f', at {place}' if place else ''}: a loop there never waits for a "
            "step, timer, signal or child; await one of those instead (time stands still between them)"
        )
        self._escape(WorkflowStuck(text, location=place))

    def _escape(self, error: BaseException) -> None:
        if self.owner is not None:
            self.owner.escape(error)

    def close_all(self, *, keep: Task[Any] | None = None) -> list[Task[Any]]:
        """Close every coroutine and async generator; run inside an activation. Returns the tasks that were not done."""
        self.closing = self.stopped = True
        self._ready.clear()
        pending = [task for task in self.tasks if task is not keep and not task.done()]
        if pending or self._closer is not None:
            self.closer.close(pending)
        self.tasks.clear()
        self._ready.clear()
        for _, _, timer in self.timers:
            Handle.cancel(timer)
        self.timers.clear()
        return pending

    def next_timer(self) -> Waiting | None:
        """The outstanding timer with the lowest (deadline, creation)."""
        timers = self.timers
        while timers:
            timer = timers[0][2]
            if timer.callback is not None:
                return timer.describe()
            heapq.heappop(timers)
        return None

    def shift_timers(self, by_us: int) -> None:
        """Move every pending deadline."""
        moved = []
        for deadline, number, timer in self.timers:
            if timer.callback is not None:
                timer.deadline = deadline + by_us
                moved.append((timer.deadline, number, timer))
        self.timers = moved  # still a heap: all moved by the same, and the live part of a heap must be made one again
        heapq.heapify(moved)

    def forget_timer(self, timer: Timer) -> None:
        """A timer was cancelled."""
        if self.owner is not None:
            self.owner.outstanding.pop(timer.key, None)
        if len(self.timers) > 64 and self.owner is not None and len(self.timers) > 4 * len(self.owner.outstanding):
            self.timers = [item for item in self.timers if item[2].callback is not None]
            heapq.heapify(self.timers)

    # ------------------------------------------------------------------ asyncio's side

    def time(self) -> float:
        """Seconds of workflow time since the workflow began (small numbers keep their microseconds)."""
        return (self.now_us - self.started_at) / 1e6

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> Handle:  # type: ignore[override]
        """Run a callback after all that are ready now."""
        handle = Handle(callback, args, context if context is not None else copy_context())
        if not self.closing:
            self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle:
        """Make a durable timer that fires `delay` seconds of workflow time from now."""
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle:
        """Make a durable timer; it fires by a journal entry of its own."""
        context = context if context is not None else copy_context()
        owner = self.owner
        if self.closing or owner is None:
            return Handle(callback, args, context)
        deadline = self.started_at + ceil(when * 1e6 - 1e-3)
        timer = Timer(callback, args, context, self, owner.take_key(timer_name(callback)), when, deadline)
        self._timer_number += 1
        heapq.heappush(self.timers, (timer.deadline, self._timer_number, timer))
        owner.outstanding[timer.key] = timer
        return timer

    def create_future(self) -> Future[Any]:
        """A future that hashes by its number."""
        awaited = called_by_wait(2)
        if awaited is not None and any(not isinstance(item, (Future, Task)) for item in awaited):
            raise NotAllowedInWorkflow(
                "asyncio.wait() got a future whose place in a set would differ on replay (gather() and asyncio.Future() make "
                "such); await it in an async function and pass asyncio.create_task() of that"
            )
        return Future(self)

    def create_task(self, coro: Any, *, name: Any = None, context: Context | None = None, **options: Any) -> Any:
        """Run a coroutine as a task of this execution."""
        if self.closing:
            stillborn: Task[Any] = Task(coro, self)
            coro.close()
            unlink(stillborn)
            return stillborn
        if options.pop("eager_start", None):
            coro.close()
            raise NotAllowedInWorkflow(
                "create_task(eager_start=True) would change the order of steps; leave it out in a workflow"
            )
        if options:
            coro.close()
            raise TypeError(f"create_task() got unexpected keyword arguments: {', '.join(options)}")
        if type(coro).__hash__ is _BY_ADDRESS and (frame := called_by_as_completed(2)) is not None:
            for item in (coro, *frame.f_locals.get("fs", frame.f_locals.get("aws", ()))):
                if isinstance(item, Coroutine):
                    item.close()
            raise NotAllowedInWorkflow(
                "as_completed() starts bare coroutines in an order that differs on replay; wrap each in create_task, in a list: "
                "as_completed([asyncio.create_task(work(x)) for x in items])"
            )
        task: Task[Any] = Task(coro, self, name if name is None else str(name), context)
        tasks = self.tasks
        tasks.append(task)
        if len(tasks) > self._kept_tasks:
            tasks[:] = [kept for kept in tasks if not kept.done()]
            self._kept_tasks = 64 + 2 * len(tasks)
        return task

    get_debug = bool
    """Always off: `bool()` is False. asyncio asks for every future, and a plain method would take ten times as long."""

    def set_debug(self, enabled: bool) -> None:
        """Only `False` is taken."""
        if enabled:
            _refused("set_debug")

    def is_running(self) -> bool:
        """Workflow code sees its loop running."""
        return not self.closing

    def is_closed(self) -> bool:
        """Whether the execution is closed."""
        return self.closing

    def get_task_factory(self) -> None:
        """There is none."""

    def get_exception_handler(self) -> Any:
        """What `set_exception_handler` was given."""
        return self._handler

    def set_exception_handler(self, handler: Any) -> None:
        """Call this for errors that nobody awaits."""
        self._handler = handler

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Report an error that nobody awaits; silent while replaying and closing."""
        if self.closing:
            return
        if self._handler is not None:
            try:
                self._handler(self, context)
            except (SystemExit, KeyboardInterrupt) as error:
                self._escape(error)
            except BaseException:
                logger.exception("the workflow's own exception handler failed")
        else:
            self.default_exception_handler(context)

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        """Log the error."""
        owner = self.owner
        if owner is not None and not owner.is_replaying and not self.closing:
            logger.error(
                "workflow %s: %s", owner.workflow_id, context.get("message"), exc_info=context.get("exception"),
                extra={"workflow_id": owner.workflow_id},
            )  # fmt: skip


def _refused(name: str) -> NoReturn:
    raise NotAllowedInWorkflow(
        f"{name}() is not allowed in a workflow: its outcome would differ on replay; do this in a step (an async or plain "
        "function under @step), and await that"
    )


def _refusal(name: str) -> Callable[..., NoReturn]:
    def refused(self: ReplayLoop, *args: Any, **kwargs: Any) -> NoReturn:
        for value in args:
            if isinstance(value, Coroutine):
                value.close()
        _refused(name)

    refused.__name__ = name
    refused.__doc__ = "Not allowed in a workflow."
    return refused


_OWN = frozenset(vars(ReplayLoop))
for _name in dir(asyncio.AbstractEventLoop):
    if not _name.startswith("_") and _name not in _OWN:
        setattr(ReplayLoop, _name, _refusal(_name))

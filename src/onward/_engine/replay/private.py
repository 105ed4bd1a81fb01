"""The one file that touches asyncio's private side; everything else of the replay core uses public names only.

It makes a replay loop the running loop for the length of one call (`activate`), recognises which part of asyncio is calling
(`timer_name`, `called_by_as_completed`, `called_by_wait`), and looks into tasks (`waits_for`, `unlink`). Tested on every CPython
from 3.11 to the newest at hand. It must never touch a loop that is not a replay loop, save to step aside for the call.
"""

from __future__ import annotations

import gc
import sys
import threading
from asyncio import events, futures, tasks
from collections.abc import Callable
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import asyncio

    from onward._engine.replay.loop import ReplayLoop

T = TypeVar("T")

_running_loop: Callable[[], asyncio.AbstractEventLoop | None] = events._get_running_loop
current_task: Callable[[asyncio.AbstractEventLoop], asyncio.Task[Any] | None] = tasks.current_task
if sys.version_info < (3, 12):  # there it is plain Python, and asked for every call
    current_task = tasks._current_tasks.get  # type: ignore[attr-defined]  # private
enter_task: Callable[[asyncio.AbstractEventLoop, asyncio.Task[Any]], None] = tasks._enter_task
leave_task: Callable[[asyncio.AbstractEventLoop, asyncio.Task[Any]], None] = tasks._leave_task
_get_hooks, _set_hooks, _collects = sys.get_asyncgen_hooks, sys.set_asyncgen_hooks, gc.isenabled
_set_running_loop = events._set_running_loop
_TASK_IS_PER_THREAD = sys.version_info >= (3, 14)  # before, the current task was kept per loop
_swap_current_task: Callable[[Any, Any], Any] = getattr(tasks, "_swap_current_task", lambda loop, task: None)


class _Here(threading.local):
    """What runs on this thread. Asking asyncio is a system call before 3.12, and every step has to know it several times."""

    loop: ReplayLoop | None = None
    """The replay loop that is the running loop now, which only `activate` makes it."""


here = _Here()


def activate(loop: ReplayLoop, function: Callable[..., T], *args: Any) -> T:
    """Call `function` with `loop` as the thread's running loop, no current task, the loop's async generator hooks and
    cyclic garbage collection off; restore what was before.

    May be called from a plain callback of a real loop, from a task of it, or where no loop runs. That loop is `loop.outer`
    where it is known beforehand.
    """
    before = here.loop
    if before is loop:
        raise RuntimeError("this replay loop is running already")
    outer = loop.outer if loop.outer is not None and before is None else _running_loop()
    outer_task = _swap_current_task(outer, None) if _TASK_IS_PER_THREAD and outer is not None else None
    hooks = _get_hooks()
    collects = _collects()
    if collects:
        gc.disable()
    _set_hooks(loop.agen_started, loop.agen_dropped)
    _set_running_loop(loop)
    here.loop = loop
    try:
        return function(*args)
    finally:
        here.loop = before
        _set_running_loop(outer)
        _set_hooks(*hooks)
        if outer_task is not None:
            _swap_current_task(outer, outer_task)
        if collects:
            gc.enable()


_SET_RESULT = futures._set_result_unless_cancelled  # type: ignore[attr-defined]  # private


def timer_name(callback: Callable[..., object]) -> str:
    """The journal name of a timer with this callback: "sleep", "timeout" (also of wait and wait_for) or "timer"."""
    if callback is _SET_RESULT:
        return "sleep"
    return "timeout" if getattr(callback, "__module__", None) in ("asyncio.timeouts", "asyncio.tasks") else "timer"


def _codes(*names: str) -> frozenset[CodeType]:
    found: list[CodeType] = []
    for name in names:
        value: Any = tasks
        for part in name.split("."):
            value = getattr(value, part, None)
        code = getattr(value, "__code__", None)  # not every version has each of these functions
        if code is not None:
            found.append(code)
    return frozenset(found)


_ENSURE_FUTURE = _codes("ensure_future", "_ensure_future")
_AS_COMPLETED = _codes("as_completed", "_AsCompletedIterator.__init__")
_WAIT = _codes("_wait")
_TASKS_FILE = tasks.ensure_future.__code__.co_filename


def called_by_as_completed(depth: int) -> FrameType | None:
    """The frame of `as_completed` if that is what asks for a task, `depth` frames above this one."""
    frame: FrameType | None = sys._getframe(depth)
    if frame is None or frame.f_code not in _ENSURE_FUTURE:
        return None
    while frame is not None and frame.f_code.co_filename == _TASKS_FILE:
        if frame.f_code in _AS_COMPLETED:
            return frame
        frame = frame.f_back
    return None


def called_by_wait(depth: int) -> Any:
    """The set of futures of `asyncio.wait` if that is what asks for a future, `depth` frames above this one."""
    frame = sys._getframe(depth)
    return frame.f_locals.get("fs") if frame.f_code in _WAIT else None


def waits_for(task: asyncio.Task[Any]) -> asyncio.Future[Any] | None:
    """The future that the task awaits now."""
    waiter: asyncio.Future[Any] | None = getattr(task, "_fut_waiter", None)
    return waiter


def unlink(task: asyncio.Task[Any]) -> None:
    """Take a task that will never run again out of the reference cycles it shares with what it awaits."""
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # private
    for future in (task, waits_for(task)):
        if future is not None:
            for callback, _context in getattr(future, "_callbacks", None) or ():
                future.remove_done_callback(callback)


def task_of(callback: object) -> asyncio.Task[Any] | None:
    """The task that this callback steps or wakes, if that is what it does."""
    task = getattr(callback, "__self__", None)
    return task if isinstance(task, tasks.Task) else None

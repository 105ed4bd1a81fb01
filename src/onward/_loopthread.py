"""A private event loop on a thread of its own: what the blocking `Client` runs its `AsyncClient` on.

The thread is a daemon: a process may end without closing it. After a fork the child leaves the object alone.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any


class LoopThread:
    """A running loop; begins with the object."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._last: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="onward-client", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.close()

    def call(self, make: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Run a coroutine there and wait for it; Ctrl-C cancels it, waits for its end, and goes on."""
        answer: concurrent.futures.Future[Any] = concurrent.futures.Future()
        tasks: list[asyncio.Task[Any]] = []

        async def kept() -> Any:
            try:
                return await make()
            except (SystemExit, KeyboardInterrupt) as error:  # out of a task these would end the loop
                return _Left(error)

        def begin() -> None:
            tasks.append(self._loop.create_task(kept()))
            tasks[0].add_done_callback(lambda task: _pass_on(task, answer))

        def cancel() -> None:  # after `begin`, so there is a task
            tasks[0].cancel()

        self._loop.call_soon_threadsafe(begin)
        try:
            return answer.result()
        except KeyboardInterrupt:
            self._loop.call_soon_threadsafe(cancel)
            concurrent.futures.wait([answer])
            raise

    def end(self) -> None:
        """Stop the loop and end the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def end_after(self, make: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a last coroutine there, then end; waits for neither, so it may be called from anywhere."""

        async def last() -> None:
            try:
                await make()
            finally:
                self._loop.stop()

        def begin() -> None:
            self._last = self._loop.create_task(last())

        _ending.add(self)
        self._loop.call_soon_threadsafe(begin)


_ending: weakref.WeakSet[LoopThread] = weakref.WeakSet()
"""Those whose last coroutine runs: waited for at the end of the process, a few seconds at most."""
_inherited: list[LoopThread] = []
"""Those that were ending when this process was forked off: kept, since to free them would close the parent's files."""


def _wait_for_ends() -> None:
    for ending in list(_ending):
        ending._thread.join(5.0)


atexit.register(_wait_for_ends)
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=lambda: _inherited.extend(_ending))


class _Left:
    """How a call ended that asks the process to end: the caller's thread raises it."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _pass_on(task: asyncio.Task[Any], answer: concurrent.futures.Future[Any]) -> None:
    if task.cancelled():
        answer.set_exception(asyncio.CancelledError())
    elif (error := task.exception()) is not None:
        answer.set_exception(error)
    elif isinstance(result := task.result(), _Left):
        answer.set_exception(result.error)
    else:
        answer.set_result(result)

"""Threads that run jobs on SQLite connections for an event loop: one writer, a few readers.

A job is a function of a connection; `call` puts it into the queue and awaits its result, which comes back by
`call_soon_threadsafe`. A caller that is cancelled stops waiting; the job is done all the same. Threads and connections begin
with the first job and end in `close`; after a fork the child simply drops the object.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from onward._store.sqlite.faults import classify
from onward.errors import FatalStoreError, OutcomeUnknown

T = TypeVar("T")


class _Job:
    """A function on its way to a thread, and the future that waits for it."""

    __slots__ = ("fn", "future", "loop")

    def __init__(self, fn: Callable[[sqlite3.Connection], Any], loop: asyncio.AbstractEventLoop) -> None:
        self.fn = fn
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()

    def answer(self, value: Any, error: BaseException | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(self._settle, value, error)

    def _settle(self, value: Any, error: BaseException | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(value)
        else:
            self.future.set_exception(error)


def _end(_conn: sqlite3.Connection) -> None:
    """The job that ends the thread which takes it."""


class JobThreads:
    """Up to `count` threads, each with a connection of its own, fed by one queue."""

    def __init__(self, name: str, database: str, count: int, connect: Callable[[], sqlite3.Connection]) -> None:
        self._name = name
        self._database = database
        self._count = count
        self._connect = connect
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._busy_count = 0
        self._is_closed = False

    async def call(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run `fn(connection)` on one of the threads."""
        if self._is_closed:
            raise FatalStoreError(f"the store of {self._database} is closed; open it again")
        job = _Job(fn, asyncio.get_running_loop())
        self._busy_count += 1  # counted on the loop only
        if self._busy_count > len(self._threads) and len(self._threads) < self._count:
            thread = threading.Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._jobs.put(job)
        job.future.add_done_callback(self._job_done)
        result: T = await job.future
        return result

    def _job_done(self, _future: asyncio.Future[Any]) -> None:
        self._busy_count -= 1

    async def close(self) -> None:
        """Let the queued jobs end, then end the threads and close their connections; idempotent."""
        self._is_closed = True
        threads, self._threads = self._threads, []
        ends = [_Job(_end, asyncio.get_running_loop()) for _ in threads]
        for end in ends:
            self._jobs.put(end)
        for end in ends:
            await end.future
        for thread in threads:
            thread.join()  # it has said its last word: this waits for microseconds

    def _work(self) -> None:
        conn: sqlite3.Connection | None = None
        while (job := self._jobs.get()).fn is not _end:
            try:
                if conn is None:
                    conn = self._connect()
                value = job.fn(conn)
            except BaseException as caught:
                error: BaseException = caught
                if isinstance(error, sqlite3.Error):
                    error = classify(error, database=self._database)
                    error.__cause__ = caught
                if conn is not None and isinstance(error, (FatalStoreError, OutcomeUnknown)):
                    conn.close()  # a fresh connection looks at the file as it is now
                    conn = None
                job.answer(None, error)
                del caught, error
            else:
                job.answer(value, None)
                del value
            del job
        if conn is not None:
            conn.close()
        job.answer(None, None)

"""Threads that run jobs on SQLite connections for an event loop: one writer, a few readers.

A job is a function of a connection; `call` puts it into the queue and awaits its result, which comes back by
`call_soon_threadsafe`. `call_here` runs one on the loop's own thread, on the connection of a single thread that has nothing
to do: two changes of threads cost more than a short job. A caller that is cancelled stops waiting; the job is done all the
same. Threads and connections begin with the first job and end in `close`; after a fork the child simply drops the object.
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


class _Place:
    """Where a thread keeps its connection between two jobs."""

    __slots__ = ("conn",)

    def __init__(self) -> None:
        self.conn: sqlite3.Connection | None = None


class JobThreads:
    """Up to `count` threads, each with a connection of its own, fed by one queue."""

    def __init__(self, name: str, database: str, count: int, connect: Callable[[], sqlite3.Connection]) -> None:
        self._name = name
        self._database = database
        self._count = count
        self._connect = connect
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._places: list[_Place] = []
        self._busy_count = 0
        self._is_closed = False

    async def call(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run `fn(connection)` on one of the threads."""
        if self._is_closed:
            raise FatalStoreError(f"the store of {self._database} is closed; open it again")
        job = _Job(fn, asyncio.get_running_loop())
        self._busy_count += 1  # counted on the loop only
        if self._busy_count > len(self._threads) and len(self._threads) < self._count:
            place = _Place()
            thread = threading.Thread(
                target=self._work, args=(place,), name=f"{self._name}-{len(self._threads)}", daemon=True
            )
            self._places.append(place)
            self._threads.append(thread)
            thread.start()
        self._jobs.put(job)
        job.future.add_done_callback(self._job_done)
        result: T = await job.future
        return result

    def call_here(self, fn: Callable[[sqlite3.Connection], T | None]) -> T | None:
        """Run `fn(connection)` now, on this thread; None if the one thread is busy, or has no connection yet."""
        if self._count > 1 or self._busy_count or self._is_closed or not self._places or self._places[0].conn is None:
            return None
        return self._run(self._places[0], fn)

    def _job_done(self, _future: asyncio.Future[Any]) -> None:
        self._busy_count -= 1

    async def close(self) -> None:
        """Let the queued jobs end, then end the threads and close their connections; idempotent."""
        self._is_closed = True
        threads, self._threads = self._threads, []
        self._places.clear()
        ends = [_Job(_end, asyncio.get_running_loop()) for _ in threads]
        for end in ends:
            self._jobs.put(end)
        for end in ends:
            await end.future
        for thread in threads:
            thread.join()  # it has said its last word: this waits for microseconds

    def _work(self, place: _Place) -> None:
        while (job := self._jobs.get()).fn is not _end:
            try:
                value = self._run(place, job.fn)
            except BaseException as error:
                job.answer(None, error)
            else:
                job.answer(value, None)
                del value
            del job
        if place.conn is not None:
            place.conn.close()
        job.answer(None, None)

    def _run(self, place: _Place, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run a job; an error of SQLite comes out as a StoreError."""
        try:
            if place.conn is None:
                place.conn = self._connect()
            return fn(place.conn)
        except BaseException as caught:
            error: BaseException = caught
            try:
                if isinstance(error, sqlite3.Error):
                    error = classify(error, database=self._database)
                    error.__cause__ = caught
                if place.conn is not None and isinstance(error, (FatalStoreError, OutcomeUnknown)):
                    place.conn.close()  # a fresh connection looks at the file as it is now
                    place.conn = None
                raise error
            finally:
                del error  # its traceback holds this frame: a cycle

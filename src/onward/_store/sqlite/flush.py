"""The quick flush: a whole batch of plain operations, checked, written and committed by one SQL statement.

What a busy worker writes is nearly all entries, ends and parks that touch nobody else's row. `prepare` makes such a batch into
parameters, on the event loop's thread; the writer's thread gives them to a view whose trigger does the rest (sql/flush.sql),
in autocommit. So a flush is one call into SQLite, during which the other threads of this process run on: each further
statement would be another fight for the interpreter's lock with a busy event loop. Where the trigger finds anything out of
the ordinary it aborts; then nothing has happened, and the batch goes the general way (journal.py).

A small batch that finds the writer idle is written on the loop's own thread, where commits are known to be quick: the two
changes of threads would take longer than the commit. One workflow's steps, one after the other, live on that.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

from onward._store.operations import Fence, FinishOp, JournalOp, Op, ParkOp
from onward._store.sqlite.database import Database
from onward._store.sqlite.threads import JobThreads
from onward._store.statements import json_text, load_statements

T = TypeVar("T")

SQL = load_statements("onward._store.sqlite", "flush")
_MANY, _ONE = SQL["flush"], SQL["record_one"]
_ATTENTION = "onward: attention"
"""What the trigger says when the batch is not that plain."""
_NOT_YET = "no such table: temp.onward_flush"
"""What SQLite says before this connection has its view, which lives as long as the connection does."""

SMALL = 8
"""Operations of a batch that may be written on the loop's thread."""
QUICK_S = 0.001
"""What a small commit usually takes on a disk for which the loop may wait: less than many a callback of its own."""


class Plain(Protocol):
    """A batch of plain operations, ready to be written.

    Attributes:
        is_small: it may be written on the loop's thread.
        is_news: others may wait for some of it; entries alone make nothing due and end nothing.
    """

    is_small: bool
    is_news: bool

    def insert(self, conn: sqlite3.Connection, now: int) -> bool:
        """Check, write and commit by one statement; False if nothing was written. Raises sqlite3.Error."""
        ...


class OneEntry:
    """A single entry: the lone workflow's step, written with hardly more work than a bare INSERT."""

    __slots__ = ("_op",)

    is_small = True
    is_news = False

    def __init__(self, op: JournalOp) -> None:
        self._op = op

    def insert(self, conn: sqlite3.Connection, now: int) -> bool:
        """See Plain."""
        fence, e = self._op.fence, self._op.entries[0]
        row = (e.seq, e.key, e.kind, e.finished_at, e.result, e.error, e.digest, e.arguments, e.tries, e.started_at)
        return conn.execute(_ONE, (*row, fence.worker, fence.epoch, fence.workflow_id)).rowcount == 1


class Many:
    """Any number of operations."""

    __slots__ = ("_parameters", "is_news", "is_small")

    def __init__(self, entries: Sequence[JournalOp], parks: Sequence[ParkOp], finishes: Sequence[FinishOp]) -> None:
        self._parameters = {
            "entries": json_text(entries) if entries else None,
            "parks": json_text(parks) if parks else None,
            "finishes": json_text(finishes) if finishes else None,
        }
        self.is_news = bool(parks or finishes)
        self.is_small = len(entries) + len(parks) + len(finishes) <= SMALL

    def insert(self, conn: sqlite3.Connection, now: int) -> bool:
        """See Plain."""
        try:
            conn.execute(_MANY, {**self._parameters, "now": now})
        except sqlite3.IntegrityError as error:
            if str(error) == _ATTENTION:
                return False
            raise
        except sqlite3.OperationalError as error:
            if str(error) != _NOT_YET:
                raise
            conn.execute(SQL["view"])
            conn.execute(SQL["trigger"])
            return self.insert(conn, now)
        return True


def prepare(batch: Sequence[Op]) -> Plain | None:
    """A batch of plain operations, ready to be written; None for any other."""
    entries: list[JournalOp] = []
    parks: list[ParkOp] = []
    finishes: list[FinishOp] = []
    ended: set[Fence] = set()
    for op in batch:
        if isinstance(op, JournalOp):
            if len(op.entries) != 1 or op.consumed or op.settled or op.progress is not None or op.reset_counters:
                return None
            if ended and op.fence in ended:
                return None
            entries.append(op)
            continue
        if isinstance(op, FinishOp) and not op.cancels_children:
            finishes.append(op)
        elif isinstance(op, ParkOp) and not op.retries:
            parks.append(op)
        else:
            return None
        if op.fence in ended:
            return None
        ended.add(op.fence)
    return OneEntry(entries[0]) if len(entries) == len(batch) == 1 else Many(entries, parks, finishes)


class Flushes:
    """The quick flushes of one store.

    Args:
        database: the file.
        writer: the thread with the connection.
    """

    def __init__(self, database: Database, writer: JobThreads) -> None:
        self._database = database
        self._writer = writer
        self._usual_s = 1.0
        """What a small one took lately, the last ones counting most; at first unknown."""

    async def write(self, batch: Plain) -> bool:
        """Check, write and commit; False if nothing was written because the batch has to go the general way.

        Raises StoreError.
        """
        if not batch.is_small:
            return await self._writer.call(partial(self._wait, batch))
        if self._usual_s < QUICK_S:
            written: bool | None = self._writer.call_here(partial(self._timed, self._database.statement_now, batch))
            if written is not None:
                return written
        done: bool = await self._writer.call(partial(self._timed, self._database.statement, batch))
        return done

    def _wait(self, batch: Plain, conn: sqlite3.Connection) -> bool:
        return self._database.statement(conn, "write", batch.insert, is_news=batch.is_news)

    def _timed(self, write: Callable[..., T], batch: Plain, conn: sqlite3.Connection) -> T:
        began = time.perf_counter()
        written = write(conn, "write", batch.insert, is_news=batch.is_news)
        self._usual_s += (time.perf_counter() - began - self._usual_s) / 4
        return written

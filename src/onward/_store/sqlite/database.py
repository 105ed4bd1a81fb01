"""One file as the threads of this process see it: its name, clock and mutex, and the one way to write to it.

`transaction` is the only place that says BEGIN and COMMIT for the store itself (`steps.py` does for transactional steps, by
the same `begin`), and so the only one where an outcome can be unknown.
"""

from __future__ import annotations

import contextlib
import random
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias, TypeVar

from onward._store.base import Clock
from onward._store.clock import SteadyClock
from onward._store.sqlite.connection import Writer, connect
from onward._store.sqlite.faults import classify
from onward._store.sqlite.shared import shared_file
from onward.errors import ConfigurationError

T = TypeVar("T")
Probe: TypeAlias = Callable[[str], None]
"""Called as probe("write:before-commit"), probe("write:after-commit"), …: where fault tests kill the process."""

BUSY_S = 5.0


def _no_probe(point: str) -> None:
    """The probe of production."""


class Database:
    """A database file: shared by a store's writer, readers and lease connection."""

    def __init__(
        self, path: Path, *, clock: Clock | None = None, probe: Probe | None = None, busy_s: float = BUSY_S
    ) -> None:
        self.path = path
        self.name = str(path)
        self.probe: Probe = probe or _no_probe
        self.shared = shared_file(path)
        self.now_us = SteadyClock(clock).now_us
        """The database's time: this machine's, never falling."""
        self._busy_s = busy_s

    def connect_writer(self, *, create: bool = False) -> sqlite3.Connection:
        """A connection for `transaction`, in WAL mode: it does not wait for locks by itself, `begin` does."""
        conn = self.patiently(lambda: connect(self.path, create=create, busy_s=0.0, factory=Writer))
        try:
            mode = self.patiently(lambda: _use_wal(conn))
            conn.execute("PRAGMA journal_size_limit = 67108864")
        except BaseException:
            conn.close()
            raise
        if mode != "wal":
            conn.close()
            raise ConfigurationError(
                f"{self.path} cannot use SQLite's write-ahead log (its journal mode stays {mode!r}); "
                "its file system lacks shared memory: put the file on a local disk"
            )
        return conn

    def patiently(self, action: Callable[[], T], *, committing: bool = False) -> T:
        """Try until no other process is in the way, or for as long as `busy_s`; raises StoreError.

        SQLite's own busy handler sleeps up to 100 ms between two looks, in which a busy other process takes the lock
        a dozen times; we look every few milliseconds instead. It is not asked at all where a file changes to WAL mode.
        """
        give_up_at = time.monotonic() + self._busy_s
        pause_s = 0.0002
        while True:
            try:
                return action()
            except sqlite3.Error as error:
                code = getattr(error, "sqlite_errorcode", 0) & 0xFF
                if code != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_at:
                    raise classify(error, database=self.name, committing=committing) from error
            time.sleep(pause_s * (0.5 + random.random()))
            pause_s = min(pause_s * 1.5, 0.004)

    def statement(
        self,
        conn: sqlite3.Connection,
        point: str,
        body: Callable[[sqlite3.Connection, int], T],
        *,
        is_news: bool = True,
    ) -> T:
        """Run `body(conn, now)`, which executes one statement in autocommit: `transaction` in a single call into SQLite.

        The statement takes the write lock first and commits last. Raises StoreError; where an I/O error came up, nobody knows
        whether it has committed.
        """
        with self.shared.mutex:
            self.probe(f"{point}:before-commit")
            result = self.patiently(lambda: body(conn, self.now_us()), committing=True)
        self._committed(conn, point, is_news)
        return result

    def statement_now(
        self,
        conn: sqlite3.Connection,
        point: str,
        body: Callable[[sqlite3.Connection, int], T],
        *,
        is_news: bool = True,
    ) -> T | None:
        """As `statement`, on a thread that must not wait; None, and nothing was done, if anybody else holds a lock."""
        mutex = self.shared.mutex
        if not mutex.enter_now():
            return None
        try:
            self.probe(f"{point}:before-commit")
            result = body(conn, self.now_us())
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
                return None
            raise classify(error, database=self.name, committing=True) from error
        finally:
            mutex.__exit__(None, None, None)
        self._committed(conn, point, is_news)
        return result

    def _committed(self, conn: sqlite3.Connection, point: str, is_news: bool) -> None:
        """What follows each commit, outside the mutex."""
        self.probe(f"{point}:after-commit")
        self.shared.hub.publish(conn, is_news=is_news)

    def begin(self, conn: sqlite3.Connection) -> None:
        """Take the file's write lock, in turns with other processes; raises StoreError."""
        self.patiently(lambda: conn.execute("BEGIN IMMEDIATE"))

    def transaction(
        self,
        conn: sqlite3.Connection,
        point: str,
        body: Callable[[sqlite3.Connection, int], T],
        *,
        is_news: bool = True,
    ) -> T:
        """Run `body(conn, now)` under the write lock and commit; subscribers are told after it if it is news to them.

        Raises StoreError.

        The time is read under the lock, so that times in the database rise in commit order within one process.
        """
        with self.shared.mutex:
            self.begin(conn)
            is_committing = False
            try:
                result = body(conn, self.now_us())
                self.probe(f"{point}:before-commit")
                is_committing = True
                conn.execute("COMMIT")
            except BaseException as error:
                roll_back(conn)
                if isinstance(error, sqlite3.Error):
                    raise classify(error, database=self.name, committing=is_committing) from error
                raise
        self._committed(conn, point, is_news)
        return result


def _use_wal(conn: sqlite3.Connection) -> str:
    mode: str = conn.execute("PRAGMA journal_mode").fetchone()[0]
    if mode != "wal":
        mode = conn.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    return mode


def roll_back(conn: sqlite3.Connection) -> None:
    """End the transaction if SQLite has not done so already; what went wrong before is what the caller reports."""
    with contextlib.suppress(sqlite3.Error):
        if conn.in_transaction:
            conn.execute("ROLLBACK")

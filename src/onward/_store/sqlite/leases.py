"""The lease thread's own connection: a worker's row and lock file, renewal, and the burial of dead workers.

Death is decided here and is final. A worker is dead if its lock file can be locked (the kernel freed it), or if it has no lock
file and its lease has run out. While somebody holds the lock file a late renewal alone proves nothing: on SQLite a long
transaction of a step keeps every renewal waiting. Only if the same run-out lease is seen again, under the write lock, a second
or more later (a living worker would have renewed within milliseconds of that lock being free) is the worker taken for stalled.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from onward._store.records import WorkerRow
from onward._store.sqlite.claims import SQL as CLAIMS
from onward._store.sqlite.connection import run_on
from onward._store.sqlite.database import Database
from onward._store.sqlite.endings import Endings
from onward._store.sqlite.faults import classify
from onward._store.sqlite.locks import HAS_FLOCK, LockFile, lock_directory
from onward._store.sqlite.wakes import Wakes
from onward._store.statements import json_text, load_statements
from onward._store.verdicts import CRASH_LIMIT, CRASHED
from onward.errors import ConfigurationError

T = TypeVar("T")
SQL = load_statements("onward._store.sqlite", "leases")
STALLED_US = 1_000_000
KEEP_DEAD_US = 7 * 24 * 3600 * 1_000_000


class SqliteLeases:
    """See base.Leases."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._conn: sqlite3.Connection | None = None
        self._directory = lock_directory(database.path)
        self._locks: dict[str, LockFile] = {}
        self._expired: dict[str, tuple[int, int]] = {}
        """Of workers seen with a run-out lease: (that expires_at, when we first saw it)."""

    def register(self, worker: WorkerRow, lease_us: int) -> None:
        """Take the lock file, then insert the row: a row without a lock would look dead."""
        lock: LockFile | None = None
        if HAS_FLOCK:
            try:
                self._directory.mkdir(exist_ok=True)
                lock = LockFile.try_lock(self._lock_path(worker.id), create=True)
            except OSError as error:
                raise ConfigurationError(
                    f"a worker needs its lock file in {self._directory}, but: {error}; make the database's directory writable"
                ) from error
            if lock is None:
                raise ConfigurationError(f"a worker with the id {worker.id!r} is alive already; ids must be random")
        params = {
            "id": worker.id, "name": worker.name, "host": worker.host, "pid": worker.pid, "code_version": worker.code_version,
            "queues": json_text(worker.queues), "types": json_text(worker.types), "lease": lease_us,
        }  # fmt: skip
        try:
            self._write("register", lambda conn, now: conn.execute(SQL["register_worker"], {**params, "now": now}))
        except BaseException:
            if lock is not None:
                lock.release(unlink=True)
            raise
        if lock is not None:
            self._locks[worker.id] = lock

    def renew(self, worker_id: str, lease_us: int) -> bool:
        """Extend the lease unless the worker is dead or gone."""
        params = {"id": worker_id, "lease": lease_us}
        return self._write(
            "renew",
            lambda conn, now: conn.execute(SQL["renew_lease"], {**params, "now": now}).rowcount == 1,
            is_news=False,
        )

    def retire(self, worker_id: str) -> None:
        """Remove the row, then the lock file."""
        self._write("retire", lambda conn, now: conn.execute(SQL["retire_worker"], {"id": worker_id}))
        lock = self._locks.pop(worker_id, None)
        if lock is not None:
            lock.release(unlink=True)

    def bury(self, worker_id: str) -> int:
        """Mark the dead, release what they and absent workers held. Takes the write lock only if there is something to do."""
        conn = self._connection()
        with contextlib.ExitStack() as stack:
            try:
                others: list[tuple[str, int]] = conn.execute(SQL["other_workers"], {"id": worker_id}).fetchall()
                orphans: str = conn.execute(SQL["orphan_workers"]).fetchone()[0]
            except sqlite3.Error as error:
                raise classify(error, database=self._database.name) from error
            now = self._database.now_us()
            suspects: list[tuple[str, int, bool]] = []
            locks: list[LockFile] = []
            for other, expires_at in others:
                lock = self._try_lock(other)
                if isinstance(lock, LockFile):
                    stack.callback(lock.release, unlink=False)  # held until the death is committed, or the burial fails
                    locks.append(lock)
                    suspects.append((other, expires_at, True))
                elif expires_at <= now:
                    suspects.append((other, expires_at, False))
            self._forget_renewed(others)
            if not suspects and orphans == "[]":
                return 0
            released = self._write("bury", lambda conn, now: self._bury(conn, now, suspects))
            for lock in locks:  # a burial that failed has left the files: they are what the next look goes by
                lock.release(unlink=True)
            return released

    def close(self) -> None:
        """Close the connection and give up the locks; the files stay for whoever buries us."""
        for lock in self._locks.values():
            lock.release(unlink=False)
        self._locks.clear()
        if self._conn is not None:
            self._conn.close()
            self._conn = None

    def _bury(self, conn: sqlite3.Connection, now: int, suspects: list[tuple[str, int, bool]]) -> int:
        for worker_id, expires_at, is_lock_free in suspects:
            if is_lock_free or self._has_stalled(worker_id, expires_at, now):
                params = {"id": worker_id, "is_lock_free": is_lock_free, "expires_at": expires_at}
                conn.execute(SQL["mark_dead"], params)
        conn.execute(SQL["forget_dead"], {"before": now - KEEP_DEAD_US})
        workers = conn.execute(SQL["orphan_workers"]).fetchone()[0]
        rows = msgspec.json.decode(
            conn.execute(SQL["orphan_rows"], {"workers": workers}).fetchone()[0], type=list[tuple[str, int]]
        )
        again = [workflow_id for workflow_id, crashes in rows if crashes + 1 < CRASH_LIMIT]
        over = [workflow_id for workflow_id, crashes in rows if crashes + 1 >= CRASH_LIMIT]
        if again:
            conn.execute(CLAIMS["give_back"], {"ids": json_text(again), "now": now, "crashes": 1})
        if over:
            conn.execute(SQL["count_crash"], {"ids": json_text(over)})
            wakes = Wakes()
            endings = run_on(conn, Endings.look(over, status="failed", error=CRASHED))
            run_on(conn, endings.write(wakes, now))
            run_on(conn, wakes.write(now))
        return len(rows)

    def _has_stalled(self, worker_id: str, expires_at: int, now: int) -> bool:
        """Without a lock file the lease decides; with one, only the second look at the same run-out lease."""
        if not self._lock_path(worker_id).exists():
            return True
        seen = self._expired.get(worker_id)
        if seen is None or seen[0] != expires_at:
            self._expired[worker_id] = (expires_at, now)
            return False
        return now - seen[1] >= STALLED_US

    def _forget_renewed(self, others: list[tuple[str, int]]) -> None:
        current = dict(others)
        self._expired = {other: seen for other, seen in self._expired.items() if current.get(other) == seen[0]}

    def _try_lock(self, worker_id: str) -> LockFile | None:
        """The lock of a dead worker, or None: alive, or without a lock file."""
        if worker_id in self._locks:
            return None
        with contextlib.suppress(OSError):  # missing or not accessible: the lease decides
            return LockFile.try_lock(self._lock_path(worker_id), create=False)
        return None

    def _lock_path(self, worker_id: str) -> Path:
        return self._directory / f"{worker_id}.lock"

    def _connection(self) -> sqlite3.Connection:
        if self._conn is None:
            self._conn = self._database.connect_writer()
        return self._conn

    def _write(self, point: str, body: Callable[[sqlite3.Connection, int], T], *, is_news: bool = True) -> T:
        return self._database.transaction(self._connection(), point, body, is_news=is_news)

"""Removes Onward from a file: its tables and views in one transaction, then the lock files beside it. Nothing else is touched.

What is Onward's is what its own migrations make, by name and type; the application's tables stay, whatever they are called.
"""

from __future__ import annotations

import contextlib
import sqlite3

from onward._store.diagnosis import Removal
from onward._store.records import WorkerInfo
from onward._store.sqlite import reads
from onward._store.sqlite.connection import check_place, connect
from onward._store.sqlite.database import Database
from onward._store.sqlite.faults import classify
from onward._store.sqlite.locks import is_held, lock_directory
from onward._store.sqlite.migrations import applied_migrations, check_exists, known_migrations, own_objects
from onward._version import __version__
from onward.errors import SchemaError


def drop_schema(database: Database, *, force: bool) -> Removal:
    """Remove what is Onward's, unless workers are alive. Raises SchemaError for a missing file or an unknown schema."""
    check_place(database.path, create=False)
    check_exists(database)
    with contextlib.closing(connect(database.path, busy_s=0.0)) as conn:
        try:
            applied = database.patiently(lambda: applied_migrations(conn))
        except sqlite3.Error as error:
            raise classify(error, database=database.name) from error
        newest = len(known_migrations())
        unknown = [one for one in applied if one.number > newest]
        if unknown:
            raise SchemaError(
                f"{database.name} has schema {unknown[-1].number} ({unknown[-1].name}), which this onward {__version__} does "
                "not know; drop it with the version that made it"
            )
        if applied:
            removal = database.transaction(conn, "drop", lambda conn, now: _drop(conn, database, now, force=force))
            if removal.alive:
                return removal
        else:
            removal = Removal()
    _remove_lock_files(database)
    return removal


def _drop(conn: sqlite3.Connection, database: Database, now: int, *, force: bool) -> Removal:
    alive = [] if force else [worker for worker in _workers(conn) if _is_alive(worker, database, now)]
    if alive:
        return Removal(alive=tuple(alive))
    own = _own(conn)
    removed = sorted(name for name, kind in own.items() if kind in ("table", "view"))
    for name in sorted(removed, key=lambda name: own[name] != "view"):  # a view needs its tables
        conn.execute(f"DROP {own[name].upper()} {name}")  # indexes and triggers go with their table
    left = conn.execute("SELECT 1 FROM sqlite_schema WHERE name NOT GLOB 'sqlite_*' LIMIT 1").fetchone()
    return Removal(removed=tuple(removed), is_empty=left is None)


def _own(conn: sqlite3.Connection) -> dict[str, str]:
    """What is ours in the file, with its type."""
    there = dict(conn.execute("SELECT name, type FROM sqlite_schema").fetchall())
    return {name: kind for name, (kind, _) in own_objects().items() if there.get(name) == kind}


def _workers(conn: sqlite3.Connection) -> list[WorkerInfo]:
    found = conn.execute("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'onward_workers'").fetchone()
    return [] if found is None else reads.workers(conn)


def _is_alive(worker: WorkerInfo, database: Database, now: int) -> bool:
    """By its lock; where it has none, by its lease."""
    proof = is_held(lock_directory(database.path) / f"{worker.id}.lock")
    return not worker.is_dead and (worker.expires_at > now if proof is None else proof)


def _remove_lock_files(database: Database) -> None:
    """The directory stays if there is anything else in it."""
    directory = lock_directory(database.path)
    with contextlib.suppress(OSError):
        for file in directory.glob("*.lock"):
            file.unlink(missing_ok=True)
        directory.rmdir()

"""Reads the `Work` of a diagnosis from a file whose schema is known to be usable.

All of it from one read transaction, and then the lock files of the workers found there.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from onward._store.diagnosis import EXAMPLES, Group, Payload, Sample, Work
from onward._store.sqlite import reads
from onward._store.sqlite.database import Database
from onward._store.sqlite.locks import is_held, lock_directory
from onward._store.statements import load_statements
from onward._store.verdicts import QUARANTINE_CRASHES

T = TypeVar("T")
SQL = load_statements("onward._store.sqlite", "diagnosis")
DAY_US = 24 * 3600 * 1_000_000
PATIENCE_S = 5.0
"""How long a look may take that reads every value, unless it is to be thorough."""
_STEPS_PER_LOOK = 20_000
_groups = msgspec.json.Decoder(tuple[Group, ...])
_payloads = msgspec.json.Decoder(tuple[Payload, ...])
_sample = msgspec.json.Decoder(Sample)
_counts = msgspec.json.Decoder(dict[str, int])
_created = msgspec.json.Decoder(tuple[int, int | None])


def read_work(conn: sqlite3.Connection, database: Database, *, thorough: bool) -> Work:
    """The facts. Raises sqlite3.Error."""
    for _ in range(3):
        work, is_certain = _read_once(conn, database, thorough=thorough)
        if is_certain:
            break
    return work


def _read_once(conn: sqlite3.Connection, database: Database, *, thorough: bool) -> tuple[Work, bool]:
    """The facts, and whether they fit together: a worker may have retired between our look at its row and at its lock."""
    now = database.now_us()
    params = {"now": now, "quarantine": QUARANTINE_CRASHES, "limit": EXAMPLES}

    def read(name: str, **more: int) -> str:
        text: str = conn.execute(SQL[name], {**params, **more}).fetchone()[0]
        return text

    conn.execute("BEGIN")
    try:
        created, oldest = _created.decode(read("count_created", since=now - DAY_US))
        limit_s = None if thorough else PATIENCE_S
        work = Work(
            now=now,
            groups=_groups.decode(read("survey_workflows")),
            workers=tuple(reads.workers(conn)),
            held=_counts.decode(read("count_held")),
            quarantined=_sample.decode(read("sample_quarantined")),
            crashed=_sample.decode(read("sample_crashed", since=now - 7 * DAY_US)),
            diverged=_sample.decode(read("sample_diverged")),
            unwakeable=_sample.decode(read("sample_unwakeable")),
            created_last_day=created,
            oldest_created_at=oldest,
            size=_own_size(conn),
            payloads=within(conn, limit_s, lambda: _payloads.decode(read("largest_payloads"))),
        )
    finally:
        conn.execute("ROLLBACK")
    proofs: dict[str, bool] = {}
    for worker in work.workers:
        proof = None if worker.is_dead else is_held(lock_directory(database.path) / f"{worker.id}.lock")
        if proof is not None:
            proofs[worker.id] = proof
    free = {worker_id for worker_id, proof in proofs.items() if not proof}
    is_certain = not free or free <= {worker.id for worker in reads.workers(conn) if not worker.is_dead}
    return msgspec.structs.replace(work, proofs=proofs), is_certain


def within(conn: sqlite3.Connection, limit_s: float | None, look: Callable[[], T]) -> T | None:
    """What `look` reads, or None if it takes longer than `limit_s`."""
    if limit_s is None:
        return look()
    give_up_at = time.monotonic() + limit_s
    conn.set_progress_handler(lambda: time.monotonic() > give_up_at, _STEPS_PER_LOOK)
    try:
        return look()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
            return None
        raise
    finally:
        conn.set_progress_handler(None, 0)


def file_pages(conn: sqlite3.Connection) -> tuple[int, int]:
    """The bytes of the file as this connection sees it, and how many of them are free."""
    size, free, page = (_pragma(conn, name) for name in ("page_count", "freelist_count", "page_size"))
    return size * page, free * page


def _own_size(conn: sqlite3.Connection) -> int | None:
    """The bytes of Onward's tables; None where others share the file, since nothing tells them apart cheaply."""
    strangers = conn.execute(
        "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name NOT GLOB 'onward_*' AND name NOT GLOB 'sqlite_*' LIMIT 1"
    ).fetchone()
    size, free = file_pages(conn)
    return None if strangers is not None else size - free


def _pragma(conn: sqlite3.Connection, name: str) -> Any:
    return conn.execute(f"PRAGMA {name}").fetchone()[0]

"""Claiming due rows, loading histories, the next due time, and giving rows back.

A claim looks first without the write lock, so that idle polls cost nobody anything; the look under the lock decides.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

import msgspec

from onward._store.records import JOURNAL_FORMAT, Claimed, ClaimRequest, Loaded
from onward._store.sqlite.database import Database
from onward._store.statements import json_text, load_statements

SQL = load_statements("onward._store.sqlite", "claims")
_claims = msgspec.json.Decoder(list[Claimed])
_histories = msgspec.json.Decoder(list[Loaded])
_ids = msgspec.json.Decoder(list[str])
_numbers = msgspec.json.Decoder(list[int])


def claim(conn: sqlite3.Connection, database: Database, request: ClaimRequest) -> list[Claimed]:
    """Take up to `limit` rows; a look that finds none takes no lock."""
    params: dict[str, Any] = {
        "queue": request.queue,
        "types": json_text(request.types),
        "worker": request.worker,
        "version": request.version,
        "code_version": request.code_version,
        "format": int(request.version.partition("/")[0]),
        "alone": request.alone,
        "limit": 1 if request.alone else request.limit,
        "now": database.now_us(),
    }
    if request.only is not None:
        params["only"] = json_text(list(dict.fromkeys(request.only)))
        if conn.execute(SQL["select_only"], params).fetchone()[0] == "[]":
            return []
        priorities = [0]
    else:
        priorities = _numbers.decode(conn.execute(SQL["due_priorities"], params).fetchone()[0])
        if not priorities:
            return []

    def take(conn: sqlite3.Connection, now: int) -> list[Claimed]:
        params["now"] = now
        statement = SQL["select_due"] if request.only is None else SQL["select_only"]
        taken: list[Claimed] = []
        for priority in priorities:
            params["priority"] = priority
            rows = _claims.decode(conn.execute(statement, params).fetchone()[0])
            taken.extend(rows)
            params["limit"] -= len(rows)
            if params["limit"] <= 0:
                break
        if taken:
            conn.execute(SQL["claim_rows"], {**params, "ids": json_text([row.id for row in taken])})
        return taken

    return database.transaction(conn, "claim", take)


def load(conn: sqlite3.Connection, workflow_ids: Sequence[str]) -> list[Loaded]:
    """Histories, mail and retry states."""
    return _histories.decode(conn.execute(SQL["load_histories"], {"ids": json_text(workflow_ids)}).fetchone()[0])


def next_due(
    conn: sqlite3.Connection,
    database: Database,
    queues: Sequence[str],
    types: Sequence[str],
    code_version: str,
    only: Sequence[str] | None,
    *,
    alone: bool | None,
) -> int | None:
    """The earliest time at which a row is claimable."""
    params = {
        "queues": json_text(queues),
        "types": json_text(types),
        "code_version": code_version,
        "now": database.now_us(),
        "only": json_text(only),
        "alone": alone,
        "format": JOURNAL_FORMAT,
    }
    names = ("next_due", "next_held_back") if only is None else ("next_due_only",)
    found = [conn.execute(SQL[name], params).fetchone()[0] for name in names]
    return min((at for at in found if at is not None), default=None)


def reconcile(
    conn: sqlite3.Connection, database: Database, worker_id: str, held: Sequence[tuple[str, int]]
) -> list[str]:
    """Release what this worker has and does not hold; takes the lock only if there is something."""
    params = {"worker": worker_id, "held": json_text(held)}
    if conn.execute(SQL["not_held"], params).fetchone()[0] == "[]":
        return []

    def release(conn: sqlite3.Connection, now: int) -> list[str]:
        text: str = conn.execute(SQL["not_held"], params).fetchone()[0]
        conn.execute(SQL["give_back"], {"ids": text, "now": now, "crashes": 0})
        return _ids.decode(text)

    return database.transaction(conn, "reconcile", release)


def adopt_diverged(conn: sqlite3.Connection, database: Database, code_version: str) -> int:
    """Make rows due that other code versions, and never this one, could not replay."""
    look = {"code_version": code_version, "now": database.now_us()}
    if not conn.execute(SQL["is_any_diverged"], look).fetchone()[0]:
        return 0

    def adopt(conn: sqlite3.Connection, now: int) -> int:
        return conn.execute(SQL["adopt_diverged"], {"code_version": code_version, "now": now}).rowcount

    return database.transaction(conn, "adopt", adopt)

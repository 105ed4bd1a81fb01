"""Reads for people: one statement each, decoded from one JSON text. Never a lock, never a new file; the seed for exports only."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

import msgspec

from onward._store.records import Filter, JournalRow, WorkerInfo, WorkflowRow
from onward._store.sqlite.threads import JobThreads
from onward._store.statements import json_text, load_statements

# The last step is found in the journal (backwards by its primary key): the column lags behind it on purpose.
_STEP = (
    "coalesce((SELECT j.key FROM onward_journal AS j WHERE j.workflow_id = w.id AND j.kind = 'step' AND j.struck = 0 "
    "ORDER BY j.seq DESC LIMIT 1), w.step)"
)
_COLUMNS = ", ".join(f"'{name}', {_STEP if name == 'step' else 'w.' + name}" for name in WorkflowRow.__struct_fields__)
_TAGGED = (
    "(json_valid(w.tags) AND NOT EXISTS (SELECT 1 FROM json_each(:tags) AS t "
    "WHERE NOT EXISTS (SELECT 1 FROM json_each(w.tags) AS g "
    "WHERE g.key = json_extract(t.value, '$[0]') AND g.value = json_extract(t.value, '$[1]'))))"
)
SQL = {
    name: statement.replace("{workflow}", f"json_object({_COLUMNS})").replace("{tagged}", _TAGGED)
    for name, statement in load_statements("onward._store.sqlite", "reads").items()
}
_LAST = 2**63 - 1
_rows = msgspec.json.Decoder(list[WorkflowRow])
_journal = msgspec.json.Decoder(list[JournalRow])
_workers = msgspec.json.Decoder(list[WorkerInfo])


def get(conn: sqlite3.Connection, workflow_id: str) -> WorkflowRow | None:
    """One workflow, or None."""
    row = conn.execute(SQL["get_workflow"], {"id": workflow_id}).fetchone()
    return None if row is None else msgspec.json.decode(row[0], type=WorkflowRow)


def seed(conn: sqlite3.Connection, workflow_id: str) -> str | None:
    """Its seed, or None."""
    row = conn.execute(SQL["get_seed"], {"id": workflow_id}).fetchone()
    return None if row is None else str(row[0])


def outcomes(conn: sqlite3.Connection, workflow_ids: Sequence[str]) -> list[WorkflowRow]:
    """Those of these workflows that are final."""
    return _rows.decode(conn.execute(SQL["list_final"], {"ids": json_text(workflow_ids)}).fetchone()[0])


def list_page(conn: sqlite3.Connection, filter: Filter) -> list[WorkflowRow]:
    """A page, newest first."""
    before_at, before_id = filter.before or (_LAST, "")
    params: dict[str, Any] = {
        "before_at": before_at,
        "before_id": before_id,
        "created_after": -1 if filter.created_after is None else filter.created_after,
        "created_before": _LAST if filter.created_before is None else filter.created_before,
        "statuses": json_text(filter.status) if filter.status else None,
        "types": json_text(filter.types) if filter.types else None,
        "tags": json_text(filter.tags) if filter.tags else None,
        "parent_id": filter.parent_id,
        "limit": filter.limit,
    }
    name = "list_workflows" if filter.parent_id is None else "list_children_page"
    return _rows.decode(conn.execute(SQL[name], params).fetchone()[0])


def journal(conn: sqlite3.Connection, workflow_id: str) -> list[JournalRow]:
    """All entries, struck-out ones included."""
    return _journal.decode(conn.execute(SQL["read_journal"], {"id": workflow_id}).fetchone()[0])


def children(conn: sqlite3.Connection, workflow_id: str) -> list[WorkflowRow]:
    """Direct children, oldest first."""
    return _rows.decode(conn.execute(SQL["list_children"], {"id": workflow_id}).fetchone()[0])


def counts(conn: sqlite3.Connection) -> dict[str, int]:
    """Number of workflows by status."""
    return msgspec.json.decode(conn.execute(SQL["count_by_status"]).fetchone()[0], type=dict[str, int])


def workers(conn: sqlite3.Connection) -> list[WorkerInfo]:
    """Every worker row, newest first."""
    return _workers.decode(conn.execute(SQL["list_workers"]).fetchone()[0])


class SqliteReads:
    """See base.Reads: a part of `SqliteStore`."""

    _readers: JobThreads

    async def get(self, workflow_id: str) -> WorkflowRow | None:
        """One workflow, or None."""
        return await self._readers.call(lambda conn: get(conn, workflow_id))

    async def seed(self, workflow_id: str) -> str | None:
        """Its seed, or None."""
        return await self._readers.call(lambda conn: seed(conn, workflow_id))

    async def outcomes(self, workflow_ids: Sequence[str]) -> list[WorkflowRow]:
        """Those of these workflows that are final."""
        return await self._readers.call(lambda conn: outcomes(conn, workflow_ids))

    async def journal(self, workflow_id: str) -> list[JournalRow]:
        """All entries in seq order."""
        return await self._readers.call(lambda conn: journal(conn, workflow_id))

    async def children(self, workflow_id: str) -> list[WorkflowRow]:
        """Direct children, oldest first."""
        return await self._readers.call(lambda conn: children(conn, workflow_id))

    async def counts(self) -> dict[str, int]:
        """Number of workflows by status."""
        return await self._readers.call(counts)

    async def workers(self) -> list[WorkerInfo]:
        """Every worker row, newest first."""
        return await self._readers.call(workers)

    async def list(self, filter: Filter) -> list[WorkflowRow]:
        """A page, newest first. (Last in the class: below it, `list` means this method.)"""
        return await self._readers.call(lambda conn: list_page(conn, filter))

"""Reads for people: one statement each, decoded from one JSON text. Never a lock; the seed for exports only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from onward._store.postgres.statements import Value, as_json
from onward._store.records import Filter, JournalRow, WorkerInfo, WorkflowRow

if TYPE_CHECKING:
    from onward._store.postgres.database import Database
    from onward._store.postgres.pool import SessionPool
    from onward._store.postgres.session import Session

_LAST = 250_000_000_000_000_000
"""The year 9892: timestamptz ends, but later."""
_rows = msgspec.json.Decoder(list[WorkflowRow])
_row = msgspec.json.Decoder(WorkflowRow)
_journal = msgspec.json.Decoder(list[JournalRow])
_workers = msgspec.json.Decoder(list[WorkerInfo])
_counts = msgspec.json.Decoder(dict[str, int])


async def _ask(session: Session, database: Database, name: str, **values: Value) -> bytes | None:
    calls, place = database.whole([database.sql[name].bind(**values)])
    return (await session.run(calls))[place][0]


async def get(session: Session, database: Database, workflow_id: str) -> WorkflowRow | None:
    """One workflow, or None."""
    answer = await _ask(session, database, "get_workflow", id=workflow_id)
    return None if answer is None else _row.decode(answer)


async def seed(session: Session, database: Database, workflow_id: str) -> str | None:
    """Its seed, or None."""
    answer = await _ask(session, database, "get_seed", id=workflow_id)
    return None if answer is None else answer.decode()


async def outcomes(session: Session, database: Database, workflow_ids: Sequence[str]) -> list[WorkflowRow]:
    """Those of these workflows that are final."""
    return _rows.decode(await _ask(session, database, "list_final", ids=as_json(workflow_ids)) or b"[]")


async def list_page(session: Session, database: Database, filter: Filter) -> list[WorkflowRow]:
    """A page, newest first."""
    before_at, before_id = filter.before or (_LAST, "")
    values: dict[str, Value] = {
        "before_at": before_at,
        "before_id": before_id,
        "created_after": -1 if filter.created_after is None else filter.created_after,
        "created_before": _LAST if filter.created_before is None else filter.created_before,
        "statuses": as_json(filter.status) if filter.status else None,
        "types": as_json(filter.types) if filter.types else None,
        "tags": as_json(dict(filter.tags)) if filter.tags else None,
        "parent_id": filter.parent_id,
        "limit": filter.limit,
    }
    name = "list_workflows" if filter.parent_id is None else "list_children_page"
    return _rows.decode(await _ask(session, database, name, **values) or b"[]")


async def journal(session: Session, database: Database, workflow_id: str) -> list[JournalRow]:
    """All entries, struck-out ones included."""
    return _journal.decode(await _ask(session, database, "read_journal", id=workflow_id) or b"[]")


async def children(session: Session, database: Database, workflow_id: str) -> list[WorkflowRow]:
    """Direct children, oldest first."""
    return _rows.decode(await _ask(session, database, "list_children", id=workflow_id) or b"[]")


async def counts(session: Session, database: Database) -> dict[str, int]:
    """Number of workflows by status."""
    return _counts.decode(await _ask(session, database, "count_by_status") or b"{}")


async def workers(session: Session, database: Database) -> list[WorkerInfo]:
    """Every worker row, newest first."""
    return _workers.decode(await _ask(session, database, "list_workers") or b"[]")


class PostgresReads:
    """See base.Reads: a part of `PostgresStore`."""

    _database: Database
    _readers: SessionPool

    async def get(self, workflow_id: str) -> WorkflowRow | None:
        """One workflow, or None."""
        async with self._readers.session() as session:
            return await get(session, self._database, workflow_id)

    async def seed(self, workflow_id: str) -> str | None:
        """Its seed, or None."""
        async with self._readers.session() as session:
            return await seed(session, self._database, workflow_id)

    async def outcomes(self, workflow_ids: Sequence[str]) -> list[WorkflowRow]:
        """Those of these workflows that are final."""
        async with self._readers.session() as session:
            return await outcomes(session, self._database, workflow_ids)

    async def journal(self, workflow_id: str) -> list[JournalRow]:
        """All entries in seq order."""
        async with self._readers.session() as session:
            return await journal(session, self._database, workflow_id)

    async def children(self, workflow_id: str) -> list[WorkflowRow]:
        """Direct children, oldest first."""
        async with self._readers.session() as session:
            return await children(session, self._database, workflow_id)

    async def counts(self) -> dict[str, int]:
        """Number of workflows by status."""
        async with self._readers.session() as session:
            return await counts(session, self._database)

    async def workers(self) -> list[WorkerInfo]:
        """Every worker row, newest first."""
        async with self._readers.session() as session:
            return await workers(session, self._database)

    async def list(self, filter: Filter) -> list[WorkflowRow]:
        """A page, newest first. (Last in the class: below it, `list` means this method.)"""
        async with self._readers.session() as session:
            return await list_page(session, self._database, filter)

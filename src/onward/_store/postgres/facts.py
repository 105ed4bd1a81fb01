"""Reads the `Work` of a diagnosis from a schema that is known to be usable: all of it from one snapshot, without a lock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg import IsolationLevel, errors

from onward._store.diagnosis import EXAMPLES, Group, Payload, Sample, Work
from onward._store.postgres.leases import LOCK_CLASS
from onward._store.postgres.objects import names_of
from onward._store.postgres.statements import as_json
from onward._store.postgres.upkeep import Connection, ask, ask_for
from onward._store.records import WorkerInfo
from onward._store.verdicts import QUARANTINE_CRASHES

if TYPE_CHECKING:
    from onward._store.postgres.database import Database

PATIENCE_MS = 5000
"""How long a look may take that reads every value, unless it is to be thorough."""


async def read_work(conn: Connection, database: Database, *, thorough: bool) -> Work:
    """The facts. Raises psycopg.Error."""
    await conn.set_isolation_level(IsolationLevel.REPEATABLE_READ)
    await conn.set_read_only(True)
    try:
        async with conn.transaction():
            return await _read(conn, database, thorough=thorough)
    finally:
        await conn.set_isolation_level(None)
        await conn.set_read_only(None)


async def _read(conn: Connection, database: Database, *, thorough: bool) -> Work:
    async def read(name: str, type: Any, **values: int) -> Any:
        return await ask_for(conn, database, name, type, **values)

    await conn.execute("SET LOCAL statement_timeout = 0")
    clock = await ask(conn, database, "read_clock")
    samples = {
        name: await read(f"sample_{name}", Sample, limit=EXAMPLES, **more)
        for name, more in (
            ("quarantined", {"quarantine": QUARANTINE_CRASHES}),
            ("crashed", {}),
            ("diverged", {}),
            ("unwakeable", {}),
        )
    }
    created, oldest = await read("count_created", tuple[int, int | None])
    size = await ask(
        conn, database, "measure_tables", schema=database.address.schema, tables=as_json(names_of("table"))
    )
    return Work(
        now=int(clock or 0),
        groups=await read("survey_workflows", tuple[Group, ...], quarantine=QUARANTINE_CRASHES),
        workers=await read("list_workers", tuple[WorkerInfo, ...]),
        proofs=await _proofs(conn, database),
        held=await read("count_held", dict[str, int]),
        created_last_day=created,
        oldest_created_at=oldest,
        size=int(size or 0),
        payloads=await _payloads(conn, database, thorough=thorough),
        **samples,
    )


async def _proofs(conn: Connection, database: Database) -> dict[str, bool]:
    """Whose lock is held; a lock that is free says something only where nothing else could have freed it."""
    found = await ask_for(conn, database, "look_at_proofs", list[tuple[str, bool, bool]], **{"class": LOCK_CLASS})
    return {worker_id: is_held for worker_id, is_held, may_judge in found if is_held or may_judge}


async def _payloads(conn: Connection, database: Database, *, thorough: bool) -> tuple[Payload, ...] | None:
    try:
        async with conn.transaction():  # a savepoint
            await conn.execute(f"SET LOCAL statement_timeout = {0 if thorough else PATIENCE_MS}")
            found: tuple[Payload, ...] = await ask_for(
                conn, database, "largest_payloads", tuple[Payload, ...], limit=EXAMPLES
            )
            await conn.execute("SET LOCAL statement_timeout = 0")
            return found
    except errors.QueryCanceled:
        return None

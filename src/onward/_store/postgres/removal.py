"""Removes Onward from a database: its tables, view and functions in one transaction, and the schema if nothing else is in it.

What is Onward's is what its own migrations make, by name and kind. Nothing is removed with CASCADE: where something of the
application's depends on it (a view, a foreign key, a trigger), nothing is removed at all. Roles stay, they belong to the server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
from psycopg import errors, sql

from onward._store.diagnosis import Removal
from onward._store.postgres.faults import classify
from onward._store.postgres.migrations import applied_migrations, known_migrations, lock_migrations
from onward._store.postgres.objects import own_objects
from onward._store.postgres.upkeep import Connection, ask_for, connection, is_no_database
from onward._store.records import WorkerInfo
from onward._version import __version__
from onward.errors import SchemaError

if TYPE_CHECKING:
    from onward._store.postgres.database import Database


async def drop_schema(database: Database, *, force: bool) -> Removal:
    """Remove what is Onward's, unless workers are alive. Raises SchemaError for a missing database or an unknown schema."""
    try:
        async with connection(database) as conn, conn.transaction():
            await lock_migrations(conn, database)
            newest = len(known_migrations())
            unknown = [one for one in await applied_migrations(conn, database) if one.number > newest]
            if unknown:
                raise SchemaError(
                    f"{database.name} has schema {unknown[-1].number} ({unknown[-1].name}), which this onward {__version__} does "
                    "not know; drop it with the version that made it"
                )
            return await _drop(conn, database, force=force)
    except errors.DependentObjectsStillExist as error:
        detail = " ".join((error.diag.message_detail or "").split())
        raise SchemaError(
            f"nothing was removed: something else depends on Onward's tables in {database.name} ({detail}); remove that first"
        ) from error
    except psycopg.Error as error:
        if is_no_database(error):
            raise SchemaError(f"there is no database {database.name}; check the URL") from error
        raise classify(error, database=database.name, committing=True) from error


async def _drop(conn: Connection, database: Database, *, force: bool) -> Removal:
    schema = database.address.schema
    there = {
        (kind, name)
        for kind, name, _ in await ask_for(
            conn, database, "look_at_objects", list[tuple[str, str, bool]], schema=schema
        )
    }
    own = list(dict.fromkeys((one.kind, one.name) for one in own_objects() if (one.kind, one.name) in there))
    if not force and ("table", "workers") in own:
        await conn.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(_placed(schema, "workers")))
        workers = await ask_for(conn, database, "list_workers", list[WorkerInfo])
        now: int = await ask_for(conn, database, "read_clock", int)
        alive = tuple(worker for worker in workers if not worker.is_dead and worker.expires_at > now)
        if alive:
            return Removal(alive=alive)
    for kind in ("view", "table", "function"):
        for name in [name for one, name in own if one == kind]:
            drop = sql.SQL("DROP {} {}").format(sql.SQL(kind.upper()), _placed(schema, name))
            await conn.execute(drop)
    removed = sorted(name for kind, name in own if kind in ("table", "view"))
    if schema != "public":
        await _drop_empty_schema(conn, schema)
    return Removal(removed=tuple(removed))


async def _drop_empty_schema(conn: Connection, schema: str) -> None:
    """The schema goes where Onward was all that was in it; never one that others made and may not be ours to drop."""
    try:
        async with conn.transaction():
            await conn.execute(sql.SQL("DROP SCHEMA IF EXISTS {} RESTRICT").format(sql.Identifier(schema)))
    except (errors.DependentObjectsStillExist, errors.InsufficientPrivilege):
        return


def _placed(schema: str, name: str) -> sql.Identifier:
    return sql.Identifier(schema, name)

"""How operators' duties (diagnosis, removal) reach the server: by a plain connection of their own, that is not pinned.

Nothing is prepared and nothing outlives a transaction, so that it works behind every pooler. Workers' sessions are session.py.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import psycopg
from psycopg import errors

from onward._store.postgres.statements import Value

if TYPE_CHECKING:
    from onward._store.postgres.database import Database

Connection: TypeAlias = "psycopg.AsyncConnection[Any]"


@contextlib.asynccontextmanager
async def connection(database: Database) -> AsyncIterator[Connection]:
    """A connection for the length of a block; raises psycopg.Error."""
    conn = await database.connect()
    try:
        yield conn
    finally:
        await conn.close()


def is_no_database(error: psycopg.Error) -> bool:
    """Whether there is no such database. libpq tells of a failed connection in words only; the server's language is English
    unless somebody has set lc_messages."""
    return isinstance(error, errors.InvalidCatalogName) or (
        error.sqlstate is None and re.search(r'database "[^"]*" does not exist', str(error)) is not None
    )


async def ask(conn: Connection, database: Database, name: str, **values: Value) -> bytes | None:
    """Run a named statement; the first value of its first row as text. Raises psycopg.Error."""
    call = database.sql[name].bind(**values)
    parameters = [None if value is None else value.decode() for value in call.values]
    async with psycopg.AsyncRawCursor(conn) as cursor:
        await cursor.execute(call.statement.sql().encode(), parameters)
        row = await cursor.fetchone() if cursor.description else None
    if row is None or row[0] is None:
        return None
    return row[0].encode() if isinstance(row[0], str) else msgspec.json.encode(row[0])


async def ask_for(conn: Connection, database: Database, name: str, type: Any, **values: Value) -> Any:
    """The same, decoded from JSON into a type."""
    answer = await ask(conn, database, name, **values)
    return None if answer is None else msgspec.json.decode(answer, type=type)

"""Checks and migrates the schema. All pending migrations and their records commit together, in one transaction under an
advisory lock of that transaction: two processes at once apply each once, and one that is killed half-way has done nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from onward._store.postgres.faults import classify
from onward._store.postgres.statements import PACKAGE, place
from onward._store.schema import AppliedMigration, Migration, load_migrations, pending_migrations
from onward._version import __version__
from onward.errors import ConfigurationError, SchemaError

if TYPE_CHECKING:
    from onward._store.postgres.database import Database

LOCK_CLASS = 1_330_534_145
"""Of the advisory lock under which one process at a time migrates; the other key is made of the schema's name."""
_TABLE = """
CREATE TABLE IF NOT EXISTS {schema}.migrations (
    number         integer PRIMARY KEY,
    name           text NOT NULL,
    oldest_library text NOT NULL,
    checksum       text NOT NULL,
    applied_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    applied_by     text NOT NULL
)
"""
_SECURE = "ALTER TABLE {schema}.migrations ENABLE ROW LEVEL SECURITY"
_RECORD = (
    "INSERT INTO {schema}.migrations (number, name, oldest_library, checksum, applied_by) VALUES (%s, %s, %s, %s, %s)"
)
_OWNER = """
SELECT o.rolname, o.rolname <> current_user AND o.rolname !~ '^pg_' AND pg_has_role(current_user, o.oid, 'MEMBER')
FROM pg_namespace AS n JOIN pg_roles AS o ON o.oid = n.nspowner WHERE n.nspname = %s
"""
OLDEST_SERVER = 140000


def known_migrations() -> list[Migration]:
    """The migrations of this library."""
    return load_migrations(PACKAGE)


async def ensure_schema(database: Database, *, migrate: bool) -> None:
    """Bring the schema up to date, or raise SchemaError if that is not allowed or not possible. Raises StoreError."""
    try:
        conn = await database.connect()
        try:
            _check_server(conn, database)
            known = known_migrations()
            pending = pending_migrations(known, await applied_migrations(conn, database), database=database.name)
            if not pending:
                return
            if not migrate:
                raise behind(known, pending, database)
            await _migrate(conn, database, known)
        finally:
            await conn.close()
    except psycopg.Error as error:
        raise classify(error, database=database.name) from error


def behind(known: list[Migration], pending: list[Migration], database: Database) -> SchemaError:
    """The error for a schema that is missing, or older than this library."""
    first = "has no Onward schema" if len(pending) == len(known) else f"lacks migration {pending[0].number}"
    return SchemaError(f"{database.name} {first}; run: onward migrate --url {database.name}")


def _check_server(conn: psycopg.AsyncConnection[Any], database: Database) -> None:
    version = conn.info.server_version
    if version < OLDEST_SERVER:
        raise ConfigurationError(
            f"{database.name} is PostgreSQL {version // 10000}, but Onward needs {OLDEST_SERVER // 10000} or newer"
        )


async def _migrate(conn: psycopg.AsyncConnection[Any], database: Database, known: list[Migration]) -> None:
    schema = database.address.schema
    async with conn.transaction():
        await lock_migrations(conn, database)
        await become_owner(conn, schema)
        # Not CREATE SCHEMA IF NOT EXISTS: that needs the right to create schemas even where it exists.
        if not await _exists(conn, "SELECT 1 FROM pg_namespace WHERE nspname = %s", schema):
            await conn.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
        if not await _has_table(conn, database):
            await conn.execute(_own(_TABLE, database))
            await conn.execute(_own(_SECURE, database))
        for migration in pending_migrations(known, await applied_migrations(conn, database), database=database.name):
            await conn.execute(place(migration.sql, database.address.quoted_schema).encode())
            await conn.execute(
                _own(_RECORD, database),
                (migration.number, migration.name, migration.oldest_library, migration.checksum, __version__),
            )


async def lock_migrations(conn: psycopg.AsyncConnection[Any], database: Database) -> None:
    """In a transaction: be the only one that migrates or drops this schema; waits for another."""
    await conn.execute("SET LOCAL lock_timeout = 0")
    await conn.execute("SET LOCAL statement_timeout = 0")
    await conn.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", (LOCK_CLASS, database.address.schema))


async def become_owner(conn: psycopg.AsyncConnection[Any], schema: str) -> None:
    """What is made belongs to the owner of the schema (see roles.py), whichever of its members runs the migration."""
    row = await (await conn.execute(_OWNER, (schema,))).fetchone()
    if row is not None and row[1]:
        await conn.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(row[0])))


def schema_sql(database: Database) -> str:
    """The statements that make the schema in an empty database, its record in the migrations table included."""
    quoted = database.address.quoted_schema
    parts = [
        f"CREATE SCHEMA {quoted};",
        f"{_TABLE.format(schema=quoted).strip()};",
        f"{_SECURE.format(schema=quoted)};",
    ]
    for one in known_migrations():
        values = ", ".join(f"'{value}'" for value in (one.name, one.oldest_library, one.checksum, __version__))
        parts.append(place(one.sql, quoted).strip())
        parts.append(
            f"INSERT INTO {quoted}.migrations (number, name, oldest_library, checksum, applied_by)\n"
            f"VALUES ({one.number}, {values});"
        )
    return "BEGIN;\n\n" + "\n\n".join(parts) + "\n\nCOMMIT;\n"


async def applied_migrations(conn: psycopg.AsyncConnection[Any], database: Database) -> list[AppliedMigration]:
    """What the schema's migrations table says; nothing where there is none."""
    if not await _has_table(conn, database):
        return []
    rows = await conn.execute(
        _own("SELECT number, name, oldest_library, checksum FROM {schema}.migrations ORDER BY number", database)
    )
    return [AppliedMigration(*row) for row in await rows.fetchall()]


async def _has_table(conn: psycopg.AsyncConnection[Any], database: Database) -> bool:
    return await _exists(
        conn,
        "SELECT 1 FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace "
        "WHERE n.nspname = %s AND c.relname = 'migrations'",
        database.address.schema,
    )


async def _exists(conn: psycopg.AsyncConnection[Any], query: str, *values: str) -> bool:
    return await (await conn.execute(query.encode(), values)).fetchone() is not None


def _own(text: str, database: Database) -> sql.Composed:
    return sql.SQL(text).format(schema=sql.Identifier(database.address.schema))

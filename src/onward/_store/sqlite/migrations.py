"""Checks and migrates the schema of a file. Every migration and its record commit together, under the write lock, so that
two processes that open a new file at once apply each migration once.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence

from onward._store.schema import AppliedMigration, Migration, load_migrations, pending_migrations
from onward._store.sqlite.database import Database
from onward._version import __version__
from onward.errors import SchemaError

_TABLE = """\
CREATE TABLE IF NOT EXISTS onward_migrations (
    number         INTEGER PRIMARY KEY,
    name           TEXT NOT NULL,
    oldest_library TEXT NOT NULL,
    checksum       TEXT NOT NULL,
    applied_at     INTEGER NOT NULL,
    applied_by     TEXT NOT NULL
) STRICT"""


def known_migrations() -> list[Migration]:
    """The migrations of this library."""
    return load_migrations("onward._store.sqlite")


def ensure_schema(conn: sqlite3.Connection, database: Database, *, migrate: bool) -> None:
    """Bring the schema up to date, or raise SchemaError if that is not allowed or not possible."""
    known = known_migrations()
    pending = pending_migrations(known, database.patiently(lambda: applied_migrations(conn)), database=database.name)
    if not pending:
        return
    if not migrate:
        raise _behind(known, pending, database)

    def apply(conn: sqlite3.Connection, now: int) -> None:
        conn.execute(_TABLE)
        for migration in pending_migrations(known, applied_migrations(conn), database=database.name):
            for statement in split_statements(migration.sql):
                conn.execute(statement)
            conn.execute(
                "INSERT INTO onward_migrations (number, name, oldest_library, checksum, applied_at, applied_by) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (migration.number, migration.name, migration.oldest_library, migration.checksum, now, __version__),
            )

    database.transaction(conn, "migrate", apply)


def own_objects() -> dict[str, tuple[str, str]]:
    """Everything that the migrations of this library make, by name: its type (table, index, view, trigger) and statement."""
    with contextlib.closing(sqlite3.connect(":memory:")) as conn:
        conn.execute(_TABLE)
        for migration in known_migrations():
            for statement in split_statements(migration.sql):
                conn.execute(statement)
        rows = conn.execute("SELECT name, type, sql FROM sqlite_schema WHERE name GLOB 'onward_*' AND sql IS NOT NULL")
        return {name: (kind, sql) for name, kind, sql in rows}


def schema_sql() -> str:
    """The statements that make the schema in a file that has none, for `sqlite3 FILE`."""
    parts = ["BEGIN IMMEDIATE;", f"{_TABLE};"]
    for migration in known_migrations():
        values = (migration.number, migration.name, migration.oldest_library, migration.checksum)
        literals = ", ".join(str(value) if isinstance(value, int) else f"'{value}'" for value in values)
        parts.append(migration.sql.strip())
        parts.append(
            "INSERT INTO onward_migrations (number, name, oldest_library, checksum, applied_at, applied_by)\n"
            f"VALUES ({literals}, CAST(strftime('%s', 'now') AS INTEGER) * 1000000, '{__version__}');"
        )
    return "\n\n".join([*parts, "COMMIT;"]) + "\n"


def applied_migrations(conn: sqlite3.Connection) -> list[AppliedMigration]:
    """What the file's migrations table says; nothing where there is none."""
    found = conn.execute("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'onward_migrations'").fetchone()
    if found is None:
        return []
    rows = conn.execute("SELECT number, name, oldest_library, checksum FROM onward_migrations ORDER BY number")
    return [AppliedMigration(*row) for row in rows]


def check_applied(known: Sequence[Migration], applied: Sequence[AppliedMigration], database: Database) -> None:
    """Raise SchemaError unless all known migrations are applied and this library may use the schema."""
    pending = pending_migrations(known, applied, database=database.name)
    if pending:
        raise _behind(known, pending, database)


def _behind(known: Sequence[Migration], pending: Sequence[Migration], database: Database) -> SchemaError:
    first = "has no Onward schema" if len(pending) == len(known) else f"lacks migration {pending[0].number}"
    return SchemaError(f"{database.name} {first}; run: onward migrate --url {url_of(database)}")


def check_exists(database: Database) -> None:
    """Raise SchemaError if there is no file."""
    if not database.path.exists():
        raise SchemaError(
            f"there is no database {database.name}; check the URL and the working directory, or make it with: "
            f"onward migrate --url {url_of(database)}"
        )


def url_of(database: Database) -> str:
    """The absolute URL of the file, as people may paste it."""
    return f"sqlite:///{database.path}" if database.name.startswith("/") else f"sqlite:///{database.path.as_posix()}"


def split_statements(sql: str) -> list[str]:
    """The statements of a file one by one: `executescript` would commit before the first."""
    statements: list[str] = []
    current = ""
    for line in sql.splitlines(keepends=True):
        current += line
        if line.rstrip().endswith(";") and sqlite3.complete_statement(current):
            statements.append(current)
            current = ""
    if any(line.strip() and not line.lstrip().startswith("--") for line in current.splitlines()):
        raise ValueError(f"a migration ends in an unfinished statement: {current.strip()[:60]!r}")
    return statements

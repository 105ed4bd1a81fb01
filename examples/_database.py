"""The examples' database: a new SQLite file, or a new schema where ONWARD_DATABASE_URL names a PostgreSQL server.

`fresh` makes it, and tells all processes by that variable. The schema is dropped at the end, unless KEEP is in the environment.
"""

import atexit
import contextlib
import os
import re
import secrets
import shlex
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

NAME = "ONWARD_DATABASE_URL"
KEEP = bool(os.environ.get("KEEP"))
Database = Any  # a connection of sqlite3 or psycopg


def fresh(name: str) -> str:
    """Choose a database that does not exist yet, and tell all processes; gives its URL."""
    base, _, query = os.environ.get(NAME, "").partition("?")
    if not base.startswith(("postgresql://", "postgres://")):
        os.environ[NAME] = f"sqlite:///{tempfile.mkdtemp(prefix=f'onward-{name}-')}/{name}.db"
        return os.environ[NAME]
    schema = f"onward_demo_{name}_{secrets.token_hex(3)}"
    options = dict(parse_qsl(query)) | {"schema": schema}
    options["options"] = f"{options.get('options', '')} -csearch_path={schema}".strip()  # for the shop's tables
    os.environ[NAME] = f"{base}?{urlencode(options, quote_via=quote)}"
    _execute(f"CREATE SCHEMA {schema}")
    if not KEEP:
        atexit.register(_execute, f"DROP SCHEMA IF EXISTS {schema} CASCADE")
    return os.environ[NAME]


def shown() -> str:
    """The URL for people: without a password, or the search path."""
    base, _, query = re.sub(r"(//[^:@/]*):[^@/]*@", r"\1@", os.environ[NAME]).partition("?")
    options = [option for option in parse_qsl(query) if option[0] not in ("password", "options")]
    return f"{base}?{urlencode(options, safe='/')}".rstrip("?")


def look(workflow: str) -> str:
    """What an example says at its end."""
    schema = re.search(r"schema=(\w+)", os.environ[NAME])
    if schema and not KEEP:
        return f"Its schema {schema[1]} is dropped now (KEEP=1 in the environment keeps it)."
    return f"Look at it: onward show {workflow} --url {shlex.quote(shown())}"


@contextlib.contextmanager
def transaction() -> Iterator[Database]:
    """A connection whose transaction is committed at the end, or rolled back after an error."""
    base, _, query = os.environ[NAME].partition("?")
    if base.startswith("sqlite:///"):
        with contextlib.closing(sqlite3.connect(base.removeprefix("sqlite:///"))) as database, database:
            yield database
        return
    options = [(name, value) for name, value in parse_qsl(query) if name not in ("schema", "poll_only")]  # Onward's
    try:
        import psycopg
    except ImportError:
        sys.exit('PostgreSQL needs a driver: pip install "onward[postgres]"')
    with psycopg.connect(f"{base}?{urlencode(options, quote_via=quote)}") as database:
        yield database


def insert(database: Database, table: str, *values: object) -> None:
    """Insert a row, unless its key is there already. (The two drivers mark values differently: with ? and with %s.)"""
    marks = ", ".join(["?" if isinstance(database, sqlite3.Connection) else "%s"] * len(values))
    database.execute(f"INSERT INTO {table} VALUES ({marks}) ON CONFLICT DO NOTHING", values)


def _execute(statement: str) -> None:
    with transaction() as database:
        database.execute(statement)

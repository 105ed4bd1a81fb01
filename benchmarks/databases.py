"""The databases that the benchmarks run on: made fresh, and read with plain SQL beside Onward.

A URL of a file (`sqlite:///…`) or of a PostgreSQL database (`postgresql://…`, whose last part is dropped and made anew).
Instants come back as seconds since 1970, whatever the database stores.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit


class Database:
    """One database to measure on.

    Args:
        url: as Onward takes it.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.is_postgres = url.startswith("postgres")
        self.workflows = "onward.workflows" if self.is_postgres else "onward_workflows"
        self.journal = "onward.journal" if self.is_postgres else "onward_journal"

    @property
    def path(self) -> Path:
        """The file of an SQLite URL."""
        return Path(self.url.removeprefix("sqlite:///"))

    def fresh(self) -> None:
        """Remove what is there; a PostgreSQL database is made again, empty."""
        if not self.is_postgres:
            for suffix in ("", "-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            return
        parts = urlsplit(self.url)
        name = parts.path.lstrip("/")
        with self._postgres(urlunsplit(parts._replace(path="/postgres"))) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
            connection.execute(f'CREATE DATABASE "{name}"')
            connection.execute("CHECKPOINT")

    def row(self, sql: str) -> tuple[Any, ...]:
        """The first row of a query."""
        with self.connected() as connection:
            found: tuple[Any, ...] = connection.execute(sql).fetchone()
            return found

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        with self.connected() as connection:
            found: list[tuple[Any, ...]] = connection.execute(sql).fetchall()
            return found

    def count(self, condition: str) -> int:
        """How many workflows fulfil a condition."""
        return int(self.row(f"SELECT count(*) FROM {self.workflows} WHERE {condition}")[0])

    def seconds(self, instant: str) -> str:
        """SQL for a column or expression of instants, as seconds."""
        return f"extract(epoch FROM {instant})::float8" if self.is_postgres else f"({instant}) / 1e6"

    @contextlib.contextmanager
    def connected(self) -> Iterator[Any]:
        """A plain connection of its own, in autocommit mode."""
        if self.is_postgres:
            with self._postgres(self.url) as connection:
                yield connection
            return
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None, timeout=30)) as connection:
            yield connection

    @contextlib.contextmanager
    def _postgres(self, url: str) -> Iterator[Any]:
        import psycopg  # measuring SQLite needs no driver

        with psycopg.connect(without_own_options(url), autocommit=True) as connection:
            yield connection


def without_own_options(url: str) -> str:
    """A PostgreSQL URL as drivers take it, without what only Onward understands."""
    parts = urlsplit(url)
    options = [(name, value) for name, value in parse_qsl(parts.query) if name not in ("schema", "poll_only")]
    return urlunsplit(parts._replace(query=urlencode(options, quote_via=quote)))


def on_server(server_url: str, name: str) -> str:
    """The URL of the database of that name on a server."""
    return urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))

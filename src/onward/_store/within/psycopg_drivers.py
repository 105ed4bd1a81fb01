"""psycopg 3: its connections, blocking and async, also below SQLAlchemy and Django, and those of psycopg_pool.

Ours are plain cursors on the caller's connection: its cursor class and row factory are the application's own.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg import pq
from psycopg.rows import tuple_row

from onward._store.scripts import Rows
from onward._store.within.base import AsyncCaller, BlockingCaller
from onward.errors import WrongConnection

CURE = "make the call inside `with connection.transaction():`, or connect without autocommit=True"
_NUMBER = re.compile(r"\$(\d+)")
_OPEN = (pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR)


class Psycopg(BlockingCaller):
    """`psycopg.Connection`."""

    title = "a psycopg.Connection"
    database = "postgresql"
    cure = CURE

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection

    def has_transaction(self) -> bool:
        """As Caller."""
        return self.connection.info.transaction_status in _OPEN

    def spelled(self, sql: str, parameters: Mapping[str, object]) -> tuple[str, Any]:
        """As Caller."""
        return _by_name(sql, tuple(parameters)), dict(parameters)

    def execute(self, sql: str, parameters: Mapping[str, object]) -> Rows:
        """As BlockingCaller."""
        _check(self.connection, self.title)
        text, values = self.spelled(sql, parameters)
        with psycopg.Cursor(self.connection, row_factory=tuple_row) as cursor:
            cursor.execute(text.encode(), values)
            return cursor.fetchall() if cursor.description else ()


class AsyncPsycopg(AsyncCaller):
    """`psycopg.AsyncConnection`."""

    title = "a psycopg.AsyncConnection"
    database = "postgresql"
    cure = CURE.replace("with", "async with", 1)

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self.connection = connection

    def has_transaction(self) -> bool:
        """As Caller."""
        return self.connection.info.transaction_status in _OPEN

    def spelled(self, sql: str, parameters: Mapping[str, object]) -> tuple[str, Any]:
        """As Caller."""
        return _by_name(sql, tuple(parameters)), dict(parameters)

    async def execute(self, sql: str, parameters: Mapping[str, object]) -> Rows:
        """As AsyncCaller."""
        _check(self.connection, self.title)
        text, values = self.spelled(sql, parameters)
        async with psycopg.AsyncCursor(self.connection, row_factory=tuple_row) as cursor:
            await cursor.execute(text.encode(), values)
            return await cursor.fetchall() if cursor.description else ()


@functools.cache
def _by_name(sql: str, names: tuple[str, ...]) -> str:
    """`$1` as `%(name)s`."""
    return _NUMBER.sub(lambda found: f"%({names[int(found[1]) - 1]})s", sql.replace("%", "%%"))


def _check(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], title: str) -> None:
    if connection.closed:
        raise WrongConnection(f"tx= is {title} that cannot be used here: it is closed")
    if connection.pgconn.pipeline_status != pq.PipelineStatus.OFF:
        raise WrongConnection(
            f"tx= is {title} in pipeline mode, where a refusal cannot be undone; make the call outside"
        )

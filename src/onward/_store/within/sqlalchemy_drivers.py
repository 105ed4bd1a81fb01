"""SQLAlchemy 2: connections and sessions, blocking and async.

Statements go through SQLAlchemy, so that it knows of the transaction that they open; what the database and its state are, is
asked of the driver's connection below.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from onward._store.scripts import Rows
from onward._store.within.base import AsyncCaller, BlockingCaller, Caller

CURE = 'SQLAlchemy opens one by itself unless isolation_level="AUTOCOMMIT" is set: leave that out, or use another connection'


class SqlAlchemy(BlockingCaller):
    """`sqlalchemy.Connection`; `driver` is the adapter of the driver's connection below it."""

    cure = CURE

    def __init__(self, connection: Any, driver: Caller, title: str) -> None:
        self._connection = connection
        self._driver = driver
        self.title = title
        self.database = driver.database
        self.connection = driver.connection

    def has_transaction(self) -> bool:
        """As Caller."""
        return self._driver.has_transaction()

    def execute(self, sql: str, parameters: Mapping[str, object]) -> Rows:
        """As BlockingCaller."""
        with _driver_errors():
            return _rows(self._connection.exec_driver_sql(*self._driver.spelled(sql, parameters)))


class AsyncSqlAlchemy(AsyncCaller):
    """`sqlalchemy.ext.asyncio.AsyncConnection`; `driver` as above."""

    cure = CURE

    def __init__(self, connection: Any, driver: Caller, title: str) -> None:
        self._connection = connection
        self._driver = driver
        self.title = title
        self.database = driver.database
        self.connection = driver.connection

    def has_transaction(self) -> bool:
        """As Caller."""
        return self._driver.has_transaction()

    async def execute(self, sql: str, parameters: Mapping[str, object]) -> Rows:
        """As AsyncCaller."""
        with _driver_errors():
            return _rows(await self._connection.exec_driver_sql(*self._driver.spelled(sql, parameters)))


def driver_connection(connection: Any) -> Any:
    """The driver's connection below a `sqlalchemy.Connection`."""
    return connection.connection.driver_connection


def _rows(result: Any) -> Rows:
    return list(result.fetchall()) if result.returns_rows else ()


@contextlib.contextmanager
def _driver_errors() -> Iterator[None]:
    """Raise the driver's error instead of SQLAlchemy's around it, and around that again where it adapts an async driver."""
    try:
        yield
    except Exception as error:
        original = getattr(error, "orig", None)
        if not isinstance(original, Exception):
            raise
        if type(original).__qualname__.startswith("AsyncAdapt_") and isinstance(original.__cause__, Exception):
            original = original.__cause__
        raise original from error

"""SQLite's drivers: `sqlite3` and aiosqlite."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any

from onward._store.scripts import Rows
from onward._store.within.base import AsyncCaller, BlockingCaller
from onward.errors import WrongConnection

CURE = "run BEGIN IMMEDIATE on it first, or leave isolation_level and autocommit as sqlite3.connect() sets them"


class Sqlite3(BlockingCaller):
    """`sqlite3.Connection`. Its rows and cursors may be of the user's classes: ours are plain."""

    title = "a sqlite3.Connection"
    database = "sqlite"
    cure = CURE

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def has_transaction(self) -> bool:
        """As Caller."""
        return bool(self.connection.in_transaction)

    def execute(self, sql: str, parameters: Mapping[str, object]) -> Rows:
        """As BlockingCaller."""
        return sqlite3.Cursor(self.connection).execute(sql, dict(parameters)).fetchall()


class Aiosqlite(AsyncCaller):
    """`aiosqlite.Connection`."""

    title = "an aiosqlite.Connection"
    database = "sqlite"
    cure = CURE

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self._cursor: Any = None

    def has_transaction(self) -> bool:
        """As Caller."""
        return bool(self.connection.in_transaction)

    async def execute(self, sql: str, parameters: Mapping[str, object]) -> Rows:
        """As AsyncCaller. One cursor for all: each call of it is a trip to aiosqlite's thread."""
        if self._cursor is None:
            try:
                self._cursor = await self.connection.cursor()
            except ValueError as error:  # its way to say that it is closed, or was never opened
                raise WrongConnection(f"tx= is {self.title} that cannot be used here: {error}") from error
            self._cursor.row_factory = None
        await self._cursor.execute(sql, dict(parameters))
        return list(await self._cursor.fetchall()) if self._cursor.description else ()

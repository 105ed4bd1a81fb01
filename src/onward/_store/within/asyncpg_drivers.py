"""asyncpg: its connections, those of its pools too. It is not imported: the connection has all that is needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onward._store.scripts import Rows
from onward._store.within.base import AsyncCaller
from onward.errors import WrongConnection


class Asyncpg(AsyncCaller):
    """`asyncpg.Connection`, or what a pool gives out for it. It takes parameters by number, as PostgreSQL itself."""

    title = "an asyncpg.Connection"
    database = "postgresql"
    cure = "make the call inside `async with connection.transaction():`"

    def __init__(self, connection: Any) -> None:
        self._given = connection
        self.connection = getattr(
            connection, "_con", connection
        )  # what a pool gives out is around the connection itself
        if self.connection is None:
            raise WrongConnection(f"tx= is {self.title} that cannot be used here: it was released to its pool")

    def has_transaction(self) -> bool:
        """As Caller."""
        return bool(self._given.is_in_transaction())

    def spelled(self, sql: str, parameters: Mapping[str, object]) -> tuple[str, Any]:
        """As Caller."""
        return sql, tuple(parameters.values())

    async def execute(self, sql: str, parameters: Mapping[str, object]) -> Rows:
        """As AsyncCaller."""
        rows: Rows = await self._given.fetch(sql, *parameters.values())
        return rows

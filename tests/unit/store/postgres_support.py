"""Two-session tests on PostgreSQL: a hand that holds one of the store's own transactions open, and ways to wait for a store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import psycopg

from onward._store.base import Store
from onward._store.operations import BUSY, Op, Outcome
from onward._store.postgres.address import parse_address
from onward._store.postgres.database import Database
from onward._store.postgres.statements import Value, as_json
from onward._store.postgres.store import PostgresStore
from tests.conformance.support import PostgresWorld


class Hand:
    """A second session: runs the store's own statements, and commits when the test says so."""

    def __init__(self, world: PostgresWorld) -> None:
        self.database = Database(parse_address(world.url()), clock=world.clock)
        self.conn: psycopg.Connection[Any] = psycopg.connect(**self.database.parameters)
        self.conn.execute("BEGIN")

    def run(self, name: str, **values: Value) -> Any:
        """One of the store's statements; its first value."""
        call = self.database.sql[name].bind(**values)
        parameters = [None if value is None else value.decode() for value in call.values]
        with psycopg.RawCursor(self.conn) as cursor:
            cursor.execute(call.statement.sql().encode(), parameters)
            row = cursor.fetchone() if cursor.description else None
        return None if row is None else row[0]

    def hold(self, *workflow_ids: str) -> None:
        """Lock rows, as an application's open transaction may."""
        for workflow_id in workflow_ids:
            self.execute("SELECT FROM {schema}.workflows WHERE id = %s FOR UPDATE", workflow_id)

    def execute(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """A statement of the test's own."""
        text = query.replace("{schema}", self.database.address.quoted_schema)
        cursor = self.conn.execute(text.encode(), values)
        return cursor.fetchall() if cursor.description else []

    def commit(self) -> None:
        """Let what was done happen."""
        self.conn.execute("COMMIT")

    def roll_back(self) -> None:
        """Let it not have happened."""
        self.conn.execute("ROLLBACK")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.conn.close()


def fences(*rows: tuple[str, str | None, int | None], ends: bool = False) -> bytes:
    """The parameter of the locking statements."""
    return as_json([{"id": i, "worker": w, "epoch": e, "ends": ends, "takes": False} for i, w, e in rows])


async def settled(store: Store, ops: Sequence[Op]) -> list[Outcome]:
    """Write as a committer does: what is busy again, apart from the rest, until it is not."""
    outcomes = await store.write(ops)
    async with asyncio.timeout(20):
        while BUSY in outcomes:
            rest = [index for index, outcome in enumerate(outcomes) if outcome == BUSY]
            again = await store.write([ops[index] for index in rest], retry=True)
            for index, outcome in zip(rest, again, strict=True):
                outcomes[index] = outcome
    return outcomes


@contextlib.contextmanager
def as_postgres(store: Store) -> Iterator[PostgresStore]:
    """The store's insides, for tests of them."""
    assert isinstance(store, PostgresStore)
    yield store

"""A move copies every column of every table; what is not copied is named here, with the reason."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from onward._store.postgres.objects import names_of
from onward._store.sqlite.migrations import own_objects
from onward._store.sqlite.store import SqliteStore
from onward._store.transfer import TABLES, canonical, length
from tests.conformance.support import PostgresWorld
from tests.postgres.server import connection

NOT_COPIED = {
    "migrations": "the schema's own record",
    "moving": "the marks themselves",
    "outbox": "empty to everybody but the transaction that writes it",
    "prunings": "ended before the copy begins",
    "workers": "a worker's row belongs to its process",
}
WORKER = "worker"
"""Null in every row that is copied: the fence takes it away."""


def test_every_table_is_copied_or_named_above() -> None:
    """A table that a later migration makes must be thought of here."""
    on_sqlite = {name.removeprefix("onward_") for name, (kind, _) in own_objects().items() if kind == "table"}
    copied = {table.name for table in TABLES}
    assert on_sqlite | set(names_of("table")) == copied | set(NOT_COPIED)
    assert copied.isdisjoint(NOT_COPIED)


async def test_every_column_is_copied_on_sqlite(tmp_path: Path) -> None:
    """The primary key first; the rest in any order."""
    store = SqliteStore(tmp_path / "onward.db")
    await store.open()
    await store.close()
    with closing(sqlite3.connect(tmp_path / "onward.db")) as conn:
        for table in TABLES:
            found = conn.execute(f"SELECT name, pk FROM pragma_table_info('onward_{table.name}')").fetchall()
            assert {name for name, _ in found} - {WORKER} == set(table.columns)
            key = sorted((pk, name) for name, pk in found if pk)
            assert tuple(name for _, name in key) == table.columns[: len(table.first)]


async def test_every_column_is_copied_on_postgresql(tmp_path: Path) -> None:
    """Both databases have the same columns."""
    world = PostgresWorld(tmp_path)
    await world.open()
    try:
        with connection() as conn:
            for table in TABLES:
                rows = conn.execute(
                    "SELECT column_name FROM information_schema.columns WHERE table_schema = %s AND table_name = %s",
                    (world.schema, table.name),
                ).fetchall()
                assert {name for (name,) in rows} - {WORKER} == set(table.columns)
    finally:
        await world.close()


def test_parsed_json_is_compared_by_its_content() -> None:
    """PostgreSQL keeps it in an order and with spaces of its own."""
    assert canonical('{"b": 1, "aa":2}') == canonical('{"aa": 2,"b":1}') == '{"aa":2,"b":1}'
    assert canonical(None) is None


def test_the_weight_of_a_row_is_that_of_its_texts() -> None:
    """Numbers weigh next to nothing."""
    assert length(("x" * 5000, 1, None, True)) >= 5000
    assert length((1, 2)) < 200

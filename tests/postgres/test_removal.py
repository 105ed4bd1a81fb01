"""`onward migrate --drop` on PostgreSQL: what is Onward's goes in one transaction, and nothing else ever."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from click.testing import CliRunner
from psycopg import sql

from onward._store.base import Store
from onward._store.diagnosis import Removal
from onward._store.opening import open_store
from onward.cli.group import onward
from onward.errors import SchemaError
from tests.conformance.support import worker_row
from tests.postgres.server import connection, drop_schema, new_schema, server_url, url_with


@pytest.fixture
def schema() -> Iterator[str]:
    """A name for a schema."""
    name = new_schema()
    yield name
    drop_schema(name)


async def made(schema: str) -> Store:
    store = open_store(url_with(schema=schema))
    await store.open()
    await store.close()
    return store


def objects(schema: str) -> set[str]:
    with connection() as conn:
        rows = conn.execute(
            "SELECT c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname = %(s)s "
            "UNION SELECT p.proname FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace WHERE n.nspname = %(s)s",
            {"s": schema},
        ).fetchall()
    return {name for (name,) in rows}


def has_schema(schema: str) -> bool:
    with connection() as conn:
        return conn.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (schema,)).fetchone() is not None


def run(schema: str, statement: str) -> None:
    with connection() as conn:
        conn.execute(sql.SQL(statement).format(s=sql.Identifier(schema)))


async def test_nothing_remains_and_the_schema_goes_too(schema: str) -> None:
    removal = await (await made(schema)).drop_schema()
    assert {"workflows", "journal", "mailbox", "migrations", "overview"} <= set(removal.removed)
    assert not has_schema(schema)
    assert await open_store(url_with(schema=schema)).drop_schema() == Removal()


async def test_what_is_the_applications_stays_with_its_schema(schema: str) -> None:
    store = await made(schema)
    run(
        schema,
        "CREATE TABLE {s}.mine (x integer); CREATE FUNCTION {s}.mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
    )
    await store.drop_schema()
    assert objects(schema) == {"mine"}


async def test_where_something_depends_on_a_table_nothing_is_removed(schema: str) -> None:
    store = await made(schema)
    run(schema, "CREATE VIEW {s}.report AS SELECT count(*) FROM {s}.workflows")
    with pytest.raises(SchemaError, match=r"something else depends .*report"):
        await store.drop_schema(force=True)
    assert {"workflows", "overview", "start"} <= objects(schema)


async def test_while_a_worker_is_alive_nothing_is_removed_unless_it_is_forced(schema: str) -> None:
    store = await made(schema)
    leases = store.leases()
    leases.register(worker_row("w1"), 3_600_000_000)
    try:
        removal = await store.drop_schema()
        assert ([worker.id for worker in removal.alive], removal.removed) == (["w1"], ())
        assert "workflows" in objects(schema)
        assert (await store.drop_schema(force=True)).removed
    finally:
        leases.close()


async def test_a_worker_whose_lease_has_run_out_is_not_in_the_way(schema: str) -> None:
    store = await made(schema)
    leases = store.leases()
    leases.register(worker_row("w1"), 0)
    leases.close()
    assert (await store.drop_schema()).removed


async def test_a_schema_of_a_newer_library_and_a_database_that_is_not_there_are_refused(schema: str) -> None:
    store = await made(schema)
    run(
        schema,
        "INSERT INTO {s}.migrations (number, name, oldest_library, checksum, applied_by) VALUES (99, 'new', '0.1.0', '', '')",
    )
    with pytest.raises(SchemaError, match=r"schema 99 \(new\).* does not know"):
        await store.drop_schema()
    with pytest.raises(SchemaError, match="there is no database"):
        await open_store(server_url().replace("/postgres?", "/nothing?")).drop_schema()


async def test_the_printed_schema_is_the_one_that_migrate_makes(schema: str) -> None:
    store = open_store(url_with(schema=schema))
    with connection() as conn:
        conn.execute(store.schema_sql().encode())
    await store.open(migrate=False)
    await store.close()
    printed = objects(schema)
    await store.drop_schema()
    await made(schema)
    assert objects(schema) == printed


def test_the_command_asks_for_the_name_of_the_database(schema: str) -> None:
    url = url_with(schema=schema)
    assert CliRunner().invoke(onward, ["migrate", "--url", url]).exit_code == 0
    wrong = CliRunner().invoke(onward, ["migrate", "--drop", "--url", url], input="yes\n")
    assert wrong.exit_code != 0
    assert "workflows" in objects(schema)
    right = CliRunner().invoke(onward, ["migrate", "--drop", "--url", url], input="postgres\n")
    assert right.exit_code == 0, right.output
    assert "removed: " in right.stdout
    assert not has_schema(schema)

"""`onward migrate --roles`: what each role may do, and that it may do no more. The conformance suite runs under them too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from psycopg import errors, sql

from onward import AsyncClient, Signal, Worker, step, workflow
from onward._store.opening import open_store
from onward._store.postgres.objects import names_of, own_objects
from onward._store.postgres.roles import RIGHTS, role_name
from onward.cli.group import onward
from tests.engine.support import Lab
from tests.postgres.roles import drop_roles, login_name, make_roles
from tests.postgres.server import connection, drop_schema, new_schema, url_with


@step
async def triple(n: int) -> int:
    return 3 * n


@workflow
async def flow(n: int) -> int:
    """One step."""
    return await triple(n)


@pytest.fixture
def schema() -> Iterator[str]:
    """A name for a schema; all that was made under it goes."""
    name = new_schema()
    yield name
    drop_schema(name)
    drop_roles(name)


async def made(schema: str) -> str:
    """Make the schema and its roles; returns the script."""
    store = open_store(url_with(schema=schema))
    await store.open()
    await store.close()
    make_roles(schema, store.roles_sql())
    return store.roles_sql()


@contextmanager
def logged_in(schema: str, kind: str) -> Iterator[psycopg.Connection[Any]]:
    """As a user that has this role alone, in its schema."""
    with connection(user=login_name(schema, kind), options=f"-csearch_path={schema}") as conn:
        yield conn


async def test_the_script_runs_as_often_as_you_like_and_prints_without_a_server(schema: str) -> None:
    script = await made(schema)
    with connection() as conn:
        conn.execute("SET client_min_messages = warning")
        conn.execute(script.encode())
    shown = CliRunner().invoke(
        onward, ["migrate", "--roles", "--url", f"postgresql://nobody@127.0.0.1:1/x?schema={schema}"]
    )
    assert (shown.exit_code, shown.stdout) == (0, script)


def test_a_database_without_roles_has_none_to_print() -> None:
    result = CliRunner().invoke(onward, ["migrate", "--roles", "--url", "memory://"])
    assert result.exit_code == 2
    assert "only PostgreSQL has" in result.stderr


async def test_a_worker_a_client_and_a_reader_work_together_each_as_its_role(schema: str) -> None:
    await made(schema)
    url = {kind: url_with(schema=schema, user=login_name(schema, kind)) for kind in ("worker", "client", "reader")}
    async with (
        AsyncClient(url["client"]) as client,
        AsyncClient(url["reader"]) as reader,
        Worker(url["worker"], workflows=[flow]),
    ):
        handle = await client.start(flow, 2)
        assert await handle.result(timeout=20) == 6
        with logged_in(schema, "client") as conn:
            row = conn.execute("SELECT start('flow', '[5]', id => 'sql')").fetchone()
        assert row == ("sql",)
        assert await client.handle("sql", flow).result(timeout=20) == 15
        assert [entry.key for entry in await reader.handle("sql", flow).journal()] == ["triple"]
        assert {info.id for info in await reader.list()} == {handle.id, "sql"}


async def test_a_client_starts_and_signals_in_its_own_transaction(schema: str) -> None:
    await made(schema)
    url = url_with(schema=schema, user=login_name(schema, "client"))
    async with (
        AsyncClient(url) as client,
        await psycopg.AsyncConnection.connect(url_with(user=login_name(schema, "client"))) as tx,
    ):
        handle = await client.start(flow.using(id="x", tx=tx), 2)
        await client.signal(handle, Signal("go", int), 1, tx=tx)
        assert await client.list() == []
        await tx.commit()
        assert [info.id for info in await client.list()] == ["x"]
    with logged_in(schema, "reader") as conn:
        assert conn.execute("SELECT kind, name FROM mailbox").fetchone() == ("signal", "go")


async def test_a_reader_reads_everything_but_the_seed_and_changes_nothing(schema: str) -> None:
    await made(schema)
    with logged_in(schema, "client") as conn:
        conn.execute("SELECT start('flow', '[5]', id => 'x')")
    with logged_in(schema, "reader") as conn:
        assert conn.execute("SELECT id FROM workflows").fetchone() == ("x",)
        assert conn.execute("SELECT state FROM overview").fetchone() == ("queued",)
        for refused in (
            "SELECT seed FROM workflows",
            "SELECT start('flow', '[5]')",
            "UPDATE workflows SET priority = 1",
            "DELETE FROM workflows",
            "INSERT INTO mailbox (workflow_id, kind, created_at) VALUES ('x', 'cancel', now())",
        ):
            with pytest.raises(errors.InsufficientPrivilege):
                conn.execute(refused.encode())


@pytest.mark.parametrize(
    "refused",
    [
        "UPDATE workflows SET payload = '[]'",
        "UPDATE workflows SET type = 'other'",
        "UPDATE workflows SET epoch = 7",
        "UPDATE journal SET result = '1'",
        "INSERT INTO journal (workflow_id, seq, key, kind, finished_at) VALUES ('x', 1, 'a', 'step', now())",
        "DELETE FROM workflows",
        "DELETE FROM journal",
        "UPDATE workers SET is_dead = true",
        "DELETE FROM migrations",
        "CREATE TABLE mine (x integer)",
    ],
)
async def test_a_client_cannot_touch_what_workers_and_migrations_write(schema: str, refused: str) -> None:
    await made(schema)
    with logged_in(schema, "client") as conn, pytest.raises(errors.InsufficientPrivilege):
        conn.execute(refused.encode())


async def test_a_worker_cannot_change_the_schema(schema: str) -> None:
    await made(schema)
    for refused in (
        "CREATE TABLE mine (x integer)",
        "DROP VIEW overview",
        "ALTER TABLE workflows DISABLE ROW LEVEL SECURITY",
    ):
        with logged_in(schema, "worker") as conn, pytest.raises(errors.InsufficientPrivilege):
            conn.execute(refused.encode())


async def test_a_member_of_the_migrator_migrates_and_drops_and_all_belongs_to_the_role(schema: str) -> None:
    await made(schema)
    url = url_with(schema=schema, user=login_name(schema, "migrator"))
    with connection() as conn:  # as if the last migration had not been there yet
        for function in ("start", "signal", "cancel", "result", "same_arguments", "random_hex", "tell_workers"):
            conn.execute(sql.SQL("DROP FUNCTION {}").format(sql.Identifier(schema, function)))
        conn.execute(sql.SQL("DELETE FROM {} WHERE number = 2").format(sql.Identifier(schema, "migrations")))
    store = open_store(url)
    await store.open()
    await store.close()
    with connection() as conn:
        owners = conn.execute(
            "SELECT DISTINCT o.owner FROM (SELECT c.relowner::regrole::text AS owner FROM pg_class AS c "
            "WHERE c.relnamespace = %(s)s::regnamespace UNION SELECT p.proowner::regrole::text FROM pg_proc AS p "
            "WHERE p.pronamespace = %(s)s::regnamespace) AS o",
            {"s": schema},
        ).fetchall()
    assert owners == [(role_name(schema, "migrator"),)]
    assert "workflows" in (await store.drop_schema()).removed


async def test_an_owner_that_is_no_superuser_makes_the_roles(schema: str) -> None:
    owner = f"{schema}_owner"
    with connection() as admin:
        admin.execute(f"CREATE ROLE {owner} LOGIN CREATEROLE".encode())
        admin.execute(f"CREATE SCHEMA {schema} AUTHORIZATION {owner}".encode())
        row = admin.execute("SELECT current_database()").fetchone()
        assert row is not None
        admin.execute(f'GRANT CREATE ON DATABASE "{row[0]}" TO {owner} WITH GRANT OPTION'.encode())
        try:
            store = open_store(url_with(schema=schema, user=owner))
            await store.open()
            await store.close()
            with connection(user=owner) as conn:
                conn.execute("SET client_min_messages = error")
                conn.execute(store.roles_sql().encode())
            admin.execute(
                f"CREATE ROLE {login_name(schema, 'worker')} LOGIN IN ROLE {role_name(schema, 'worker')}".encode()
            )
            async with AsyncClient(url_with(schema=schema, user=login_name(schema, "worker"))) as client:
                assert (await client.start(flow.using(id="x"), 1)).id == "x"
        finally:
            drop_schema(schema)
            admin.execute(f"DROP OWNED BY {owner}, {role_name(schema, 'migrator')} CASCADE".encode())
            drop_roles(schema)
            admin.execute(f"DROP ROLE {owner}".encode())


async def test_every_table_has_rights_and_the_readers_columns_are_all_but_the_seed(lab: Lab) -> None:
    with connection() as conn:
        rows = conn.execute(
            "SELECT column_name FROM information_schema.columns WHERE table_schema = %s AND table_name = 'workflows'",
            (lab.schema,),
        ).fetchall()
    assert {name for (name,) in rows} - {"seed"} == set(RIGHTS["reader"]["workflows"]["SELECT"])
    assert set(names_of("table")) == set(RIGHTS["worker"])


async def test_the_migrations_make_what_they_are_said_to_make_and_every_table_has_row_security(lab: Lab) -> None:
    with connection() as conn:
        rows = conn.execute(
            "SELECT c.relname, c.relkind, c.relrowsecurity FROM pg_class AS c WHERE c.relnamespace = %s::regnamespace "
            "AND c.relkind IN ('r', 'v', 'i') AND c.relname NOT LIKE '%%_pkey'",
            (lab.schema,),
        ).fetchall()
        functions = conn.execute(
            "SELECT p.proname FROM pg_proc AS p WHERE p.pronamespace = %s::regnamespace", (lab.schema,)
        ).fetchall()
        triggers = conn.execute(
            "SELECT t.tgname FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid "
            "WHERE c.relnamespace = %s::regnamespace AND NOT t.tgisinternal",
            (lab.schema,),
        ).fetchall()
    kinds = {"r": "table", "v": "view", "i": "index"}
    made = {(kinds[kind], name) for name, kind, _ in rows} | {("function", name) for (name,) in functions}
    made |= {("trigger", name) for (name,) in triggers}
    assert made == {(own.kind, own.name) for own in own_objects()}
    assert all(is_secured for _, kind, is_secured in rows if kind == "r")

"""`tx=` on PostgreSQL together with everything else: settings of the connection, transactional steps, poolers, other libraries."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
import sqlalchemy
from psycopg.rows import dict_row
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from onward import AsyncClient, Client, Fail, Signal, StoreMoved, WorkflowFailed, step, workflow
from onward._store.operations import Started, StartOp
from onward._store.postgres.roles import roles_sql
from onward._store.postgres.store import PostgresStore
from onward._store.scripts import Rows, run
from onward._store.within.kinds import blocking_caller
from tests.conformance.support import new
from tests.engine.support import Lab, keys
from tests.engine.txpostgres import async_postgres_engine, asyncpg_settings, settings
from tests.engine.txsupport import lab_of, own
from tests.postgres.pooler import Pooler, pooler_to
from tests.postgres.roles import drop_roles, login_name, make_roles
from tests.postgres.server import drop_schema, server_url

approved = Signal("approved", bool)


@workflow
async def flow(n: int) -> int:
    """The plainest one."""
    return n


@workflow
async def wait_for_approval() -> bool:
    """Ends with the signal."""
    return await approved.wait()


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """A schema that the application has a table in."""
    return lab_of("psycopg", tmp_path)


@pytest.fixture
def client(lab: Lab) -> Iterator[Client]:
    """A client that makes no thread and keeps no connection."""
    with Client(lab.url) as made:
        yield made
        assert made._private is None


@pytest.fixture
def conn(lab: Lab) -> Iterator[psycopg.Connection[Any]]:
    """A connection of the application's."""
    with contextlib.closing(psycopg.connect(**settings(lab))) as made:
        yield made


@contextlib.asynccontextmanager
async def asyncpg_connection(lab: Lab) -> AsyncIterator[Any]:
    made = await asyncpg.connect(**asyncpg_settings(lab))
    try:
        yield made
    finally:
        await made.close()


def ids(lab: Lab) -> list[str]:
    return [name for (name,) in lab.sql("SELECT id FROM onward_workflows ORDER BY id")]


# ---------------------------------------------------------------------- settings of the connection


async def test_factories_and_settings_of_the_connection_are_the_applications_own(lab: Lab, client: Client) -> None:
    with contextlib.closing(
        psycopg.connect(**settings(lab), row_factory=dict_row, cursor_factory=psycopg.RawCursor)
    ) as tx:
        tx.execute("SET search_path = pg_temp")
        tx.execute(b"SET DateStyle = 'German'; SET TimeZone = 'Asia/Tokyo'; SET standard_conforming_strings = off")
        for number in range(8):  # psycopg prepares a statement that it has seen a few times
            assert client.start(flow.using(id=f"w{number}", tx=tx), 1).created
            assert not client.start(flow.using(id=f"w{number}", tx=tx), 1).created
            client.signal(f"w{number}", approved, True, tx=tx)
            if number % 3 == 2:
                tx.commit()
        tx.commit()
        assert tx.execute("SELECT $1::int AS name", [1]).fetchall() == [{"name": 1}]
    assert lab.sql("SELECT DISTINCT signals FROM onward_workflows") == [(1,)]


async def test_type_codecs_of_an_asyncpg_connection_do_not_matter(lab: Lab) -> None:
    async with asyncpg_connection(lab) as tx, AsyncClient(lab.url) as client:
        for name in ("json", "jsonb"):
            await tx.set_type_codec(name, encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
        async with tx.transaction():
            assert (await client.start(flow.using(id="w", tx=tx), 1)).created
            assert not (await client.start(flow.using(id="w", tx=tx), 1)).created
            await client.signal("w", approved, True, tx=tx)
    assert lab.sql("SELECT signals, CAST(payload AS text) FROM onward_workflows") == [(1, '{"n":1}')]


async def test_inside_run_sync_of_an_async_session_the_blocking_client_works(lab: Lab, client: Client) -> None:
    """SQLAlchemy's way to run blocking code on an async connection."""
    async with AsyncSession(async_postgres_engine(lab, "asyncpg")) as session:

        def order(blocking: Session) -> None:
            blocking.execute(sqlalchemy.text("INSERT INTO orders VALUES ('a')"))
            client.start(flow.using(id="w", tx=blocking), 1)

        await session.run_sync(order)
        assert ids(lab) == []
        await session.commit()
    assert (ids(lab), lab.sql("SELECT name FROM orders")) == (["w"], [("a",)])


async def test_options_of_a_start_are_stored_as_without_a_transaction(
    lab: Lab, client: Client, conn: psycopg.Connection[Any]
) -> None:
    columns = (
        "type, queue, priority, partition, CAST(tags AS text), max_attempts, timeout_us, status, epoch, digest, "
        "CAST(payload AS text), next_run_at - created_at"
    )
    special = flow.using(queue="q", priority=3, partition="p", tags={"a": "b"}, max_attempts=2, timeout=60, delay=5)
    async with lab.client() as asynchronous:
        await asynchronous.start(special.using(id="plain"), 1)
    client.start(special.using(id="within", tx=conn), 1)
    conn.commit()
    [plain, within] = lab.sql(f"SELECT {columns} FROM onward_workflows ORDER BY id")
    assert within[:-1] == plain[:-1]
    assert abs(within[-1] - plain[-1]).total_seconds() < 1  # two readings of the clock within one statement


async def test_a_client_and_a_worker_that_only_poll_need_no_notification(lab: Lab) -> None:
    """As behind a pooler: the worker finds what was committed by looking."""
    url = f"{lab.url}&poll_only=1"
    with Client(url) as client, contextlib.closing(psycopg.connect(**settings(lab), prepare_threshold=None)) as tx:
        lab.url = url
        async with lab.working(wait_for_approval):
            client.start(wait_for_approval.using(id="w", tx=tx))
            tx.commit()
            await lab.parked("w", "approved")
            client.signal("w", approved, True, tx=tx)
            tx.commit()
            await lab.in_status("w", "completed")


# ---------------------------------------------------------------------- what others do to the database


@pytest.mark.parametrize("kind", ["psycopg", "asyncpg", "async-sqlalchemy-asyncpg"])
async def test_while_the_workflows_are_moved_a_call_says_where_to_and_the_transaction_goes_on(
    lab: Lab, kind: str
) -> None:
    async with lab.client() as client, own(lab, kind) as application:
        await client.start(wait_for_approval.using(id="w"))
        for table in ("workflows", "outbox"):
            lab.sql(
                f"CREATE TRIGGER refuse_while_moving BEFORE INSERT ON onward_{table} FOR EACH STATEMENT "
                "EXECUTE FUNCTION refuse_while_moving('source', 'postgresql://there/app')"
            )
        await application.begin()
        with pytest.raises(StoreMoved, match="postgresql://there/app"):
            await application.start(flow.using(tx=application.tx).bind(1))
        with pytest.raises(StoreMoved) as caught:
            await application.signal("w", approved, True)
        assert caught.value.moved_to == "postgresql://there/app"
        await application.order("a")
        await application.commit()
        assert (application.orders(), application.workflows()) == (["a"], ["w"])


async def test_an_id_that_is_pruned_while_it_is_looked_for_is_started_anew(
    lab: Lab, conn: psycopg.Connection[Any]
) -> None:
    assert isinstance(lab.store, PostgresStore)
    op = StartOp(new("w", type="flow"))
    caller = blocking_caller(conn)
    pruned: list[bool] = []

    def execute(sql: str, parameters: Mapping[str, object]) -> Rows:
        rows = caller.execute(sql, parameters)
        if "json_build_array(w.id" in sql and not pruned:
            pruned.append(True)
            caller.execute("DELETE FROM workflows", {})
            return [["[]"]]
        return rows

    [outcome] = run(lab.store.write_within([op], caller), execute)
    conn.commit()
    assert outcome == Started("w", created=True)
    assert (pruned, ids(lab)) == ([True], ["w"])


async def test_the_clients_role_has_the_rights_that_are_needed(lab: Lab, client: Client) -> None:
    assert lab.schema is not None
    make_roles(lab.schema, roles_sql(lab.schema, lab.schema))
    try:
        user = {**settings(lab), "user": login_name(lab.schema, "client")}
        async with lab.working(flow, wait_for_approval):
            with psycopg.connect(**user) as tx:
                client.start(flow.using(id="a", tx=tx), 1)
                client.start(wait_for_approval.using(id="b", tx=tx))
            await lab.parked("b", "approved")
            with psycopg.connect(**user) as tx:
                client.signal("b", approved, True, tx=tx)
                client.start(flow.using(id="c", tx=tx, delay=3600), 1)
                client.handle("c").cancel(tx=tx)
            for name in ("a", "b"):
                await lab.in_status(name, "completed")
        assert lab.sql("SELECT status FROM onward_workflows WHERE id = 'c'") == [("cancelled",)]
    finally:
        drop_schema(lab.schema)
        drop_roles(lab.schema)


# ---------------------------------------------------------------------- poolers


@pytest.fixture
def pooler() -> Iterator[Pooler]:
    """In front of the test server, in transaction mode."""
    with pooler_to(server_url()) as made:
        yield made


async def test_through_a_pooler_in_transaction_mode_a_transaction_is_one_all_the_same(lab: Lab, pooler: Pooler) -> None:
    """Application and client go through it; what they commit is told to the workers."""
    url = f"{pooler.base_url}&schema={lab.schema}&poll_only=1"
    through = {"host": str(pooler.directory), "port": 6432}
    async with lab.working(flow, wait_for_approval):
        with Client(url) as blocking, psycopg.connect(f"{pooler.base_url}", prepare_threshold=None) as tx:
            for number in range(3):
                blocking.start(flow.using(id=f"a{number}", tx=tx), 1)
                blocking.start(wait_for_approval.using(id=f"b{number}", tx=tx))
                tx.commit()
                blocking.signal(f"b{number}", approved, True, tx=tx)
                tx.commit()
            blocking.start(flow.using(id="c", tx=tx), 1)
            tx.rollback()
        tx2 = await asyncpg.connect(user="postgres", database="postgres", statement_cache_size=0, **through)
        async with AsyncClient(url) as client, tx2.transaction():
            await client.start(flow.using(id="d", tx=tx2), 1)
            await client.signal(
                (await client.start(wait_for_approval.using(id="e", tx=tx2))).id, approved, True, tx=tx2
            )
        await tx2.close()
        for name in ("a0", "a1", "a2", "b0", "b1", "b2", "d", "e"):
            await lab.in_status(name, "completed")
    assert "c" not in ids(lab)


# ---------------------------------------------------------------------- transactional steps


@pytest.mark.parametrize("is_async", [False, True])
async def test_in_a_transactional_step_effect_starts_signals_and_record_commit_together(
    lab: Lab, is_async: bool
) -> None:
    seen: list[object] = []
    client = Client(lab.url)

    def look() -> None:
        seen.append(lab.sql("SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM onward_journal)"))
        seen.append(ids(lab))

    @step(transactional=True)
    def book(tx: psycopg.Connection[Any], name: str) -> str:
        tx.execute(f"INSERT INTO {lab.schema}.orders VALUES (%s)".encode(), [name])
        handle = client.start(flow.using(id=f"ship-{name}", tx=tx), 1)
        client.signal(client.start(wait_for_approval.using(id=f"ask-{name}", tx=tx)), approved, True, tx=tx)
        look()
        return handle.id

    @step(transactional=True, name="book")
    async def book_async(tx: psycopg.AsyncConnection[Any], name: str) -> str:
        async with AsyncClient(lab.url) as own:
            await tx.execute(f"INSERT INTO {lab.schema}.orders VALUES (%s)".encode(), [name])
            handle = await own.start(flow.using(id=f"ship-{name}", tx=tx), 1)
            asking = await own.start(wait_for_approval.using(id=f"ask-{name}", tx=tx))
            await own.signal(asking, approved, True, tx=tx)
        await asyncio.to_thread(look)
        return handle.id

    @workflow
    async def order(name: str) -> str:
        return await (book_async(name) if is_async else book(name))

    async with lab.running(order, flow, wait_for_approval) as asynchronous:
        handle = await asynchronous.start(order.using(id="order"), "a")
        assert await handle.result(timeout=10) == "ship-a"
        assert keys(await handle.journal()) == ["book"]
        assert await asynchronous.handle("ship-a", flow).result(timeout=10) == 1
        assert await asynchronous.handle("ask-a", wait_for_approval).result(timeout=10) is True
    assert seen == [[(0, 0)], ["order"]]
    assert lab.sql("SELECT name FROM orders") == [("a",)]


async def test_a_transactional_step_that_fails_starts_and_signals_nothing(lab: Lab) -> None:
    client = Client(lab.url)

    @step(transactional=True)
    def book(tx: psycopg.Connection[Any]) -> None:
        client.start(flow.using(id="ship", tx=tx), 1)
        client.signal("waiting", approved, True, tx=tx)
        raise Fail("no")

    @workflow
    async def order() -> None:
        await book()

    async with lab.running(order) as asynchronous:
        await asynchronous.start(wait_for_approval.using(id="waiting"))
        with pytest.raises(WorkflowFailed):
            await (await asynchronous.start(order.using(id="order"))).result(timeout=10)
    assert ids(lab) == ["order", "waiting"]
    assert lab.sql("SELECT count(*) FROM onward_mailbox") == [(0,)]


async def test_a_transactional_step_may_signal_its_own_workflow(lab: Lab) -> None:
    """Its commit locks the row for the entry, and then delivers the signal to it."""
    client = Client(lab.url)

    @step(transactional=True)
    def book(tx: psycopg.Connection[Any]) -> None:
        client.signal("order", approved, True, tx=tx)

    @workflow
    async def order() -> bool:
        await book()
        return await approved.wait()

    async with lab.running(order) as asynchronous:
        assert await (await asynchronous.start(order.using(id="order"))).result(timeout=10) is True


# ---------------------------------------------------------------------- other libraries


def test_no_driver_but_the_one_in_use_is_imported(tmp_path: Path) -> None:
    script = f"""
import sys
import onward
from onward._store.within import kinds
from onward import Client, workflow
@workflow
async def flow(n: int) -> int: return n
assert "psycopg" not in sys.modules
with Client({server_url()!r} + "&schema=none_of_ours") as client:
    try:
        client.start(flow.using(tx=object()), 1)
    except onward.WrongConnection:
        print(*sorted({{"sqlalchemy", "aiosqlite", "django", "asyncpg", "psycopg_pool"}} & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == ""

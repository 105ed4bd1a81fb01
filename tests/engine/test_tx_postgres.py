"""What `tx=` refuses on PostgreSQL, and what remains of the caller's transaction then."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest

from onward import (
    AsyncClient,
    Client,
    FatalStoreError,
    OnwardError,
    SchemaError,
    Signal,
    StoreConflict,
    TransientStoreError,
    WorkflowIdConflict,
    WorkflowNotFound,
    WrongConnection,
    workflow,
)
from tests.engine.support import Lab
from tests.engine.txdriver import django_alias
from tests.engine.txpostgres import (
    async_postgres_engine,
    asyncpg_settings,
    django_settings,
    postgres_engine,
    settings,
)
from tests.engine.txsupport import lab_of, own
from tests.postgres.server import connection, url_with

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


async def until_blocked(lab: Lab, pid: int) -> None:
    """Until the server says that this session waits for another one."""

    async def look() -> bool:
        [(blockers,)] = await asyncio.to_thread(lab.sql, "SELECT pg_blocking_pids(%s)", pid)
        return bool(blockers)

    await lab.until(look)


# ---------------------------------------------------------------------- the connection


@pytest.fixture
def another_database(lab: Lab) -> Iterator[str]:
    """A database of the same server, with the same schema in it."""
    name = f"other_{lab.schema}"
    with connection() as admin:
        admin.execute(f"CREATE DATABASE {name}".encode())
        yield name
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


async def test_a_connection_to_another_database_is_refused_though_it_has_the_schema(
    lab: Lab, client: Client, another_database: str
) -> None:
    elsewhere = {**settings(lab), "dbname": another_database}
    async with AsyncClient(url_with(schema=lab.schema, dbname=another_database)) as theirs:
        await theirs.counts()
        with psycopg.connect(**elsewhere) as tx:
            with pytest.raises(WrongConnection, match=f"to another database, named '{another_database}', but"):
                client.start(flow.using(tx=tx), 1)
            tx.commit()
        other = await asyncpg.connect(**{**asyncpg_settings(lab), "database": another_database})
        async with AsyncClient(lab.url) as asynchronous, other.transaction():
            with pytest.raises(WrongConnection, match="to another database"):
                await asynchronous.signal("w", approved, True, tx=other)
            await theirs.start(flow.using(id="right", tx=other), 1)
        await other.close()
        assert await theirs.counts() == {"pending": 1}
    assert ids(lab) == []


async def test_a_connection_after_a_restart_of_the_server_is_no_other_database(
    lab: Lab, client: Client, conn: psycopg.Connection[Any]
) -> None:
    """A server is told from others by when it was started; the client asks its own again before it refuses."""
    store: Any = client._transactions._store()
    store._callers._place = "another start of the server"
    client.start(flow.using(id="w", tx=conn), 1)
    conn.commit()
    assert ids(lab) == ["w"]


async def test_a_connection_to_another_kind_of_database_is_refused(lab: Lab, client: Client, tmp_path: Path) -> None:
    import sqlite3

    with (
        contextlib.closing(sqlite3.connect(tmp_path / "app.db")) as tx,
        pytest.raises(WrongConnection, match=r"a sqlite3\.Connection, but this client works on postgresql://"),
    ):
        client.start(flow.using(tx=tx), 1)
    with (
        Client(f"sqlite:///{tmp_path}/app.db") as on_file,
        contextlib.closing(psycopg.connect(**settings(lab))) as other,
        pytest.raises(WrongConnection, match=r"a psycopg\.Connection, but this client works on the SQLite file"),
    ):
        on_file.start(flow.using(tx=other), 1)


@pytest.mark.parametrize(
    "kind", ["psycopg", "async-psycopg", "asyncpg", "sqlalchemy", "async-sqlalchemy-asyncpg", "django"]
)
async def test_a_connection_without_a_transaction_is_refused_and_writes_nothing(
    lab: Lab, kind: str, client: Client
) -> None:
    """What would be committed at once could not be rolled back; each driver's cure is named."""
    async with AsyncClient(lab.url) as asynchronous:
        match kind:
            case "psycopg":
                with psycopg.connect(**settings(lab), autocommit=True) as tx:
                    with pytest.raises(WrongConnection, match=r"inside `with connection\.transaction"):
                        client.start(flow.using(tx=tx), 1)
                    with tx.transaction():
                        client.start(flow.using(id="right", tx=tx), 1)
            case "async-psycopg":
                async with await psycopg.AsyncConnection.connect(**settings(lab), autocommit=True) as tx2:
                    with pytest.raises(WrongConnection, match=r"inside `async with connection\.transaction"):
                        await asynchronous.start(flow.using(tx=tx2), 1)
                    async with tx2.transaction():
                        await asynchronous.start(flow.using(id="right", tx=tx2), 1)
            case "asyncpg":
                async with asyncpg_connection(lab) as tx3:
                    with pytest.raises(WrongConnection, match=r"inside `async with connection\.transaction"):
                        await asynchronous.start(flow.using(tx=tx3), 1)
                    async with tx3.transaction():
                        await asynchronous.start(flow.using(id="right", tx=tx3), 1)
            case "sqlalchemy":
                engine = postgres_engine(lab)
                with (
                    engine.connect().execution_options(isolation_level="AUTOCOMMIT") as tx4,
                    pytest.raises(WrongConnection, match="AUTOCOMMIT"),
                ):
                    client.start(flow.using(tx=tx4), 1)
                with engine.begin() as tx4:
                    client.start(flow.using(id="right", tx=tx4), 1)
            case "async-sqlalchemy-asyncpg":
                async_engine = async_postgres_engine(lab, "asyncpg")
                async with async_engine.connect() as tx5:
                    await tx5.execution_options(isolation_level="AUTOCOMMIT")
                    with pytest.raises(WrongConnection, match="AUTOCOMMIT"):
                        await asynchronous.start(flow.using(tx=tx5), 1)
                async with async_engine.begin() as tx5:
                    await asynchronous.start(flow.using(id="right", tx=tx5), 1)
            case _:
                with ThreadPoolExecutor(1) as thread:
                    thread.submit(_outside_atomic, lab, client).result()
    assert ids(lab) == ["right"]


def _outside_atomic(lab: Lab, client: Client) -> None:
    from django.db import connections, transaction

    with django_alias(**django_settings(lab)) as alias:
        with pytest.raises(WrongConnection, match=r"transaction\.atomic"):
            client.start(flow.using(tx=connections[alias]), 1)
        with transaction.atomic(using=alias):
            client.start(flow.using(id="right", tx=connections[alias]), 1)


async def test_a_transaction_that_has_failed_before_is_refused(
    lab: Lab, client: Client, conn: psycopg.Connection[Any]
) -> None:
    with pytest.raises(psycopg.errors.UndefinedTable):
        conn.execute("SELECT * FROM nowhere")
    with pytest.raises(WrongConnection, match="has failed before: roll it back"):
        client.start(flow.using(tx=conn), 1)
    conn.rollback()
    async with asyncpg_connection(lab) as tx, AsyncClient(lab.url) as asynchronous:
        with pytest.raises(asyncpg.UndefinedTableError):
            async with tx.transaction():
                with contextlib.suppress(asyncpg.UndefinedTableError):
                    await tx.execute("SELECT * FROM nowhere")
                with pytest.raises(WrongConnection, match="has failed before"):
                    await asynchronous.start(flow.using(tx=tx), 1)
                raise asyncpg.UndefinedTableError
    client.start(flow.using(id="w", tx=conn), 1)
    conn.commit()
    assert ids(lab) == ["w"]


async def test_a_transaction_that_may_only_read_is_refused(
    lab: Lab, client: Client, conn: psycopg.Connection[Any]
) -> None:
    conn.read_only = True
    with pytest.raises(WrongConnection, match="may only read"):
        client.start(flow.using(tx=conn), 1)
    conn.execute("SELECT * FROM orders")
    conn.rollback()


async def test_a_connection_that_is_closed_or_given_back_or_in_a_pipeline_is_refused(
    lab: Lab, client: Client, conn: psycopg.Connection[Any]
) -> None:
    with conn.pipeline(), pytest.raises(WrongConnection, match="pipeline mode"):
        client.start(flow.using(tx=conn), 1)
    conn.close()
    with pytest.raises(WrongConnection, match="closed"):
        client.start(flow.using(tx=conn), 1)
    async with AsyncClient(lab.url) as asynchronous:
        async with asyncpg.create_pool(min_size=1, max_size=1, **asyncpg_settings(lab)) as pool:
            async with pool.acquire() as pooled:
                pass
            with pytest.raises(WrongConnection, match="released"):
                await asynchronous.start(flow.using(tx=pooled), 1)
        async with asyncpg_connection(lab) as closed:
            await closed.close()
            with pytest.raises(WrongConnection, match="closed"):
                await asynchronous.start(flow.using(tx=closed), 1)


async def test_the_old_driver_is_refused_with_the_cure(client: Client) -> None:
    old: Any = type("connection", (), {"__module__": "psycopg2.extensions"})()
    with pytest.raises(WrongConnection, match=r"not a psycopg2\.extensions\.connection; use psycopg 3"):
        client.start(flow.using(tx=old), 1)


async def test_a_database_without_the_schema_is_refused_and_not_migrated(
    lab: Lab, conn: psycopg.Connection[Any]
) -> None:
    with Client(url_with(schema=f"{lab.schema}_missing")) as client:
        conn.execute("INSERT INTO orders VALUES ('a')")
        with pytest.raises(SchemaError, match="no Onward schema; run: onward migrate --url postgresql://"):
            client.start(flow.using(tx=conn), 1)
        conn.commit()
    assert lab.sql("SELECT name FROM orders") == [("a",)]
    assert lab.sql("SELECT to_regnamespace(%s)", f"{lab.schema}_missing") == [(None,)]


async def test_a_schema_of_a_newer_library_is_refused(lab: Lab, client: Client, conn: psycopg.Connection[Any]) -> None:
    lab.sql("INSERT INTO onward_migrations SELECT 9999, 'later', '99.0.0', 'x', now(), 'x'")
    with pytest.raises(SchemaError, match=r"needs onward >= 99\.0\.0"):
        client.start(flow.using(tx=conn), 1)


async def test_a_user_without_rights_is_refused_and_its_transaction_goes_on(lab: Lab, client: Client) -> None:
    role = f"app_{lab.schema}"
    lab.sql(f"CREATE ROLE {role}")
    try:
        lab.sql(f"GRANT USAGE ON SCHEMA {lab.schema} TO {role}")
        lab.sql(f"GRANT INSERT, SELECT ON orders TO {role}")
        with contextlib.closing(psycopg.connect(**settings(lab))) as tx:
            tx.execute(f"SET ROLE {role}".encode())
            tx.execute("INSERT INTO orders VALUES ('a')")
            with pytest.raises(FatalStoreError, match="lacks a privilege; see onward migrate --roles"):
                client.start(flow.using(tx=tx), 1)
            tx.commit()
    finally:
        lab.sql(f"DROP OWNED BY {role}")
        lab.sql(f"DROP ROLE {role}")
    assert lab.sql("SELECT name FROM orders") == [("a",)]


# ---------------------------------------------------------------------- ids that others start


async def test_a_start_waits_for_another_open_one_of_its_id_and_then_sees_how_it_ended(
    lab: Lab, client: Client, conn: psycopg.Connection[Any]
) -> None:
    for ending, created in (("rollback", True), ("commit", False)):
        with contextlib.closing(psycopg.connect(**settings(lab))) as first:
            client.start(flow.using(id=ending, tx=first), 1)
            start = asyncio.ensure_future(asyncio.to_thread(client.start, flow.using(id=ending, tx=conn), 1))
            await until_blocked(lab, conn.info.backend_pid)
            getattr(first, ending)()
            assert (await start).created is created
    conn.commit()
    assert ids(lab) == ["commit", "rollback"]


async def test_a_start_waits_no_longer_than_the_connections_own_lock_timeout(
    lab: Lab, client: Client, conn: psycopg.Connection[Any]
) -> None:
    with contextlib.closing(psycopg.connect(**settings(lab))) as first:
        client.start(flow.using(id="w", tx=first), 1)
        conn.execute("SET lock_timeout = '10ms'")
        conn.execute("INSERT INTO orders VALUES ('a')")
        with pytest.raises(TransientStoreError, match="another transaction has started the same id") as caught:
            client.start(flow.using(id="w", tx=conn), 1)
        assert isinstance(caught.value.__cause__, psycopg.errors.LockNotAvailable)
        first.rollback()
        assert client.start(flow.using(id="w", tx=conn), 1).created
        conn.commit()
    assert ids(lab) == ["w"]


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_at_a_stricter_isolation_a_start_that_came_in_between_is_told_to_run_again(
    lab: Lab, client: Client, conn: psycopg.Connection[Any], level: str
) -> None:
    conn.isolation_level = psycopg.IsolationLevel[level.replace(" ", "_")]
    conn.execute("SELECT * FROM orders")
    async with lab.client() as asynchronous:
        await asynchronous.start(flow.using(id="w"), 1)
    with pytest.raises(TransientStoreError, match="run the transaction again") as caught:
        client.start(flow.using(id="w", tx=conn), 1)
    assert isinstance(caught.value.__cause__, psycopg.errors.SerializationFailure)
    assert client.start(flow.using(id="other", tx=conn), 1).created
    conn.rollback()
    assert not client.start(flow.using(id="w", tx=conn), 1).created
    conn.commit()


# ---------------------------------------------------------------------- what remains of the transaction


@pytest.mark.parametrize("kind", ["psycopg", "asyncpg", "session-psycopg", "async-session-asyncpg", "django-postgres"])
async def test_a_statement_that_fails_leaves_nothing_and_the_transaction_goes_on(lab: Lab, kind: str) -> None:
    lab.sql(
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no' USING ERRCODE = '23514'; END $$"
    )
    lab.sql(
        "CREATE TRIGGER no BEFORE INSERT ON onward_workflows FOR EACH ROW WHEN (NEW.id = 'no') EXECUTE FUNCTION no()"
    )
    async with own(lab, kind) as application:
        await application.begin()
        await application.start(flow.using(id="before", tx=application.tx).bind(1))
        with pytest.raises(StoreConflict, match="23514: no"):
            await application.start_many([flow.using(id=name, tx=application.tx).bind(1) for name in ("a", "no")])
        with pytest.raises(WorkflowIdConflict):
            await application.start(flow.using(id="before", tx=application.tx).bind(2))
        with pytest.raises(WorkflowNotFound):
            await application.signal("nobody", approved, True)
        await application.order("a")
        await application.commit()
        assert (application.orders(), application.workflows()) == (["a"], ["before"])


@pytest.mark.parametrize("kind", ["async-psycopg", "asyncpg"])
async def test_a_call_that_is_cancelled_leaves_nothing_half_written(lab: Lab, kind: str) -> None:
    async with own(lab, kind) as application, lab.client() as client:
        await client.start(wait_for_approval.using(id="w"))
        await application.begin()
        await application.order("a")
        with contextlib.closing(psycopg.connect(**settings(lab))) as first, Client(lab.url) as blocking:
            blocking.start(flow.using(id="held", tx=first), 1)
            call = asyncio.ensure_future(application.start(flow.using(id="held", tx=application.tx).bind(1)))
            [(pid,)] = await lab.until(lambda: _waiting_sessions(lab, first))
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert pid != first.info.backend_pid
            first.rollback()
        await application.signal("w", approved, True)
        await application.commit()
        assert (application.orders(), application.workflows()) == (["a"], ["w"])
        assert lab.sql("SELECT signals FROM onward_workflows") == [(1,)]


async def _waiting_sessions(lab: Lab, first: psycopg.Connection[Any]) -> list[tuple[Any, ...]] | None:
    found = await asyncio.to_thread(
        lab.sql, "SELECT pid FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))", first.info.backend_pid
    )
    return found or None


async def test_a_connection_that_is_lost_in_the_call_is_transient(
    lab: Lab, client: Client, conn: psycopg.Connection[Any]
) -> None:
    conn.execute("INSERT INTO orders VALUES ('a')")
    lab.sql("SELECT pg_terminate_backend(%s, 5000)", conn.info.backend_pid)
    with pytest.raises(TransientStoreError, match="run the transaction again"):
        client.start(flow.using(id="w", tx=conn), 1)
    assert (ids(lab), lab.sql("SELECT name FROM orders")) == ([], [])


async def test_a_client_that_cannot_reach_its_own_database_says_so_and_writes_nothing(
    lab: Lab, conn: psycopg.Connection[Any], tmp_path: Path
) -> None:
    with Client(f"postgresql:///postgres?host={tmp_path}") as lost:
        conn.execute("INSERT INTO orders VALUES ('a')")
        with pytest.raises(OnwardError, match="the connection failed"):
            lost.start(flow.using(tx=conn), 1)
        conn.commit()
    assert (ids(lab), lab.sql("SELECT name FROM orders")) == ([], [("a",)])

"""What `tx=` refuses, and how: by a typed error with the cure, before anything is written."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
import sqlalchemy

from onward import (
    AsyncClient,
    Client,
    CodecError,
    ConfigurationError,
    NotAllowedInWorkflow,
    SchemaError,
    Signal,
    StoreConflict,
    TransientStoreError,
    UsageError,
    WorkflowFailed,
    WorkflowIdConflict,
    WrongConnection,
    workflow,
)
from onward import start as start_child
from onward._store.scripts import run
from onward._store.sqlite.store import SqliteStore
from onward._store.within.sqlite_drivers import Sqlite3
from tests.engine.support import Lab, wait_for
from tests.engine.txdriver import django_alias
from tests.engine.txsupport import ASYNC, BLOCKING, TABLE, lab_of, own, sqlalchemy_engine

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
def kind() -> str:
    """Unless the test says otherwise."""
    return "sqlite3"


@pytest.fixture
def lab(kind: str, tmp_path: Path) -> Lab:
    """A database that the application has a table in."""
    return lab_of(kind, tmp_path)


@pytest.fixture
def client(lab: Lab) -> Iterator[Client]:
    """A client that is never asked to connect."""
    with Client(lab.url) as made:
        yield made
        assert made._private is None


@pytest.fixture
def conn(lab: Lab) -> Iterator[sqlite3.Connection]:
    """A connection of the application's."""
    with contextlib.closing(sqlite3.connect(lab.path)) as made:
        yield made


# ---------------------------------------------------------------------- the connection


@pytest.mark.parametrize("kind", list(ASYNC))
async def test_the_blocking_client_refuses_async_connections(lab: Lab, kind: str, client: Client) -> None:
    async with own(lab, kind) as application:
        with pytest.raises(WrongConnection, match=r"async connection .* use it with onward\.AsyncClient"):
            client.start(flow.using(tx=application.tx), 1)
        with pytest.raises(WrongConnection, match="AsyncClient"):
            client.signal("w", approved, True, tx=application.tx)
        with pytest.raises(WrongConnection, match="AsyncClient"):
            client.handle("w").cancel(tx=application.tx)


@pytest.mark.parametrize("kind", list(BLOCKING))
async def test_the_async_client_refuses_blocking_connections(lab: Lab, kind: str) -> None:
    async with own(lab, kind) as application, AsyncClient(lab.url) as asynchronous:
        with pytest.raises(WrongConnection, match=r"blocking connection .* use it with onward\.Client"):
            await asynchronous.start(flow.using(tx=application.tx), 1)
        with pytest.raises(WrongConnection, match=r"onward\.Client"):
            await asynchronous.signal("w", approved, True, tx=application.tx)


async def test_what_is_no_connection_is_refused_and_the_right_ones_are_named(lab: Lab, client: Client) -> None:
    engine = sqlalchemy_engine(lab.path)
    wrongs: tuple[Any, ...] = (engine, lab.url, 42)
    for wrong in wrongs:
        with pytest.raises(WrongConnection, match=r"sqlite3\.Connection, psycopg\.Connection, SQLAlchemy's .* not a "):
            client.start(flow.using(tx=wrong), 1)
        async with AsyncClient(lab.url) as asynchronous:
            with pytest.raises(WrongConnection, match=r"aiosqlite\.Connection"):
                await asynchronous.start(flow.using(tx=wrong), 1)


async def test_a_connection_to_another_file_is_refused(lab: Lab, tmp_path: Path, client: Client) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "other.db")) as tx:
        tx.execute(f"ATTACH '{lab.path}' AS app")  # a commit over two files is not atomic in WAL mode
        with pytest.raises(WrongConnection, match=r"to .*other\.db, but this client works on .*onward\.db"):
            client.start(flow.using(tx=tx), 1)
        assert not tx.in_transaction
    with (
        contextlib.closing(sqlite3.connect(":memory:")) as tx,
        pytest.raises(WrongConnection, match="a database in memory"),
    ):
        client.start(flow.using(tx=tx), 1)
    async with aiosqlite.connect(tmp_path / "other.db") as other, AsyncClient(lab.url) as asynchronous:
        with pytest.raises(WrongConnection, match=r"other\.db"):
            await asynchronous.start(flow.using(tx=other), 1)


async def test_a_connection_to_another_kind_of_database_is_refused(lab: Lab, conn: sqlite3.Connection) -> None:
    caller = Sqlite3(conn)
    caller.database = "postgresql"  # type: ignore[assignment]
    assert isinstance(lab.store, SqliteStore)
    with pytest.raises(WrongConnection, match="this client works on the SQLite file"):
        run(lab.store.write_within([], caller), caller.execute)


async def test_another_name_of_the_same_file_is_accepted(lab: Lab, tmp_path: Path, client: Client) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(lab.path)
    with contextlib.closing(sqlite3.connect(link)) as tx, tx:
        client.start(flow.using(id="w", tx=tx), 1)
    assert lab.sql("SELECT id FROM onward_workflows") == [("w",)]


@pytest.mark.parametrize("kind", ["sqlite3", "aiosqlite", "sqlalchemy", "django"])
async def test_a_connection_without_a_transaction_is_refused_and_writes_nothing(
    lab: Lab, kind: str, client: Client
) -> None:
    """What would be committed at once could not be rolled back; each driver's cure is named."""
    if kind == "sqlite3":
        with contextlib.closing(sqlite3.connect(lab.path, isolation_level=None)) as tx:
            with pytest.raises(WrongConnection, match="run BEGIN IMMEDIATE on it first"):
                client.start(flow.using(tx=tx), 1)
            assert not tx.in_transaction
    elif kind == "aiosqlite":
        async with aiosqlite.connect(lab.path, isolation_level=None) as tx2, AsyncClient(lab.url) as asynchronous:
            with pytest.raises(WrongConnection, match="run BEGIN IMMEDIATE on it first"):
                await asynchronous.start(flow.using(tx=tx2), 1)
    elif kind == "sqlalchemy":
        engine = sqlalchemy_engine(lab.path, isolation_level="AUTOCOMMIT")
        with engine.connect() as tx3, pytest.raises(WrongConnection, match="AUTOCOMMIT"):
            client.start(flow.using(tx=tx3), 1)
    else:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(_outside_atomic, lab, client).result()
    assert lab.sql("SELECT id FROM onward_workflows") == []


def _outside_atomic(lab: Lab, client: Client) -> None:
    with django_alias(ENGINE="django.db.backends.sqlite3", NAME=str(lab.path)) as alias:
        from django.db import connections

        with pytest.raises(WrongConnection, match=r"transaction\.atomic"):
            client.start(flow.using(tx=connections[alias]), 1)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sqlite3.connect(autocommit=) came with Python 3.12")
async def test_the_autocommit_attribute_of_newer_pythons_is_understood(lab: Lab, client: Client) -> None:
    connect: Any = sqlite3.connect  # its stub for older Pythons lacks the parameter
    with contextlib.closing(connect(lab.path, autocommit=True)) as tx:
        with pytest.raises(WrongConnection, match="autocommit"):
            client.start(flow.using(tx=tx), 1)
        tx.execute("BEGIN")
        client.start(flow.using(id="a", tx=tx), 1)
        tx.execute("COMMIT")
    with contextlib.closing(connect(lab.path, autocommit=False)) as tx:
        client.start(flow.using(id="b", tx=tx), 1)
        assert lab.sql("SELECT id FROM onward_workflows") == [("a",)]
        tx.commit()
    assert lab.sql("SELECT id FROM onward_workflows ORDER BY id") == [("a",), ("b",)]


async def test_a_file_without_a_schema_is_refused_and_not_migrated(tmp_path: Path) -> None:
    path = tmp_path / "bare.db"
    with Client(f"sqlite:///{path}") as client, contextlib.closing(sqlite3.connect(path)) as tx:
        tx.execute(TABLE)
        tx.execute("INSERT INTO orders VALUES ('a')")
        with pytest.raises(SchemaError, match=r"no Onward schema; run: onward migrate --url sqlite:///"):
            client.start(flow.using(tx=tx), 1)
        tx.commit()
        assert tx.execute("SELECT name FROM sqlite_schema").fetchall() == [("orders",)]
        assert tx.execute("SELECT name FROM orders").fetchall() == [("a",)]


async def test_a_schema_of_a_newer_library_is_refused(lab: Lab, client: Client, conn: sqlite3.Connection) -> None:
    lab.sql("INSERT INTO onward_migrations SELECT 9999, 'later', '99.0.0', 'x', applied_at, 'x' FROM onward_migrations")
    with pytest.raises(SchemaError, match=r"needs onward >= 99\.0\.0"):
        client.start(flow.using(tx=conn), 1)


async def test_a_connection_of_another_thread_or_a_closed_one_is_refused(
    lab: Lab, client: Client, conn: sqlite3.Connection
) -> None:
    """The statements run where the caller is; sqlite3 itself says that this is the wrong thread."""
    with pytest.raises(WrongConnection, match="thread"):
        await asyncio.to_thread(client.start, flow.using(tx=conn), 1)
    conn.close()
    with pytest.raises(WrongConnection, match="closed"):
        client.start(flow.using(tx=conn), 1)
    async with aiosqlite.connect(lab.path) as closed, AsyncClient(lab.url) as asynchronous:
        await closed.close()
        with pytest.raises(WrongConnection, match="cannot be used"):
            await asynchronous.start(flow.using(tx=closed), 1)


async def test_a_store_without_files_has_no_transactions_of_callers(conn: sqlite3.Connection) -> None:
    with Client("memory://") as client, pytest.raises(ConfigurationError, match="SQLite files"):
        client.start(flow.using(tx=conn), 1)


# ---------------------------------------------------------------------- the call


async def test_wrong_arguments_are_found_before_the_connection_is_touched(
    lab: Lab, client: Client, conn: sqlite3.Connection
) -> None:
    statements: list[str] = []
    conn.set_trace_callback(statements.append)
    with pytest.raises(TypeError):
        client.start(flow.using(tx=conn))  # type: ignore[call-overload]
    with pytest.raises(CodecError):
        client.signal("w", approved, "yes", tx=conn)  # type: ignore[misc]
    with pytest.raises(ConfigurationError):
        client.start_many([flow.using(tx=conn).bind(1), flow.bind(2)])
    with pytest.raises(ConfigurationError):
        client.start(flow.using(id="a/b", tx=conn), 1)
    lab.codec = Refusing()
    with Client(lab.url, codec=lab.codec) as refusing, pytest.raises(CodecError, match="the codec cannot encode it"):
        refusing.start(flow.using(tx=conn), 1)
    assert statements == []


class Refusing:
    """A codec that encodes nothing."""

    def encode(self, text: str) -> str:
        raise ValueError("no")

    def decode(self, text: str) -> str:
        return text


async def test_run_and_children_take_no_tx(lab: Lab, conn: sqlite3.Connection) -> None:
    @workflow
    async def parent() -> list[str]:
        refused: list[str] = []
        try:
            await flow.using(tx=conn)(1)
        except ConfigurationError as error:
            refused.append(str(error))
        try:
            await start_child(flow.using(tx=conn), 1)
        except ConfigurationError as error:
            refused.append(str(error))
        return refused

    async with lab.running(parent, flow) as client:
        assert [text[:14] for text in await (await client.start(parent)).result(timeout=10)] == ["child workflow"] * 2
        with pytest.raises(UsageError, match=r"commit, then run the same id without tx="):
            await client.run(flow.using(tx=conn), 1)


async def test_workflow_code_cannot_use_a_connection_through_a_client(lab: Lab, client: Client) -> None:
    conn = sqlite3.connect(lab.path)

    @workflow
    async def careless() -> str:
        return client.start(flow.using(tx=conn), 1).id

    with contextlib.closing(conn):
        async with lab.running(careless) as asynchronous:
            handle = await asynchronous.start(careless.using(max_attempts=1))
            with pytest.raises(WorkflowFailed) as caught:
                await handle.result(timeout=10)
    assert caught.value.type_name == NotAllowedInWorkflow.__name__


async def test_a_closed_async_client_writes_nothing(lab: Lab) -> None:
    async with AsyncClient(lab.url) as client:
        pass
    async with aiosqlite.connect(lab.path) as tx:
        with pytest.raises(ConfigurationError, match="closed"):
            await client.start(flow.using(tx=tx), 1)
        with pytest.raises(ConfigurationError, match="closed"):
            await client.signal("w", approved, True, tx=tx)


# ---------------------------------------------------------------------- what remains of the transaction


async def test_a_statement_that_fails_leaves_nothing_half_written(lab: Lab, client: Client) -> None:
    """The message of a signal whose wake fails would wait for ever: it goes too, and the transaction goes on."""
    async with lab.client() as asynchronous:
        await asynchronous.start(wait_for_approval.using(id="w"))
    with contextlib.closing(sqlite3.connect(lab.path)) as tx:
        tx.execute("CREATE TEMP TRIGGER no BEFORE UPDATE ON main.onward_workflows BEGIN SELECT RAISE(FAIL, 'no'); END")
        tx.execute("INSERT INTO orders VALUES ('a')")
        with pytest.raises(StoreConflict, match="no"):
            client.signal("w", approved, True, tx=tx)
        assert tx.in_transaction
        tx.commit()
    assert lab.sql("SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM onward_mailbox)") == [(1, 0)]


async def test_a_cancelled_call_leaves_nothing_half_written(lab: Lab) -> None:
    """Wherever the cancellation hits: the message and its wake are both in the transaction, or neither."""
    async with lab.client() as asynchronous, own(lab, "aiosqlite") as application:
        await asynchronous.start(wait_for_approval.using(id="w"))
        for number, place in enumerate(("INTO onward_mailbox", "UPDATE onward_workflows", "RELEASE", "SAVEPOINT"), 1):
            await application.order(place)
            reached, loop = asyncio.Event(), asyncio.get_running_loop()
            await application.tx.set_trace_callback(_telling(place, reached, loop))
            call = asyncio.ensure_future(application.signal("w", approved, True))
            await wait_for(reached)
            call.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await call
            await application.commit()
            [(mail, wakes, orders)] = lab.sql(
                "SELECT (SELECT count(*) FROM onward_mailbox), signals, (SELECT count(*) FROM orders) FROM onward_workflows"
            )
            assert (mail, orders) == (wakes, number)


def _telling(place: str, reached: asyncio.Event, loop: asyncio.AbstractEventLoop) -> Callable[[str], None]:
    def trace(statement: str) -> None:
        if place in statement:
            loop.call_soon_threadsafe(reached.set)

    return trace


async def test_a_transaction_that_has_read_too_early_is_told_to_run_again(lab: Lab, client: Client) -> None:
    with contextlib.closing(sqlite3.connect(lab.path, isolation_level=None)) as tx:
        tx.execute("BEGIN")
        tx.execute("SELECT * FROM orders").fetchall()
        lab.sql("INSERT INTO orders VALUES ('of another')")
        with pytest.raises(TransientStoreError, match="BEGIN IMMEDIATE") as caught:
            client.start(flow.using(id="w", tx=tx), 1)
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        tx.execute("ROLLBACK")
        tx.execute("BEGIN")
        client.start(flow.using(id="w", tx=tx), 1)
        tx.execute("COMMIT")
    assert lab.sql("SELECT id FROM onward_workflows") == [("w",)]


async def test_a_start_waits_for_another_writer_and_then_sees_what_it_wrote(lab: Lab, client: Client) -> None:
    """Nothing is read before the write lock is taken: a snapshot from before would be refused, however long one waited."""
    waits = threading.Event()
    with (
        contextlib.closing(sqlite3.connect(lab.path, timeout=60, isolation_level=None, check_same_thread=False)) as tx,
        contextlib.closing(sqlite3.connect(lab.path, isolation_level=None)) as writer,
    ):
        tx.set_trace_callback(lambda statement: waits.set() if "onward_migrations" in statement else None)
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("INSERT INTO orders VALUES ('first')")
        tx.execute("BEGIN")
        start = asyncio.ensure_future(asyncio.to_thread(client.start, flow.using(id="w", tx=tx), 1))
        await wait_for(waits)
        writer.execute("COMMIT")
        await start
        assert tx.execute("SELECT name FROM orders").fetchall() == [("first",)]
        tx.commit()
    assert lab.sql("SELECT id FROM onward_workflows") == [("w",)]


async def test_sqlalchemys_error_is_ours_and_its_transaction_goes_on(lab: Lab, client: Client) -> None:
    with sqlalchemy_engine(lab.path).connect() as tx:
        tx.exec_driver_sql(
            "CREATE TEMP TRIGGER no BEFORE INSERT ON main.onward_workflows WHEN NEW.id = 'no' BEGIN SELECT RAISE(FAIL, 'no'); END"
        )
        with pytest.raises(StoreConflict) as caught:
            client.start(flow.using(id="no", tx=tx), 1)
        assert isinstance(caught.value.__cause__, sqlite3.IntegrityError)
        client.start(flow.using(id="yes", tx=tx), 1)
        with pytest.raises(WorkflowIdConflict):
            client.start(flow.using(id="yes", tx=tx), 2)
        tx.execute(sqlalchemy.text("INSERT INTO orders VALUES ('a')"))
        tx.commit()
    assert lab.sql("SELECT id, (SELECT name FROM orders) FROM onward_workflows") == [("yes", "a")]


def test_no_driver_is_imported_for_a_plain_sqlite3_connection(tmp_path: Path) -> None:
    script = f"""
import sqlite3, sys
from onward import Client, workflow
@workflow
async def flow(n: int) -> int: return n
with Client("sqlite:///{tmp_path}/onward.db") as client:
    client.counts()
    with sqlite3.connect("{tmp_path}/onward.db") as conn:
        client.start(flow.using(tx=conn), 1)
    conn.close()
print(*sorted({{"sqlalchemy", "aiosqlite", "django", "psycopg", "asyncpg"}} & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == ""

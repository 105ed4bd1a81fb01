"""`tx=` together with everything else: workers woken by the commit, transactional steps, codecs, forks, odd settings."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import sqlite3
import threading
import warnings
from pathlib import Path

import pytest
import sqlalchemy

from onward import Client, Fail, InTransactionalStep, Signal, WorkflowFailed, step, workflow
from onward._engine import dispatcher, lease
from onward._store.sqlite import hub, shared
from onward.worker import is_worker_loop
from tests.engine.support import Lab, keys, wait_for
from tests.engine.txsupport import KINDS, lab_of, own, sqlalchemy_engine

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


# ---------------------------------------------------------------------- waking


@pytest.fixture
def no_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing looks by itself, and no worker commits anything while it is idle: what is noticed was told."""
    monkeypatch.setattr(hub, "QUIET_S", 3600.0)
    monkeypatch.setattr(dispatcher, "POLL_S", 3600.0)
    monkeypatch.setattr(lease, "RENEW_S", 3600.0)


@pytest.mark.usefixtures("no_polls")
@pytest.mark.parametrize("kind", KINDS)
async def test_the_commit_tells_whoever_listens_in_this_process(lab: Lab, kind: str) -> None:
    """Nobody else commits meanwhile: no worker runs, and the client has no connection."""
    told = asyncio.Event()
    unsubscribe = lab.store.subscribe(told.set)
    try:
        await wait_for(told)  # once at first
        async with own(lab, kind) as application:
            await application.begin()
            await application.start(flow.using(id="a", tx=application.tx).bind(7))
            told.clear()
            await application.commit()
            await wait_for(told)
    finally:
        unsubscribe()


@pytest.mark.usefixtures("no_polls")
@pytest.mark.parametrize("kind", KINDS)
async def test_the_commit_wakes_an_idle_worker_of_this_process(lab: Lab, kind: str) -> None:
    """For a start, and for a signal to a workflow that has parked."""
    async with own(lab, kind) as application, lab.working(flow, wait_for_approval):
        await application.begin()
        await application.start(flow.using(id="a", tx=application.tx).bind(7))
        await application.start(wait_for_approval.using(id="b", tx=application.tx).bind())
        await application.commit()
        await lab.in_status("a", "completed")
        await lab.parked("b", "approved")
        await application.begin()
        await application.signal("b", approved, True)
        await application.commit()
        await lab.in_status("b", "completed")


# ---------------------------------------------------------------------- transactional steps


async def test_in_a_transactional_step_effect_start_and_record_commit_together(lab: Lab) -> None:
    seen: list[object] = []
    client = Client(lab.url)

    @step(transactional=True)
    def book(conn: sqlite3.Connection, name: str) -> str:
        conn.execute("INSERT INTO orders VALUES (?)", (name,))
        handle = client.start(flow.using(id=f"ship-{name}", tx=conn), 1)
        client.signal(client.start(wait_for_approval.using(id=f"ask-{name}", tx=conn)), approved, True, tx=conn)
        seen.append(lab.sql("SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM onward_journal)"))
        seen.append(lab.sql("SELECT id FROM onward_workflows"))
        return handle.id

    @workflow
    async def order(name: str) -> str:
        return await book(name)

    async with lab.running(order, flow, wait_for_approval) as asynchronous:
        handle = await asynchronous.start(order.using(id="order"), "a")
        assert await handle.result(timeout=10) == "ship-a"
        assert keys(await handle.journal()) == ["book"]
        assert await asynchronous.handle("ship-a", flow).result(timeout=10) == 1
        assert await asynchronous.handle("ask-a", wait_for_approval).result(timeout=10) is True
    assert seen == [[(0, 0)], [("order",)]]
    assert lab.sql("SELECT name FROM orders") == [("a",)]


async def test_a_transactional_step_that_fails_starts_nothing(lab: Lab) -> None:
    client = Client(lab.url)

    @step(transactional=True)
    def book(conn: sqlite3.Connection, name: str) -> None:
        client.start(flow.using(id=f"ship-{name}", tx=conn), 1)
        conn.execute("INSERT INTO orders VALUES (?)", (name,))
        raise Fail("no")

    @workflow
    async def order(name: str) -> None:
        await book(name)

    async with lab.running(order) as asynchronous:
        with pytest.raises(WorkflowFailed):
            await (await asynchronous.start(order.using(id="order"), "a")).result(timeout=10)
    assert lab.sql("SELECT id FROM onward_workflows") == [("order",)]
    assert lab.sql("SELECT name FROM orders") == []


async def test_in_a_transactional_step_another_connection_is_refused_at_once(lab: Lab) -> None:
    """It would wait for the step's own transaction, which waits for it."""
    client = Client(lab.url)

    @step(transactional=True)
    def book(conn: sqlite3.Connection) -> str:
        with contextlib.closing(sqlite3.connect(lab.path, timeout=3600)) as another:
            try:
                client.start(flow.using(tx=another), 1)
            except InTransactionalStep as error:
                return str(error)
        return ""

    @workflow
    async def order() -> str:
        return await book()

    async with lab.running(order) as asynchronous:
        assert "using(tx=connection)" in await (await asynchronous.start(order)).result(timeout=10)


# ---------------------------------------------------------------------- codecs


class Base64:
    """A codec that one can see through."""

    def encode(self, text: str) -> str:
        return json.dumps(base64.b64encode(text.encode()).decode())

    def decode(self, text: str) -> str:
        return base64.b64decode(json.loads(text)).decode()


@pytest.mark.parametrize("kind", ["sqlite3", "aiosqlite", "psycopg", "asyncpg", "session-psycopg"])
async def test_payloads_pass_through_the_codec(lab: Lab, kind: str) -> None:
    lab.codec = Base64()
    async with own(lab, kind) as application:
        await application.begin()
        await application.start(flow.using(id="a", tx=application.tx).bind(7))
        assert not (await application.start(flow.using(id="a", tx=application.tx).bind(7))).created
        await application.start(wait_for_approval.using(id="b", tx=application.tx).bind())
        await application.signal("b", approved, True)
        await application.commit()
        stored = lab.sql(
            "SELECT CAST(payload AS text) FROM onward_workflows WHERE id = 'a' "
            "UNION SELECT CAST(payload AS text) FROM onward_mailbox"
        )
        assert all(payload.startswith('"') for (payload,) in stored)
        async with lab.running(flow, wait_for_approval) as client:
            assert await client.handle("a", flow).result(timeout=10) == 7
            assert await client.handle("b", wait_for_approval).result(timeout=10) is True


# ---------------------------------------------------------------------- threads, loops, processes


async def test_the_blocking_clients_statements_run_on_the_callers_thread(lab: Lab) -> None:
    threads: set[int] = set()
    with contextlib.closing(sqlite3.connect(lab.path, check_same_thread=False)) as tx, Client(lab.url) as client:
        tx.set_trace_callback(lambda _: threads.add(threading.get_ident()))
        client.start(flow.using(id="w", tx=tx), 1)
        client.signal("w", approved, True, tx=tx)
        client.handle("w").cancel(tx=tx)
        tx.rollback()
    assert threads == {threading.get_ident()}


async def test_on_the_loop_of_a_worker_the_blocking_client_may_use_a_connection_of_the_callers(lab: Lab) -> None:
    """It waits for nothing there but the connection, as the caller does with its own statements."""
    with contextlib.closing(sqlite3.connect(lab.path)) as tx:
        client = Client(lab.url)
        async with lab.working(flow):
            assert is_worker_loop(asyncio.get_running_loop())
            client.start(flow.using(id="w", tx=tx), 1)
            tx.commit()
            await lab.in_status("w", "completed")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_writes_with_its_own_connection(sqlite_lab: Lab) -> None:
    lab = sqlite_lab
    with Client(lab.url) as client, contextlib.closing(sqlite3.connect(":memory:")) as own_of_parent:
        client.counts()
        with contextlib.suppress(Exception):
            client.start(flow.using(tx=own_of_parent), 1)
        with shared._files_lock, warnings.catch_warnings():  # as if another thread of the parent had it just now
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads at a fork: the very case
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    with contextlib.closing(sqlite3.connect(lab.path)) as tx, tx:
                        client.start(flow.using(id="of the child", tx=tx), 1)
                    status = 0
                finally:
                    os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        assert client.handle("of the child").status() == "pending"


# ---------------------------------------------------------------------- settings of the connection


async def test_factories_and_settings_of_the_connection_are_the_applications_own(lab: Lab) -> None:
    with contextlib.closing(sqlite3.connect(lab.path, detect_types=sqlite3.PARSE_COLNAMES)) as tx:
        tx.row_factory = lambda cursor, row: {
            column[0]: value for column, value in zip(cursor.description, row, strict=True)
        }
        tx.text_factory = bytes
        with Client(lab.url) as client:
            assert client.start(flow.using(id="w", tx=tx), 1).created
            assert not client.start(flow.using(id="w", tx=tx), 1).created
            client.signal("w", approved, True, tx=tx)
            assert client.handle("w").cancel(tx=tx)
        assert tx.execute("SELECT 'x' AS name").fetchone() == {"name": b"x"}
        tx.commit()
    assert lab.sql("SELECT status FROM onward_workflows") == [("cancelled",)]


async def test_an_engine_of_sqlalchemy_that_says_begin_itself_is_as_good(lab: Lab) -> None:
    engine = sqlalchemy_engine(lab.path)

    @sqlalchemy.event.listens_for(engine, "connect")
    def leave_transactions_to_us(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None

    @sqlalchemy.event.listens_for(engine, "begin")
    def begin(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    with Client(lab.url) as client:
        with engine.begin() as tx:
            client.start(flow.using(id="a", tx=tx), 1)
        with contextlib.suppress(ZeroDivisionError), engine.begin() as tx:
            client.start(flow.using(id="b", tx=tx), 1)
            _ = 1 / 0
    assert lab.sql("SELECT id FROM onward_workflows") == [("a",)]


async def test_a_savepoint_of_the_application_takes_a_start_back_alone(lab: Lab) -> None:
    with sqlalchemy_engine(lab.path).connect() as tx, Client(lab.url) as client:
        client.start(flow.using(id="a", tx=tx), 1)
        with contextlib.suppress(ZeroDivisionError), tx.begin_nested():
            client.start(flow.using(id="b", tx=tx), 1)
            _ = 1 / 0
        tx.commit()
    assert lab.sql("SELECT id FROM onward_workflows") == [("a",)]


async def test_options_of_a_start_are_stored_as_without_a_transaction(lab: Lab) -> None:
    """Only the times differ: they count from the call."""
    columns = "type, queue, priority, partition, tags, max_attempts, timeout_us, status, epoch, digest, payload, next_run_at - created_at"
    special = flow.using(queue="q", priority=3, partition="p", tags={"a": "b"}, max_attempts=2, timeout=60, delay=5)
    async with lab.client() as client:
        await client.start(special.using(id="plain"), 1)
    with contextlib.closing(sqlite3.connect(lab.path)) as tx, tx, Client(lab.url) as blocking:
        blocking.start(special.using(id="within", tx=tx), 1)
    [plain, within] = lab.sql(f"SELECT {columns} FROM onward_workflows ORDER BY id")
    assert plain == within

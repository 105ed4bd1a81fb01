"""Transactional steps: the body's writes and its journal entry commit together or not at all."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from onward._store.base import TransactionTimedOut
from onward._store.operations import Fence, JournalOp, ReleaseOp, StartOp
from onward._store.sqlite.connection import connect
from onward._store.sqlite.store import SqliteStore
from onward.errors import FatalStoreError, InTransactionalStep, LeaseLost, OutcomeUnknown, UsageError
from tests.conformance.support import SqliteWorld, claim_one, entry, new, one, record, request, row, started_and_claimed


class Stepping:
    """A store with a user's table and a held workflow, and a short way to run a body."""

    def __init__(self, world: SqliteWorld, store: SqliteStore, fence: Fence) -> None:
        self.world = world
        self.store = store
        self.fence = fence

    async def run(self, body: Callable[[sqlite3.Connection], Any], *, limit_s: float = 5.0, **options: Any) -> Any:
        def finish(result: object) -> JournalOp:
            return JournalOp(self.fence, (entry(1, "load"),), step="load")

        return await self.store.run_transaction(self.fence, body, finish, limit_s=limit_s, **options)

    def rows(self) -> list[Any]:
        conn = sqlite3.connect(self.world.path)
        try:
            return [value for (value,) in conn.execute("SELECT x FROM items ORDER BY x")]
        finally:
            conn.close()

    async def assert_nothing_happened(self) -> None:
        assert self.rows() == []
        assert await self.store.journal("a") == []
        await record(self.store, self.fence, entry(1))  # the writer is free again


@asynccontextmanager
async def stepping(world: SqliteWorld) -> AsyncIterator[Stepping]:
    conn = sqlite3.connect(world.path)
    conn.execute("CREATE TABLE items (x INTEGER CHECK (x < 1000))")
    conn.close()
    store = await world.open()
    assert isinstance(store, SqliteStore)
    world.worker(store)
    yield Stepping(world, store, await started_and_claimed(store))


async def test_the_bodys_writes_and_the_entry_commit_together(world: SqliteWorld) -> None:
    async with stepping(world) as stepper:

        def body(conn: sqlite3.Connection) -> str:
            conn.executemany("INSERT INTO items VALUES (?)", [(1,), (2,)])
            return "value"

        assert await stepper.run(body) == "value"
        assert stepper.rows() == [1, 2]
        assert [found.key for found in await stepper.store.journal("a")] == ["load"]


async def test_an_error_of_the_body_rolls_back_and_arrives_as_it_is(world: SqliteWorld) -> None:
    async with stepping(world) as stepper:
        mine = ValueError("mine")

        def body(conn: sqlite3.Connection) -> None:
            conn.execute("INSERT INTO items VALUES (1)")
            raise mine

        with pytest.raises(ValueError) as caught:
            await stepper.run(body)
        assert caught.value is mine
        await stepper.assert_nothing_happened()


@pytest.mark.parametrize("sql", ["INSERT INTO items VALUES (5000)", "SELECT * FROM nowhere", "not sql"])
async def test_a_database_error_of_the_body_is_the_users_own(world: SqliteWorld, sql: str) -> None:
    async with stepping(world) as stepper:
        with pytest.raises(sqlite3.Error):
            await stepper.run(lambda conn: conn.execute(sql))
        await stepper.assert_nothing_happened()


async def test_a_constraint_that_fails_at_the_commit_is_the_users_own(world: SqliteWorld) -> None:
    async with stepping(world) as stepper:
        conn = sqlite3.connect(world.path)
        conn.execute("CREATE TABLE parts (id INTEGER PRIMARY KEY)")
        conn.execute("CREATE TABLE uses (part REFERENCES parts DEFERRABLE INITIALLY DEFERRED)")
        conn.close()

        def body(conn: sqlite3.Connection) -> None:
            conn.execute("INSERT INTO uses VALUES (7)")

        def with_keys(path: object, **options: Any) -> sqlite3.Connection:
            conn = connect(path, **options)  # type: ignore[arg-type]
            conn.execute("PRAGMA foreign_keys = ON")
            return conn

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("onward._store.sqlite.steps.connect", with_keys)
            with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
                await stepper.run(body)
        await stepper.assert_nothing_happened()


async def test_a_lost_lease_keeps_the_body_from_running(world: SqliteWorld) -> None:
    async with stepping(world) as stepper:
        await one(stepper.store, ReleaseOp(stepper.fence))
        await claim_one(stepper.store)
        ran: list[object] = []
        with pytest.raises(LeaseLost):
            await stepper.run(ran.append)
        assert ran == []


@pytest.mark.parametrize("sql", ["BEGIN", "COMMIT", "ROLLBACK", "END", "BEGIN IMMEDIATE"])
async def test_the_body_cannot_end_its_transaction_by_sql(world: SqliteWorld, sql: str) -> None:
    async with stepping(world) as stepper:

        def body(conn: sqlite3.Connection) -> None:
            conn.execute("INSERT INTO items VALUES (1)")
            conn.execute(sql)

        with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
            await stepper.run(body)
        await stepper.assert_nothing_happened()


@pytest.mark.parametrize(
    "call", ["commit", "rollback", "close", "executescript", "with", "set_authorizer", "set_progress_handler"]
)
async def test_the_body_cannot_end_its_transaction_by_a_method(world: SqliteWorld, call: str) -> None:
    async with stepping(world) as stepper:

        def body(conn: sqlite3.Connection) -> None:
            conn.execute("INSERT INTO items VALUES (1)")
            match call:
                case "with":
                    with conn:
                        pass
                case "executescript":
                    conn.executescript("SELECT 1")
                case "set_authorizer":
                    conn.set_authorizer(None)
                case "set_progress_handler":
                    conn.set_progress_handler(None, 0)
                case _:
                    getattr(conn, call)()

        with pytest.raises(UsageError, match=r"refused in a transactional step: .*SAVEPOINT"):
            await stepper.run(body)
        await stepper.assert_nothing_happened()


async def test_savepoints_are_allowed(world: SqliteWorld) -> None:
    async with stepping(world) as stepper:

        def body(conn: sqlite3.Connection) -> None:
            conn.execute("INSERT INTO items VALUES (1)")
            conn.execute("SAVEPOINT s")
            conn.execute("INSERT INTO items VALUES (2)")
            conn.execute("ROLLBACK TO s")
            conn.execute("RELEASE s")

        await stepper.run(body)
        assert stepper.rows() == [1]


async def test_a_statement_that_rolls_back_by_itself_records_nothing(world: SqliteWorld) -> None:
    async with stepping(world) as stepper:

        def body(conn: sqlite3.Connection) -> None:
            conn.execute("INSERT INTO items VALUES (1)")
            try:
                conn.execute("INSERT OR ROLLBACK INTO items VALUES (5000)")
            except sqlite3.IntegrityError:
                pass

        with pytest.raises(UsageError, match="rolled back by one of its own statements"):
            await stepper.run(body)
        await stepper.assert_nothing_happened()


async def test_what_a_body_sets_on_its_connection_ends_with_it(world: SqliteWorld) -> None:
    async with stepping(world) as stepper:

        def body(conn: sqlite3.Connection) -> object:
            conn.row_factory = sqlite3.Row
            conn.text_factory = bytes
            conn.isolation_level = "EXCLUSIVE"
            conn.set_trace_callback(lambda sql: None)
            conn.execute("CREATE TEMP TABLE mine (x)")
            return conn.execute("SELECT 1 AS one").fetchone()["one"]

        assert await stepper.run(body) == 1
        assert [found.key for found in await stepper.store.journal("a")] == ["load"]
        stepper.fence = await started_and_claimed(stepper.store, "b")
        names = await stepper.run(lambda conn: conn.execute("SELECT name FROM sqlite_temp_schema").fetchall())
        assert names == []


async def test_long_sql_is_interrupted_at_the_limit(world: SqliteWorld) -> None:
    async with stepping(world) as stepper:
        endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
        before = time.monotonic()
        with pytest.raises(TransactionTimedOut, match=r"only writer for 0\.1 s"):
            await stepper.run(lambda conn: conn.execute(endless).fetchone(), limit_s=0.1)
        assert time.monotonic() - before < 5
        await stepper.assert_nothing_happened()


async def test_many_short_statements_are_interrupted_too(world: SqliteWorld) -> None:
    async with stepping(world) as stepper:

        def body(conn: sqlite3.Connection) -> None:
            while True:
                conn.execute("INSERT INTO items VALUES (1)")

        with pytest.raises(TimeoutError):
            await stepper.run(body, limit_s=0.1)
        await stepper.assert_nothing_happened()


async def test_many_different_short_statements_are_refused_after_the_limit(world: SqliteWorld) -> None:
    async with stepping(world) as stepper:

        def body(conn: sqlite3.Connection) -> None:
            for number in itertools.count():
                conn.execute(f"INSERT INTO items VALUES (1) -- {number}")

        with pytest.raises(TimeoutError):
            await stepper.run(body, limit_s=0.1)
        await stepper.assert_nothing_happened()


async def test_time_spent_outside_of_sql_counts_as_well(world: SqliteWorld) -> None:
    async with stepping(world) as stepper:
        released = threading.Event()

        def body(conn: sqlite3.Connection) -> None:
            conn.execute("INSERT INTO items VALUES (1)")
            released.wait(0.2)

        with pytest.raises(TransactionTimedOut):
            await stepper.run(body, limit_s=0.05)
        await stepper.assert_nothing_happened()


async def test_a_client_on_the_same_file_is_refused_inside_the_body_with_the_cure(world: SqliteWorld) -> None:
    async with stepping(world) as stepper:
        client = await world.open()
        loop = asyncio.get_running_loop()

        def body(conn: sqlite3.Connection) -> None:
            # what the blocking client does: hand a coroutine to its loop, in this thread's context
            asyncio.run_coroutine_threadsafe(client.write([StartOp(new("b"))]), loop).result(5)

        with pytest.raises(InTransactionalStep, match="use the connection given to the step"):
            await stepper.run(body)
        with pytest.raises(InTransactionalStep):
            await stepper.run(
                lambda conn: asyncio.run_coroutine_threadsafe(client.claim(request()), loop).result(5),
                context=contextvars.copy_context(),
            )
        await stepper.assert_nothing_happened()
        assert await client.get("b") is None


async def test_reads_are_allowed_inside_the_body_and_see_what_is_committed(world: SqliteWorld) -> None:
    async with stepping(world) as stepper:
        loop = asyncio.get_running_loop()

        def body(conn: sqlite3.Connection) -> object:
            conn.execute("DELETE FROM onward_workflows")
            conn.execute("SAVEPOINT one")
            found = asyncio.run_coroutine_threadsafe(row(stepper.store), loop).result(5)
            raise ValueError(found.status)

        with pytest.raises(ValueError, match="running"):
            await stepper.run(body)


async def test_the_body_runs_in_the_context_it_is_given(world: SqliteWorld) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
    async with stepping(world) as stepper:
        context = contextvars.Context()
        context.run(variable.set, "mine")
        assert await stepper.run(lambda conn: variable.get(), context=context) == "mine"


async def test_the_probes_lie_on_both_sides_of_the_commit(world: SqliteWorld) -> None:
    async with stepping(world) as stepper:
        seen: list[tuple[str, int]] = []
        stepper.store._database.probe = lambda point: seen.append((point, len(stepper.rows())))
        await stepper.run(lambda conn: conn.execute("INSERT INTO items VALUES (1)"))
        assert seen == [("step:before-commit", 0), ("step:after-commit", 1)]


async def test_a_lost_reply_of_the_commit_is_unknown_and_the_journal_tells(world: SqliteWorld) -> None:
    async with stepping(world) as stepper:
        from onward._store.sqlite import steps

        class Reply(steps.StepConnection):
            def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
                cursor = super().execute(sql, parameters)
                if sql == "COMMIT":
                    error = sqlite3.OperationalError("disk I/O error")
                    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
                    raise error
                return cursor

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(steps, "StepConnection", Reply)
            with pytest.raises(OutcomeUnknown):
                await stepper.run(lambda conn: conn.execute("INSERT INTO items VALUES (1)") and None)
        assert len(await stepper.store.journal("a")) == len(stepper.rows()) == 1


async def test_a_file_that_is_gone_is_a_storage_error(world: SqliteWorld) -> None:
    async with stepping(world) as stepper:
        world.path.rename(world.path.with_suffix(".moved"))
        with pytest.raises(FatalStoreError):
            await stepper.run(lambda conn: None)

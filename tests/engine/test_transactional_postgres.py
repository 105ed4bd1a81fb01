"""Transactional steps on PostgreSQL: what the body writes commits with its entry, or not at all; blocking and async bodies."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from onward import CodecError, Retry, StepFailed, StepTimedOut, UsageError, WorkflowFailed, call, step, workflow
from tests.engine.support import MODES, Lab, keys, wait_for
from tests.postgres.server import connection

AnyConnection = psycopg.Connection[Any]
AsyncConnection = psycopg.AsyncConnection[Any]


class Items:
    """A table of the application's own, in the schema of the lab."""

    def __init__(self, lab: Lab) -> None:
        assert lab.schema is not None
        self.table = f"{lab.schema}_items"

    def insert(self, name: str) -> str:
        return f"INSERT INTO {self.table} VALUES ('{name}')"

    def names(self) -> list[str]:
        with connection() as conn:
            return [name for (name,) in conn.execute(f"SELECT name FROM {self.table} ORDER BY name")]


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(MODES["postgres"], tmp_path / "onward.db")


@pytest.fixture
def items(lab: Lab) -> Iterator[Items]:
    found = Items(lab)
    with connection() as conn:
        conn.execute(f"CREATE TABLE {found.table} (name text PRIMARY KEY)")
        yield found
        conn.execute(f"DROP TABLE {found.table}")


async def test_what_a_blocking_body_writes_is_there_with_the_entry_and_not_before(lab: Lab, items: Items) -> None:
    seen: list[list[str]] = []

    @step(transactional=True)
    def load(conn: AnyConnection, name: str) -> int:
        conn.execute(items.insert(name))
        seen.append(items.names())
        return int(conn.execute(f"SELECT count(*) FROM {items.table}").fetchone()[0])  # type: ignore[index]

    @workflow
    async def flow() -> list[int]:
        return [await load("a"), await load("b")]

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        assert await handle.result(timeout=10) == [1, 2]
        assert [(entry.key, entry.result) for entry in await handle.journal()] == [("load", 1), ("load#2", 2)]
    assert (seen, items.names()) == ([[], ["a"]], ["a", "b"])


async def test_an_async_body_gets_an_async_connection_on_the_workers_loop(lab: Lab, items: Items) -> None:
    places: list[bool] = []

    @step(transactional=True)
    async def load(conn: AsyncConnection, name: str) -> str:
        await conn.execute(items.insert(name))
        async with conn.transaction():
            await conn.execute(items.insert(f"{name}{name}"))
        places.append(threading.current_thread() is threading.main_thread())
        return name.upper()

    @workflow
    async def flow() -> list[str]:
        return list(await asyncio.gather(load("a"), load("b")))

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        assert await handle.result(timeout=10) == ["A", "B"]
        assert sorted(keys(await handle.journal())) == ["load", "load#2"]
    assert items.names() == ["a", "aa", "b", "bb"]
    assert places == [True, True]


@pytest.mark.parametrize("kind", ["blocking", "async"])
async def test_an_error_rolls_everything_back_and_counts_as_a_try(lab: Lab, items: Items, kind: str) -> None:
    bodies: list[str] = []

    def outcome() -> str:
        bodies.append("load")
        if len(bodies) == 1:
            raise ValueError("no")
        return "ok"

    @step(transactional=True, retry=Retry(tries=2, delay=0.001))
    def blocking(conn: AnyConnection) -> str:
        conn.execute(items.insert("a"))
        return outcome()

    @step(transactional=True, retry=Retry(tries=2, delay=0.001))
    async def asynchronous(conn: AsyncConnection) -> str:
        await conn.execute(items.insert("a"))
        return outcome()

    @workflow
    async def flow() -> str:
        return await (blocking() if kind == "blocking" else asynchronous())

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        assert await handle.result(timeout=10) == "ok"
        [entry] = await handle.journal()
    assert entry.tries == 2
    assert items.names() == ["a"]


@pytest.mark.parametrize("words", ["COMMIT", "  -- so\n commit;", "rollback", "ROLLBACK WORK", "BEGIN", "END", "abort"])
async def test_a_body_cannot_end_its_transaction(lab: Lab, items: Items, words: str) -> None:
    @step(transactional=True)
    def load(conn: AnyConnection) -> None:
        conn.execute(items.insert("a"))
        conn.execute(words)

    @workflow
    async def flow() -> None:
        await load()

    async with lab.running(flow) as client:
        with pytest.raises(WorkflowFailed, match="refused in a transactional step") as caught:
            await (await client.start(flow.using(max_attempts=1))).result(timeout=10)
    assert caught.value.type_name == StepFailed.__name__ or UsageError.__name__ in str(caught.value)
    assert items.names() == []


@pytest.mark.parametrize("method", ["commit", "rollback", "close", "__enter__"])
async def test_what_psycopg_offers_to_end_it_is_refused(lab: Lab, items: Items, method: str) -> None:
    refused: list[str] = []

    @step(transactional=True)
    def load(conn: AnyConnection) -> None:
        conn.execute(items.insert("a"))
        with pytest.raises(UsageError) as caught:
            getattr(conn, method)()
        refused.append(str(caught.value))

    @workflow
    async def flow() -> None:
        await load()

    async with lab.running(flow) as client:
        await (await client.start(flow)).result(timeout=10)
    assert len(refused) == 1
    assert items.names() == ["a"]


async def test_a_transaction_ended_behind_our_back_is_found_out_and_recorded_as_no_step(lab: Lab, items: Items) -> None:
    @step(transactional=True)
    def load(conn: AnyConnection) -> None:
        conn.execute(items.insert("a") + "; COMMIT; BEGIN")

    @workflow
    async def flow() -> None:
        await load()

    async with lab.running(flow) as client:
        handle = await client.start(flow.using(max_attempts=1))
        with pytest.raises(WorkflowFailed, match="ended by one of its own statements"):
            await handle.result(timeout=10)


async def test_a_savepoint_rolled_back_leaves_the_rest_of_the_body_in_force(lab: Lab, items: Items) -> None:
    @step(transactional=True)
    def load(conn: AnyConnection) -> None:
        conn.execute(items.insert("a"))
        with pytest.raises(psycopg.errors.UniqueViolation), conn.transaction():
            conn.execute(items.insert("a"))
        conn.execute(items.insert("b"))

    @workflow
    async def flow() -> None:
        await load()

    async with lab.running(flow) as client:
        await (await client.start(flow)).result(timeout=10)
    assert items.names() == ["a", "b"]


@pytest.mark.parametrize("kind", ["blocking", "async"])
async def test_a_transaction_that_could_not_be_serialized_is_run_again_without_spending_a_try(
    lab: Lab, items: Items, kind: str
) -> None:
    bodies: list[str] = []
    count = f"SELECT count(*) FROM {items.table}"

    def intrude() -> None:
        bodies.append("load")
        if len(bodies) == 1:  # another serializable transaction reads what we write, and writes what we have read
            with connection() as conn, conn.transaction():
                conn.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
                conn.execute(count)
                conn.execute(items.insert("other"))

    @step(transactional=True)
    def blocking(conn: AnyConnection) -> int:
        conn.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        seen = conn.execute(count).fetchone()
        intrude()
        conn.execute(items.insert(f"mine{len(bodies)}"))
        return int(seen[0])  # type: ignore[index]

    @step(transactional=True)
    async def asynchronous(conn: AsyncConnection) -> int:
        await conn.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        seen = await (await conn.execute(count)).fetchone()
        intrude()
        await conn.execute(items.insert(f"mine{len(bodies)}"))
        return int(seen[0])  # type: ignore[index]

    @workflow
    async def flow() -> int:
        return await (blocking() if kind == "blocking" else asynchronous())

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        assert await handle.result(timeout=10) == 1
        [entry] = await handle.journal()
    assert (len(bodies), entry.tries) == (2, 1)
    assert items.names() == ["mine2", "other"]


async def test_a_deferred_constraint_that_fails_at_the_commit_is_the_steps_own_error(lab: Lab, items: Items) -> None:
    with connection() as conn:
        conn.execute(f"ALTER TABLE {items.table} ADD COLUMN twin text UNIQUE DEFERRABLE INITIALLY DEFERRED")

    @step(transactional=True)
    def load(conn: AnyConnection) -> None:
        conn.execute(f"INSERT INTO {items.table} VALUES ('a', 'x'), ('b', 'x')")

    @workflow
    async def flow() -> str:
        try:
            await load()
        except StepFailed as error:
            return error.type_name
        return "committed"

    async with lab.running(flow) as client:
        assert await (await client.start(flow)).result(timeout=10) == "UniqueViolation"
    assert items.names() == []


@pytest.mark.parametrize("kind", ["blocking", "async"])
async def test_the_commit_waits_for_the_disk_whatever_the_body_has_set(lab: Lab, items: Items, kind: str) -> None:
    """A deferred trigger tells what the COMMIT itself is run with."""
    with connection() as conn:
        conn.execute(f"""
            CREATE FUNCTION {items.table}_tell() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                UPDATE {items.table} SET name = current_setting('synchronous_commit');
                RETURN NULL;
            END $$;
            CREATE CONSTRAINT TRIGGER tell AFTER INSERT ON {items.table} DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW EXECUTE FUNCTION {items.table}_tell();
        """)

    @step(transactional=True)
    def load(conn: AnyConnection) -> None:
        conn.execute("SET synchronous_commit = off")
        conn.execute(items.insert("a"))

    @step(transactional=True)
    async def load_async(conn: AsyncConnection) -> None:
        await conn.execute("SET synchronous_commit = off")
        await conn.execute(items.insert("a"))

    @workflow
    async def flow() -> None:
        await (load() if kind == "blocking" else load_async())

    async with lab.running(flow) as client:
        await (await client.start(flow)).result(timeout=10)
    assert items.names() == ["on"]
    with connection() as conn:
        conn.execute(f"DROP FUNCTION {items.table}_tell CASCADE")


async def test_a_body_that_runs_too_long_is_stopped_and_rolled_back(lab: Lab, items: Items) -> None:
    @step(transactional=True, timeout=0.2)
    def blocking(conn: AnyConnection) -> None:
        conn.execute(items.insert("a"))
        conn.execute("SELECT pg_sleep(60)")

    @step(transactional=True, timeout=0.2)
    async def asynchronous(conn: AsyncConnection) -> None:
        await conn.execute(items.insert("b"))
        await asyncio.sleep(60)

    @workflow
    async def flow() -> list[str]:
        ends: list[str] = []
        for one in (blocking, asynchronous):
            try:
                await one()
            except StepTimedOut:
                ends.append("timed out")
        return ends

    async with lab.running(flow) as client:
        assert await (await client.start(flow)).result(timeout=15) == ["timed out", "timed out"]
    assert items.names() == []


async def test_a_step_whose_workflow_was_taken_over_meanwhile_leaves_nothing(lab: Lab, items: Items) -> None:
    ran, go_on = threading.Event(), threading.Event()
    bodies: list[int] = []

    @step(transactional=True)
    def load(conn: AnyConnection) -> int:
        bodies.append(1)
        conn.execute(items.insert(f"a{len(bodies)}"))
        if len(bodies) == 1:
            ran.set()
            go_on.wait(10)
        return len(bodies)

    @workflow
    async def flow() -> int:
        return await load()

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await wait_for(ran)
        with connection() as conn:  # as a burial does
            conn.execute(
                f"UPDATE {lab.schema}.workflows SET status = 'pending', worker = NULL, epoch = epoch + 1, "
                "next_run_at = clock_timestamp()"
            )
        go_on.set()
        assert await handle.result(timeout=10) == 2
    assert items.names() == ["a2"]


async def test_what_a_body_sets_on_its_connection_ends_with_it(lab: Lab, items: Items) -> None:
    @step(transactional=True)
    def spoil(conn: AnyConnection) -> None:
        conn.execute("SET search_path = pg_temp")
        conn.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
        conn.row_factory = psycopg.rows.dict_row

    @step(transactional=True)
    def look(conn: AnyConnection) -> str:
        conn.execute(items.insert("a"))
        return str(conn.execute("SHOW search_path").fetchone()[0])  # type: ignore[index]

    @workflow
    async def flow() -> str:
        await spoil()
        return await look()

    async with lab.running(flow) as client:
        assert "public" in await (await client.start(flow)).result(timeout=10)


async def test_a_result_that_cannot_be_encoded_rolls_back_and_fails_at_once(lab: Lab, items: Items) -> None:
    bodies: list[int] = []

    @step(transactional=True)
    def load(conn: AnyConnection) -> float:
        bodies.append(1)
        conn.execute(items.insert("a"))
        return float("nan")

    @workflow
    async def flow() -> None:
        await load()

    async with lab.running(flow) as client:
        with pytest.raises(WorkflowFailed) as caught:
            await (await client.start(flow)).result(timeout=10)
    assert caught.value.type_name == CodecError.__name__
    assert (bodies, items.names()) == ([1], [])


async def test_a_client_may_write_while_a_body_holds_its_transaction(lab: Lab, items: Items) -> None:
    @step(transactional=True)
    async def load(conn: AsyncConnection) -> str:
        await conn.execute(items.insert("a"))
        async with lab.client() as client:
            return await (await client.start(other)).result(timeout=10)

    @workflow
    async def other() -> str:
        return await call(lambda: "other")

    @workflow
    async def flow() -> str:
        return await load()

    async with lab.running(flow, other) as client:
        assert await (await client.start(flow)).result(timeout=15) == "other"
    assert items.names() == ["a"]

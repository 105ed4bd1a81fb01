"""Transactional steps on SQLite: what the body writes commits with its entry, or not at all."""

from __future__ import annotations

import asyncio
import sqlite3
import time

import pytest

from onward import (
    CodecError,
    InTransactionalStep,
    Retry,
    StepFailed,
    StepTimedOut,
    UsageError,
    WorkflowFailed,
    call,
    step,
    workflow,
)
from onward.client import Client
from onward.errors import DefinitionError
from tests.engine import wrong_flows
from tests.engine.support import Lab, keys, turns, wait_for


@pytest.fixture
def lab(sqlite_lab: Lab) -> Lab:
    """A file with a table of the application's own."""
    sqlite_lab.sql("PRAGMA journal_mode = WAL")
    sqlite_lab.sql("CREATE TABLE items (name TEXT PRIMARY KEY)")
    return sqlite_lab


async def test_what_the_body_writes_is_there_with_the_entry(lab: Lab) -> None:
    seen: list[tuple[object, ...]] = []

    @step(transactional=True)
    def load(conn: sqlite3.Connection, name: str) -> int:
        conn.execute("INSERT INTO items VALUES (?)", (name,))
        seen.extend(lab.sql("SELECT count(*) FROM items"))  # nobody else sees it yet
        return int(conn.execute("SELECT count(*) FROM items").fetchone()[0])

    @workflow
    async def flow() -> list[int]:
        return [await load("a"), await load("b")]

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        assert await handle.result(timeout=10) == [1, 2]
        assert [(entry.seq, entry.key, entry.result) for entry in await handle.journal()] == [
            (1, "load", 1),
            (2, "load#2", 2),
        ]
    assert seen == [(0,), (1,)]
    assert lab.sql("SELECT name FROM items ORDER BY name") == [("a",), ("b",)]


async def test_an_error_rolls_everything_back_and_counts_as_a_try(lab: Lab) -> None:
    bodies: list[str] = []

    @step(transactional=True, retry=Retry(tries=2, delay=0.001))
    def load(conn: sqlite3.Connection) -> str:
        bodies.append("load")
        conn.execute("INSERT INTO items VALUES ('a')")
        if len(bodies) == 1:
            raise ValueError("no")
        return "ok"

    @workflow
    async def flow() -> str:
        return await load()

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        assert await handle.result(timeout=10) == "ok"
        [entry] = await handle.journal()
    assert entry.tries == 2
    assert lab.sql("SELECT name FROM items") == [("a",)]


async def test_after_its_last_try_the_bodys_error_arrives_like_any_steps(lab: Lab) -> None:
    @step(transactional=True)
    def load(conn: sqlite3.Connection) -> None:
        conn.execute("INSERT INTO items VALUES ('a')")
        raise ValueError("no")

    @workflow
    async def flow() -> str:
        try:
            await load()
        except StepFailed as error:
            return error.type_name
        return ""

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        assert await handle.result(timeout=10) == "ValueError"
        assert keys(await handle.journal()) == ["load"]
    assert lab.sql("SELECT name FROM items") == []


@pytest.mark.parametrize("statement", ["BEGIN", "COMMIT", "ROLLBACK", "commit()"])
async def test_a_body_cannot_end_its_transaction(lab: Lab, statement: str) -> None:
    @step(transactional=True)
    def load(conn: sqlite3.Connection) -> None:
        conn.execute("INSERT INTO items VALUES ('a')")
        if statement == "commit()":
            conn.commit()
        else:
            conn.execute(statement)

    @workflow
    async def flow() -> str:
        try:
            await load()
        except StepFailed as error:
            return error.type_name
        return ""

    async with lab.running(flow) as client:
        name = await (await client.start(flow)).result(timeout=10)
    assert name == (UsageError.__name__ if statement == "commit()" else "DatabaseError")
    assert lab.sql("SELECT name FROM items") == []


async def test_a_body_that_holds_the_writer_too_long_is_interrupted_and_rolled_back(lab: Lab) -> None:
    @step(transactional=True, timeout=0.05)
    def load(conn: sqlite3.Connection) -> None:
        conn.execute("INSERT INTO items VALUES ('a')")
        conn.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
        ).fetchone()

    @workflow
    async def flow() -> str:
        try:
            await load()
        except StepTimedOut as error:
            return error.message
        return ""

    async with lab.running(flow) as client:
        assert "0.05 s" in await (await client.start(flow)).result(timeout=10)
    assert lab.sql("SELECT name FROM items") == []


async def test_a_client_write_inside_a_body_raises_with_the_cure(lab: Lab) -> None:
    @workflow
    async def other() -> None:
        return

    @step(transactional=True)
    def load(conn: sqlite3.Connection) -> str:
        with Client(lab.url) as client:
            try:
                client.start(other)
            except InTransactionalStep as error:
                return str(error)
        return "started"

    @workflow
    async def flow() -> str:
        return await load()

    async with lab.running(flow) as client:
        assert "use the connection given to the step" in await (await client.start(flow)).result(timeout=10)


async def test_a_client_that_was_first_used_inside_a_body_can_write_afterwards(lab: Lab) -> None:
    client = Client(lab.url)

    @step(transactional=True)
    def load(conn: sqlite3.Connection) -> int:
        return sum(client.counts().values())

    @step
    def start_one() -> str:
        return client.start(other.using(id="x")).id

    @workflow
    async def other() -> None:
        return

    @workflow
    async def flow() -> tuple[int, str]:
        return await load(), await start_one()

    async with lab.running(flow) as asynchronous:
        assert await (await asynchronous.start(flow)).result(timeout=5) == (1, "x")
    client.close()


async def test_what_other_steps_return_meanwhile_waits_and_is_numbered_after_it(lab: Lab) -> None:
    begun = asyncio.Event()
    finish_sibling = asyncio.Event()

    @step
    async def sibling() -> str:
        await finish_sibling.wait()
        return "sibling"

    @step(transactional=True)
    def load(conn: sqlite3.Connection) -> str:
        conn.execute("INSERT INTO items VALUES ('a')")
        loop.call_soon_threadsafe(finish_sibling.set)
        loop.call_soon_threadsafe(begun.set)
        time.sleep(0.03)
        return "load"

    @workflow
    async def flow() -> list[str]:
        return list(await asyncio.gather(sibling(), load()))

    loop = asyncio.get_running_loop()
    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await wait_for(begun)
        await turns()
        assert keys(await handle.journal()) == []
        assert await handle.result(timeout=10) == ["sibling", "load"]
        assert [(entry.seq, entry.key) for entry in await handle.journal()] == [(1, "load"), (2, "sibling")]


async def test_a_workflow_that_ends_with_a_transactional_step_drops_what_waited_behind_it(lab: Lab) -> None:
    finish_sibling = asyncio.Event()

    @step
    async def sibling() -> str:
        await finish_sibling.wait()
        return "sibling"

    @step(transactional=True)
    def load(conn: sqlite3.Connection) -> str:
        conn.execute("INSERT INTO items VALUES ('a')")
        loop.call_soon_threadsafe(finish_sibling.set)
        time.sleep(0.03)
        return "load"

    @workflow
    async def flow() -> str:
        tasks = [asyncio.create_task(sibling()), asyncio.create_task(load())]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()

    loop = asyncio.get_running_loop()
    async with lab.running(flow) as client:
        handle = await client.start(flow)
        assert await handle.result(timeout=10) == "load"
        assert keys(await handle.journal()) == ["load"]


async def test_transactional_steps_called_at_once_run_one_after_the_other(lab: Lab) -> None:
    inside: list[int] = []

    @step(transactional=True)
    def load(conn: sqlite3.Connection, n: int) -> int:
        inside.append(n)
        assert len(inside) == 1
        conn.execute("INSERT INTO items VALUES (?)", (str(n),))
        inside.remove(n)
        return n

    @step
    async def plain(n: int) -> int:
        return n

    @workflow
    async def flow() -> list[int]:
        return list(await asyncio.gather(*(load(n) for n in range(5)), *(plain(n) for n in range(5))))

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        assert await handle.result(timeout=10) == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]
        entries = await handle.journal()
    assert [entry.seq for entry in entries] == list(range(1, 11))
    assert lab.sql("SELECT count(*) FROM items") == [(5,)]


async def test_a_result_that_json_cannot_carry_rolls_back_and_fails_at_once(lab: Lab) -> None:
    bodies: list[int] = []

    @step(transactional=True, retry=3)
    def load(conn: sqlite3.Connection) -> object:
        bodies.append(1)
        conn.execute("INSERT INTO items VALUES ('a')")
        return object()

    @workflow
    async def flow() -> None:
        await load()

    async with lab.running(flow) as client:
        with pytest.raises(WorkflowFailed, match="load") as caught:
            await (await client.start(flow)).result(timeout=10)
    assert caught.value.type_name == CodecError.__name__
    assert bodies == [1]
    assert lab.sql("SELECT name FROM items") == []


async def test_an_async_transactional_step_is_refused_at_worker_start(lab: Lab) -> None:
    with pytest.raises(DefinitionError, match="make it a plain `def`"):
        async with lab.worker(wrong_flows.flow):
            pass


async def test_a_step_that_waits_for_its_turn_is_not_taken_for_a_transaction(lab: Lab) -> None:
    def plain() -> int:
        return 1

    @step(transactional=True)
    def load(conn: sqlite3.Connection) -> int:
        return 2

    @workflow
    async def flow() -> int:
        return await call(plain) + await load()

    async with lab.running(flow) as client:
        assert await (await client.start(flow)).result(timeout=10) == 3


async def test_on_a_database_without_transactional_steps_the_error_says_so(plain_lab: Lab) -> None:
    if plain_lab.mode.store != "memory":
        return

    @step(transactional=True)
    def load(conn: sqlite3.Connection) -> None:
        return

    @workflow(max_attempts=1)
    async def flow() -> None:
        await load()

    async with plain_lab.running(flow) as client:
        with pytest.raises(WorkflowFailed, match="transactional"):
            await (await client.start(flow)).result(timeout=5)

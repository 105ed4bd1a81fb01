"""The fence of a move against open transactions on PostgreSQL, permutation by permutation."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from onward._engine.moving import Copying
from onward._store.base import Transfer
from onward._store.opening import open_store
from onward._store.operations import Fence, FinishOp, SignalOp, StartOp
from onward._store.postgres import transfer
from onward._store.records import Filter
from onward.errors import FatalStoreError, StoreMoved, TransientStoreError
from tests.conformance.support import (
    PostgresWorld,
    RolesWorld,
    complete,
    entry,
    new,
    one,
    record,
    request,
    row,
    start,
    started_and_claimed,
)
from tests.postgres.roles import login_name
from tests.postgres.server import connection, server_url, url_with

MOVED = "OW002"


@pytest.fixture
def world(tmp_path: Path) -> PostgresWorld:
    """An empty schema."""
    return PostgresWorld(tmp_path)


@pytest.fixture
def stranger() -> Iterator[psycopg.Connection[Any]]:
    """An application's connection, in a transaction of its own making."""
    conn = psycopg.connect(server_url(), autocommit=True)
    yield conn
    conn.close()


def insert(world: PostgresWorld, workflow_id: str) -> bytes:
    return (
        f"INSERT INTO {world.schema}.workflows (id, type, queue, priority, status, next_run_at, max_attempts, created_at, "
        f"updated_at, digest, seed, payload) VALUES ('{workflow_id}', 'flow', 'default', 0, 'pending', now(), 5, now(), now(), "
        "'d', 's', '[[],{}]')"
    ).encode()


def send(world: PostgresWorld, workflow_id: str) -> bytes:
    return (
        f"INSERT INTO {world.schema}.outbox (workflow_id, kind, name, token, payload) "
        f"VALUES ('{workflow_id}', 'signal', 'go', 't', '1')"
    ).encode()


async def until_waiting(schema: str, count: int) -> None:
    """Until so many sessions wait for tables of this schema."""
    with connection() as conn:
        query = (
            "SELECT count(*) FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation "
            "WHERE NOT l.granted AND c.relnamespace = %s::regnamespace"
        )
        async with asyncio.timeout(60):
            while conn.execute(query, (schema,)).fetchone() != (count,):
                await asyncio.sleep(0.01)


async def fenced(side: Transfer) -> None:
    await side.fence_source("copy", "sqlite:///there.db")


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
async def test_a_start_in_a_transaction_older_than_the_fence_is_refused(
    world: PostgresWorld, stranger: psycopg.Connection[Any], isolation: str
) -> None:
    """Its snapshot does not show the move; the trigger stops it all the same, else the start would be lost."""
    store = await world.open()
    await start(store)
    stranger.execute(f"BEGIN ISOLATION LEVEL {isolation}".encode())
    stranger.execute(f"SELECT count(*) FROM {world.schema}.migrations".encode())
    await fenced(world.side(store))
    with pytest.raises(psycopg.Error, match="moved to sqlite:///there.db") as caught:
        stranger.execute(insert(world, "late"))
    assert caught.value.sqlstate == MOVED
    stranger.execute("ROLLBACK")
    assert await store.get("late") is None


async def test_a_start_that_came_before_the_fence_is_waited_for_and_copied(
    world: PostgresWorld, stranger: psycopg.Connection[Any]
) -> None:
    """The fence stands behind every transaction that has written; what these commit is in the source it fences."""
    store = await world.open()
    side = world.side(store)
    stranger.execute("BEGIN")
    stranger.execute(insert(world, "early"))
    fence = asyncio.create_task(fenced(side))
    await until_waiting(world.schema, 1)
    stranger.execute("COMMIT")
    await fence
    assert (await side.look()).counts["workflows"] == 1
    with pytest.raises(StoreMoved):
        await start(store, "late")


async def test_a_start_that_waits_for_the_fence_is_refused_or_copied(
    world: PostgresWorld, stranger: psycopg.Connection[Any]
) -> None:
    """It was sent while the fence was being put up and got its turn later: it must not slip through."""
    store = await world.open()
    side = world.side(store)
    stranger.execute("BEGIN")
    stranger.execute(insert(world, "early"))
    fence = asyncio.create_task(fenced(side))
    await until_waiting(world.schema, 1)
    with psycopg.connect(server_url(), autocommit=True) as other:
        late = asyncio.create_task(asyncio.to_thread(other.execute, insert(world, "late")))
        await until_waiting(world.schema, 2)
        stranger.execute("COMMIT")
        await fence
        [error] = await asyncio.gather(late, return_exceptions=True)
    is_refused = isinstance(error, psycopg.Error)
    assert not is_refused or getattr(error, "sqlstate", None) == MOVED
    assert (await side.look()).counts["workflows"] == (
        1 if is_refused else 2
    )  # 2: the fence had stepped back in between


async def test_a_message_that_an_open_transaction_has_sent_is_delivered_before_the_fence(
    world: PostgresWorld, stranger: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its commit will want the rows that the fence would hold: the fence steps back, and nobody is a deadlock's victim."""
    store = await world.open()
    side = world.side(store)
    await start(store)
    tries, has_stepped_back = 0, asyncio.Event()
    lock = transfer.PostgresTransfer._lock_tables

    async def counted(self: transfer.PostgresTransfer, conn: Any) -> None:
        nonlocal tries
        tries += 1
        if tries > 1:
            has_stepped_back.set()
        await lock(self, conn)

    monkeypatch.setattr(transfer.PostgresTransfer, "_lock_tables", counted)
    stranger.execute("BEGIN")
    stranger.execute(send(world, "a"))
    fence = asyncio.create_task(fenced(side))
    await has_stepped_back.wait()
    await asyncio.to_thread(stranger.execute, "COMMIT")
    await fence
    assert (await side.look()).counts["mailbox"] == 1


async def test_a_transaction_that_stays_open_is_named_as_the_reason(
    world: PostgresWorld, stranger: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fence gives up after a while, and nothing has changed."""
    monkeypatch.setattr(transfer, "PATIENCE_S", 0.0)
    store = await world.open()
    side = world.side(store)
    stranger.execute("BEGIN")
    stranger.execute(insert(world, "early"))
    with pytest.raises(TransientStoreError, match="some transaction that uses them stays open"):
        await fenced(side)
    stranger.execute("COMMIT")
    await start(store, "late")
    await store.check_serving()


async def test_a_flush_under_way_is_in_the_source_or_refused(world: PostgresWorld) -> None:
    """Flushes race with the fence: what was answered is there, the rest is told where the workflows went."""
    store = await world.open()
    world.worker(store)
    fences = [await started_and_claimed(store, f"w{number}") for number in range(8)]
    side = world.side(store)
    recorded: list[str] = []

    async def work(fence: Fence) -> None:
        for seq in range(1, 1000):
            await record(store, fence, entry(seq))
            recorded.append(f"{fence.workflow_id} {seq}")

    async def put_up() -> None:
        while len(recorded) < 40:
            await asyncio.sleep(0)
        await fenced(side)

    *ends, end = await asyncio.gather(*(work(fence) for fence in fences), put_up(), return_exceptions=True)
    assert end is None
    assert all(isinstance(one, StoreMoved) for one in ends), ends
    found = {f"{fence.workflow_id} {entry.seq}" for fence in fences for entry in await store.journal(fence.workflow_id)}
    assert set(recorded) <= found
    assert {(await row(store, fence.workflow_id)).status for fence in fences} == {"pending"}


async def test_readers_do_not_wait_for_the_fence(world: PostgresWorld, stranger: psycopg.Connection[Any]) -> None:
    """A long report over the tables goes on, and does not keep the fence away."""
    store = await world.open()
    world.worker(store)
    await start(store)
    await complete(store, "a")
    stranger.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    stranger.execute(f"SELECT count(*) FROM {world.schema}.workflows".encode())
    await fenced(world.side(store))
    assert stranger.execute(f"SELECT count(*) FROM {world.schema}.workflows".encode()).fetchone() == (1,)
    stranger.execute("COMMIT")


async def test_an_idle_schema_has_no_trigger_of_a_move(world: PostgresWorld) -> None:
    """It costs nothing where nothing is moved, and nothing is left of a move that was given up."""
    store = await world.open()
    side = world.side(store)
    query = "SELECT count(*) FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid WHERE c.relnamespace = %s::regnamespace "
    query += "AND t.tgname = 'refuse_while_moving'"

    def count() -> int:
        with connection() as conn:
            found = conn.execute(query.encode(), (world.schema,)).fetchone()
        assert found is not None
        return int(found[0])

    assert count() == 0
    await fenced(side)
    assert count() == 7
    await side.unfence_source("copy")
    assert count() == 0
    await start(store)
    world.worker(store)
    await one(store, SignalOp("a", "go", "1", "t"))


async def test_roles_are_told_and_only_the_migrator_can_move(tmp_path: Path) -> None:
    """A worker's role cannot put up a fence, nor take it away; the triggers stop all roles, whatever these may read."""
    world = RolesWorld(tmp_path)
    try:
        store = await world.open()
        world.worker(store)
        fence = await started_and_claimed(store)
        own = {
            kind: open_store(url_with(schema=world.schema, user=login_name(world.schema, kind))).transfer()
            for kind in ("worker", "migrator")
        }
        with pytest.raises(FatalStoreError, match="lacks a privilege"):
            await fenced(own["worker"])
        await record(store, fence, entry(1))
        await fenced(own["migrator"])
        for op in (StartOp(new("late")), SignalOp("a", "go", "1", "t"), FinishOp(fence, "completed", "1")):
            with pytest.raises(StoreMoved, match="there"):
                await store.write([op])
        with pytest.raises(StoreMoved):
            await store.claim(request())
        with pytest.raises(StoreMoved):
            await store.check_serving()
        with pytest.raises(FatalStoreError):
            await own["worker"].unfence_source("copy")
        target = open_store(f"sqlite:///{tmp_path}/there.db")
        await target.open()
        there = target.transfer()
        await own["migrator"].unfence_source("copy")
        await Copying(own["migrator"], there).move()
        assert [row.id for row in await target.list(Filter())] == ["a"]
        for side in (there, *own.values()):
            await side.close()
        await target.close()
    finally:
        await world.close()

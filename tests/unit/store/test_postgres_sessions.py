"""Connections: prepared statements on a real clock, losses, cancelled callers, poll-only mode, and the listener."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

import psycopg
import pytest

from onward._store.opening import open_store
from onward._store.operations import APPLIED, FinishOp, JournalOp, SignalOp, Started, StartOp
from onward._store.postgres import hub, listener, session
from onward._store.postgres.session import Session
from onward._store.postgres.statements import statement
from onward._store.postgres.store import PostgresStore
from onward.errors import FatalStoreError, OutcomeUnknown, StoreConflict, StoreError, TransientStoreError
from tests.conformance.support import PostgresWorld, claim_one, entry, new, one, park, record, row, start
from tests.postgres.server import connection, url_with


class RealWorld(PostgresWorld):
    """A schema on the server's own clock, as in production: statements are prepared."""

    options: ClassVar[dict[str, object]] = {}

    async def open(self) -> PostgresStore:
        store = open_store(url_with(schema=self.schema, **self.options))
        await store.open()
        assert isinstance(store, PostgresStore)
        self._stores.append(store)
        return store


class PollOnlyWorld(RealWorld):
    options: ClassVar[dict[str, object]] = {"poll_only": 1}


@pytest.fixture
def world(tmp_path: Path) -> RealWorld:
    """An empty schema."""
    return RealWorld(tmp_path)


@pytest.fixture(params=[RealWorld, PollOnlyWorld])
def either_world(request: pytest.FixtureRequest, tmp_path: Path) -> RealWorld:
    """An empty schema, with sessions and without."""
    made: RealWorld = request.param(tmp_path)
    return made


def kill_backends(schema: str, duty: str = "%") -> int:
    """End the connections that have used this schema last, as an operator may."""
    with connection() as conn:
        found = conn.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE %s AND pid <> pg_backend_pid()",
            (f"%{duty}%{schema}%",),
        ).fetchone()
    assert found is not None
    return int(found[0])


async def until(look: asyncio.Event) -> None:
    async with asyncio.timeout(20):
        await look.wait()


async def test_a_life_goes_through_all_statements_and_survives_refused_ones_in_between(either_world: RealWorld) -> None:
    store = await either_world.open()
    either_world.worker(store)
    for number in range(3):
        name = f"a{number}"
        await start(store, name)
        fence = await claim_one(store, name)
        await record(store, fence, entry(1), entry(2), progress="1", reset_counters=True)
        with pytest.raises(StoreConflict):
            await one(store, JournalOp(fence, (entry(1, "another"),)))
        assert await one(store, SignalOp(name, "go", "1", "t")) == APPLIED
        assert await one(store, park(fence, seen=0)) == APPLIED
        fence = await claim_one(store, name)
        [loaded] = await store.load([name])
        assert ([found.seq for found in loaded.entries], len(loaded.mail)) == ([1, 2], 1)
        assert await one(store, FinishOp(fence, "completed", "1")) == APPLIED
        assert (await row(store, name)).status == "completed"
    assert await store.counts() == {"completed": 3}


async def test_the_servers_clock_is_followed_and_never_the_machines(
    world: RealWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await world.open()
    monkeypatch.setattr("time.time_ns", lambda: 0)  # this machine has lost its time
    before = store.now_us()
    await start(store)
    created_at = (await row(store)).created_at
    assert before <= created_at <= store.now_us() + 60_000_000
    assert store.now_us() >= before


async def test_poll_only_mode_leaves_nothing_on_its_connections(tmp_path: Path) -> None:
    world = PollOnlyWorld(tmp_path)
    store = await world.open()
    try:
        world.worker(store)
        store.subscribe(lambda: None)
        await start(store)
        await claim_one(store)
        with connection() as conn:
            locks = "SELECT count(*) FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid) WHERE l.locktype = 'advisory'"
            assert conn.execute(f"{locks} AND a.query LIKE %s", (f"%{world.schema}%",)).fetchone() == (0,)
        async with store._readers.session() as reader:
            for query, wanted in (
                ("SELECT count(*) FROM pg_prepared_statements", b"0"),
                ("SELECT count(*) FROM pg_listening_channels()", b"0"),
                ("SELECT current_setting('enable_seqscan')", b"on"),
                ("SELECT current_setting('lock_timeout')", b"0"),
            ):
                assert await ask(reader, query) == wanted
        [worker] = await store.workers()
        assert not worker.is_dead
        assert not store._listener.session.is_connected
    finally:
        await world.close()


async def ask(of: Session, query: str) -> bytes | None:
    [answer] = await of.run([statement(f"asked {query}"[:60], query, of._database.clock).bind()])
    return answer


# --- losses ---


async def test_a_read_whose_connection_was_ended_is_transient_and_the_next_one_connects(world: RealWorld) -> None:
    store = await world.open()
    await start(store)
    assert kill_backends(world.schema) > 0
    for _ in range(3):
        try:
            found = await store.get("a")
        except TransientStoreError:
            continue
        assert found is not None
        return
    raise AssertionError("it never connected again")


async def test_a_write_on_a_connection_that_was_ended_is_in_doubt_and_its_retry_decides(world: RealWorld) -> None:
    store = await world.open()
    await start(store, "first")
    kill_backends(world.schema)
    op = StartOp(new("a"))
    outcome: object = None
    for is_retry in (False, True, True):
        try:
            [outcome] = await store.write([op], retry=is_retry)
            break
        except (OutcomeUnknown, TransientStoreError):
            continue
    assert outcome == Started("a", True, None, "pending")
    with connection() as conn:
        assert conn.execute(f"SELECT count(*) FROM {world.schema}.workflows").fetchone() == (2,)


async def test_a_connection_lost_between_the_two_halves_of_a_careful_write_writes_nothing(world: RealWorld) -> None:
    store = await world.open()
    world.worker(store)
    await start(store)
    fence = await claim_one(store)
    held = store._committer.hold()
    sql = store._database.sql
    async with held as converse:
        await converse([sql["begin"].bind()])
        store._committer.drop(psycopg.OperationalError("gone"))
        with pytest.raises(TransientStoreError, match="within a transaction"):
            await converse([sql["commit"].bind()], commits=True)
    assert await one(store, JournalOp(fence, (entry(1),))) == APPLIED


async def test_nothing_of_a_conversation_stays_open_after_an_error(world: RealWorld) -> None:
    store = await world.open()
    world.worker(store)
    await start(store)
    fence = await claim_one(store)
    with pytest.raises(StoreConflict):
        await one(store, JournalOp(fence, (entry(1), entry(1))))
    assert await one(store, JournalOp(fence, (entry(1),))) == APPLIED
    with connection() as conn:
        idle = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%%' AND query LIKE %s"
        assert conn.execute(idle, (f"%{world.schema}%",)).fetchone() == (0,)


async def test_a_caller_cancelled_in_the_middle_leaves_the_next_one_a_clean_connection(world: RealWorld) -> None:
    store = await world.open()
    for number in range(30):
        task = asyncio.ensure_future(store.write([StartOp(new(f"x{number}"))]))
        for _ in range(number % 6):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert isinstance(await one(store, StartOp(new(f"y{number}"))), Started)
    assert {name for name in [f"y{n}" for n in range(30)] if await store.get(name) is None} == set()


async def test_no_answer_in_time_is_a_lost_connection(world: RealWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await world.open()
    monkeypatch.setattr(session, "PATIENCE_S", 0.1)
    async with store._readers.session() as reader:
        reader.drop(psycopg.OperationalError("a new connection, under the new limit"))
        with pytest.raises(TransientStoreError, match="in time"):
            await ask(reader, "SELECT pg_sleep(60)")
        assert await ask(reader, "SELECT 1") == b"1"


async def test_a_conversation_is_measured_from_its_own_beginning_and_its_connection_is_then_watched_on(
    world: RealWorld,
) -> None:
    store = await world.open()
    async with store._readers.session() as reader:
        asking = asyncio.ensure_future(ask(reader, "SELECT pg_sleep(60)"))
        while reader._talk is None:
            await asyncio.sleep(0)
        first = reader._watch
        reader._look()  # the time of an earlier one is over
        assert reader._watch is not None
        assert reader._watch is not first
        assert reader._watch.when() == reader._talk.deadline
        assert reader.is_connected
        reader._talk.deadline = 0.0
        reader._look()
        with pytest.raises(TransientStoreError, match="in time"):
            await asking
        assert reader._watch is None
        assert await ask(reader, "SELECT 1") == b"1"
        reader._look()
        assert reader._watch is None
        assert await ask(reader, "SELECT 1") == b"1"
        assert reader._watch is not None


async def test_close_ends_a_conversation_under_way(world: RealWorld) -> None:
    store = await world.open()
    async with store._readers.session() as reader:
        asking = asyncio.ensure_future(ask(reader, "SELECT pg_sleep(60)"))
        for _ in range(20):
            await asyncio.sleep(0)
        await store.close()
        with pytest.raises(StoreError):
            await asking


async def test_a_server_that_is_not_there_is_a_transient_error_without_a_password(tmp_path: Path) -> None:
    store = open_store(f"postgresql://ann:secret@/app?host={tmp_path}&connect_timeout=1")
    with pytest.raises(TransientStoreError) as caught:
        await store.open()
    assert "secret" not in str(caught.value)


async def test_a_database_that_does_not_exist_is_fatal_and_says_so() -> None:
    url = url_with().replace("/postgres?", "/no_such_database?")
    if url == url_with():
        pytest.skip("the test server's URL is of another form")
    store = open_store(url)
    with pytest.raises(FatalStoreError, match="createdb"):
        await store.open()


# --- notifications ---


@asynccontextmanager
async def heard_by(store: PostgresStore) -> AsyncIterator[asyncio.Event]:
    """An event that is set whenever the store's subscribers are told something."""
    event = asyncio.Event()
    end = store.subscribe(event.set)
    await until(event)  # once it listens it tells what was before
    event.clear()
    try:
        yield event
    finally:
        end()


async def test_another_process_hears_of_a_commit(world: RealWorld) -> None:
    first, second = await world.open(), await world.open()
    async with heard_by(first) as event:
        await start(second)
        await until(event)


async def test_a_listener_whose_connection_was_ended_listens_again(world: RealWorld) -> None:
    first, second = await world.open(), await world.open()
    async with heard_by(first) as event:
        before = first._listener.session.connection_count
        first._listener.session.drop(psycopg.OperationalError("cut"))
        await until(event)  # what was committed meanwhile nobody else tells
        assert first._listener.session.connection_count == before + 1
        event.clear()
        await start(second)
        await until(event)


async def test_a_listener_that_hears_nothing_any_more_finds_out_by_itself(
    world: RealWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "PROBE_S", 0.05)
    monkeypatch.setattr(listener, "ANSWER_S", 0.05)
    first, second = await world.open(), await world.open()
    async with heard_by(first) as event:
        before = first._listener.session.connection_count
        await ask(first._listener.session, "SELECT 1")
        await ask(first._listener.session, "UNLISTEN *")
        await until(event)
        assert first._listener.session.connection_count > before
        monkeypatch.setattr(listener, "PROBE_S", 10.0)
        event.clear()
        await start(second)
        await until(event)


async def test_many_commits_are_few_notifications(world: RealWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    first, second = await world.open(), await world.open()
    async with heard_by(first):
        inner = first._listener.session._on_notify
        assert inner is not None
        last = asyncio.Event()

        def note(news: str) -> None:
            told.append(news)
            last.set()

        monkeypatch.setattr(first._listener.session, "_on_notify", note)
        monkeypatch.setattr(hub, "SPACING_S", 3600.0)
        for number in range(20):
            await start(second, f"x{number}")
        await until(last)
        assert len(told) == 1  # the next one is an hour away
        assert second._hub._task is not None
        second._hub._task.cancel()

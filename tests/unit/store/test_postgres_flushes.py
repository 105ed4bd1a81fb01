"""What a flush sends: how many statements, under which names; ids of any kind, and fences that do not hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from onward._store.base import Store
from onward._store.operations import APPLIED, BUSY, LEASE_LOST, Fence, FinishOp, JournalOp, Op
from onward._store.postgres.session import Session
from onward._store.postgres.statements import Call, as_array, as_texts
from onward._store.records import Entry
from onward.errors import StoreConflict
from tests.conformance.support import (
    PostgresWorld,
    claim_one,
    entry,
    row,
    start,
    start_child,
    started_and_claimed,
)
from tests.postgres.server import connection
from tests.unit.store.postgres_support import Hand

ODD_IDS = ('a"b', "a\\b", "a,b", "{a}", "a b", "NULL", "null", 'é"\\,', "'", "￿", "~")


@pytest.fixture
def world(tmp_path: Path) -> PostgresWorld:
    """An empty schema."""
    return PostgresWorld(tmp_path)


class Wire:
    """The names of the statements of each round trip that writes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trips: list[list[str]] = []
        run = Session.run

        async def noted(session: Session, calls: Sequence[Call], *, commits: bool = False) -> list[bytes | None]:
            if commits:
                self.trips.append([call.statement.name for call in calls])
            return await run(session, calls, commits=commits)

        monkeypatch.setattr(Session, "run", noted)


async def held(store: Store, *ids: str) -> list[Fence]:
    return [await started_and_claimed(store, workflow_id) for workflow_id in ids]


def entries_of(fences: Sequence[Fence], seq: int = 1) -> list[Op]:
    return [JournalOp(fence, (entry(seq),)) for fence in fences]


async def keys(store: Store, workflow_id: str) -> list[int]:
    return [one.seq for one in await store.journal(workflow_id)]


async def test_entries_alone_are_one_statement_that_is_its_own_transaction(
    world: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await world.open()
    world.worker(store)
    fences = await held(store, "b", "a", "c")
    wire = Wire(monkeypatch)
    assert await store.write(entries_of(fences)) == [APPLIED] * 3
    assert wire.trips == [["record_entries"]]
    assert [await keys(store, one) for one in "abc"] == [[1], [1], [1]]


async def test_a_lone_entry_is_written_by_the_statement_for_one_and_reads_as_one_of_a_batch(
    world: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await world.open()
    world.worker(store)
    fences = await held(store, "a", "b", "c")
    odd = Entry(1, 'k"\\é', "step", 1_700_000_000_123_457, '"\\u0000"', None, "d", "[1]", 2, 1_700_000_000_000_001)
    failed = Entry(2, "bare", "step", 1_700_000_000_123_458, None, '{"type":"E","message":"é"}')
    wire = Wire(monkeypatch)
    for one in (odd, failed):
        assert await store.write([JournalOp(fences[0], (one,))]) == [APPLIED]
        assert await store.write([JournalOp(fence, (one,)) for fence in fences[1:]]) == [APPLIED] * 2
    assert wire.trips == [["record_entry"], ["record_entries"]] * 2
    loaded = await store.load(["a", "b", "c"])
    assert [list(one.entries) for one in loaded] == [[odd, failed]] * 3


async def test_a_lone_entry_of_a_lost_execution_is_refused_and_one_of_a_held_row_is_busy(world: PostgresWorld) -> None:
    store = await world.open()
    world.worker(store)
    [fence] = await held(store, "a")
    for lost in (Fence("a", fence.worker, fence.epoch + 1), Fence("a", "w2", fence.epoch), Fence("b", "w1", 1)):
        assert await store.write(entries_of([lost])) == [LEASE_LOST]
    with Hand(world) as hand:
        hand.hold("a")
        assert await store.write(entries_of([fence])) == [BUSY]
        hand.roll_back()
    assert await keys(store, "a") == []
    assert await store.write(entries_of([fence])) == [APPLIED]
    assert await keys(store, "a") == [1]


@pytest.mark.parametrize("count", [1, 2])
async def test_a_nul_character_is_refused_and_never_cut_off(world: PostgresWorld, count: int) -> None:
    store = await world.open()
    world.worker(store)
    fences = (await held(store, "a", "b"))[:count]
    with pytest.raises(StoreConflict):
        await store.write([JournalOp(fence, (Entry(1, "cut\0off", "step", 1, "1"),)) for fence in fences])
    assert await keys(store, "a") == []


async def test_ends_are_one_round_trip(world: PostgresWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await world.open()
    world.worker(store)
    fences = await held(store, "a", "b")
    wire = Wire(monkeypatch)
    ends = [FinishOp(fence, "completed", "1") for fence in fences]
    assert await store.write([*entries_of(fences), *ends]) == [APPLIED] * 4
    assert wire.trips == [["begin", "lock_ending_or_refuse", "insert_entries", "finish_rows", "commit"]]


@pytest.mark.parametrize("ends", [False, True])
async def test_one_lost_execution_takes_none_of_the_others_along(world: PostgresWorld, ends: bool) -> None:
    store = await world.open()
    world.worker(store)
    a, b, c = await held(store, "a", "b", "c")
    lost = Fence("b", b.worker, b.epoch + 1)
    ops = entries_of([a, lost, c])
    if ends:
        ops += [FinishOp(fence, "completed", "1") for fence in (a, lost, c)]
    assert await store.write(ops) == [APPLIED, LEASE_LOST, APPLIED] * (2 if ends else 1)
    assert [await keys(store, one) for one in "abc"] == [[1], [], [1]]
    assert (await row(store, "b")).status == "running"


async def test_epochs_are_compared_each_with_its_own_row(world: PostgresWorld) -> None:
    """Two fences that would hold if they were exchanged do not hold."""
    store = await world.open()
    world.worker(store)
    a, b = await held(store, "a", "b")
    await store.reconcile("w1", [("a", a.epoch)])  # b is given back
    b = await claim_one(store, "b")
    assert b.epoch != a.epoch
    exchanged = [Fence("a", a.worker, b.epoch), Fence("b", b.worker, a.epoch)]
    assert await store.write(entries_of(exchanged)) == [LEASE_LOST, LEASE_LOST]
    assert await store.write(entries_of([b, a])) == [APPLIED, APPLIED]


async def test_fences_of_two_workers_may_come_in_one_batch(world: PostgresWorld) -> None:
    store = await world.open()
    world.worker(store)
    world.worker(store, "w2")
    mine = await started_and_claimed(store, "a")
    others = await started_and_claimed(store, "b", worker="w2")
    assert await store.write(entries_of([mine, others])) == [APPLIED, APPLIED]


async def test_a_row_that_a_stranger_holds_is_busy_and_the_others_are_written(world: PostgresWorld) -> None:
    store = await world.open()
    world.worker(store)
    fences = await held(store, "a", "b")
    with Hand(world) as hand:
        hand.hold("a")
        assert await store.write(entries_of(fences)) == [BUSY, APPLIED]
        hand.roll_back()


async def test_the_parent_of_what_ends_is_locked_before_it_is_told(world: PostgresWorld) -> None:
    """While a stranger holds the parent, the child's end is busy; that of another workflow in the batch is not."""
    store = await world.open()
    world.worker(store)
    parent = await started_and_claimed(store, "parent")
    await start_child(store, parent, "child")
    ends: list[Op] = [
        FinishOp(await claim_one(store, "child"), "completed", "1"),
        FinishOp(await started_and_claimed(store, "z"), "completed", "1"),
    ]
    with Hand(world) as hand:
        hand.hold("parent")
        assert await store.write(ends) == [BUSY, APPLIED]
        hand.roll_back()
    assert await store.write(ends[:1]) == [APPLIED]
    assert (await row(store, "parent")).signals == 1


async def test_ids_of_any_characters_are_found_again(world: PostgresWorld) -> None:
    store = await world.open()
    world.worker(store)
    fences = await held(store, *ODD_IDS)
    assert await store.write(entries_of(fences)) == [APPLIED] * len(ODD_IDS)
    ends = [FinishOp(fence, "completed", "1") for fence in fences]
    assert await store.write([*entries_of(fences, 2), *ends]) == [APPLIED] * (2 * len(ODD_IDS))
    for one in ODD_IDS:
        assert (await row(store, one)).status == "completed"
        assert await keys(store, one) == [1, 2]


@pytest.mark.parametrize("values", [(), ODD_IDS, ("a",), ("",), ("\n", "\t\\n")])
def test_texts_arrive_as_an_array(values: tuple[str, ...]) -> None:
    with connection() as conn:
        assert conn.execute("SELECT %s::text[]", (as_texts(values).decode(),)).fetchone() == (list(values),)


def test_integers_and_booleans_arrive_as_arrays() -> None:
    given = (as_array([1, -2, 2**40]).decode(), as_array([True, False]).decode())
    with connection() as conn:
        found = conn.execute("SELECT %s::bigint[], %s::boolean[]", given).fetchone()
    assert found == ([1, -2, 2**40], [True, False])


async def test_a_row_claimed_and_ended_stays_on_its_page(world: PostgresWorld) -> None:
    """The log then holds what has changed, not the whole row again."""
    store = await world.open()
    world.worker(store)
    ids = [f"w{number:04}" for number in range(200)]
    for one in ids:
        await start(store, one)
    with Hand(world) as hand:
        [(pages,)] = hand.execute("SELECT pg_relation_size('{schema}.workflows')")
        hand.roll_back()
        fences = [await claim_one(store, one) for one in ids]
        await store.write([FinishOp(fence, "completed", "1") for fence in fences])
        [(after,)] = hand.execute("SELECT pg_relation_size('{schema}.workflows')")
    assert after <= pages * 1.5

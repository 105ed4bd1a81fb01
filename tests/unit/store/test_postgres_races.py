"""Each race of RACES.md that was shown on PostgreSQL, in both orders of its two sessions.

One session is a `Hand`: it has run its statements and not yet committed when the store comes.
"""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from onward._store.operations import (
    APPLIED,
    BUSY,
    LEASE_LOST,
    Fence,
    FinishOp,
    IdConflict,
    JournalOp,
    Op,
    SignalOp,
    Started,
    StartOp,
)
from onward._store.postgres.batch import entry_row
from onward._store.postgres.leases import PostgresLeases
from onward._store.postgres.statements import as_json
from onward._store.verdicts import CRASH_LIMIT
from onward.errors import TransientStoreError
from tests.conformance.support import (
    SECOND,
    PostgresWorld,
    claim_one,
    complete,
    entry,
    new,
    one,
    park,
    record,
    request,
    row,
    start,
    start_child,
    started_and_claimed,
)
from tests.unit.store.postgres_support import Hand, fences, settled


@pytest.fixture
def world(tmp_path: Path) -> PostgresWorld:
    """An empty schema."""
    return PostgresWorld(tmp_path)


def park_row(fence: Fence) -> bytes:
    return as_json(
        [
            {
                "id": fence.workflow_id, "worker": fence.worker, "epoch": fence.epoch, "seen": 0, "is_waiting": True,
                "waiting_for": "[]",
            }
        ]
    )  # fmt: skip


# --- W1: park against a signal ---


async def test_a_signal_that_comes_while_a_park_is_uncommitted_is_not_slept_through(world: PostgresWorld) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    signal = SignalOp("a", "x", "1", "t")
    with Hand(world) as hand:
        hand.run("lock_or_refuse", fences=fences(("a", "w1", 1)))
        hand.run("park_rows", rows=park_row(fence))
        assert await one(store, signal) == BUSY
        hand.commit()
    assert (await row(store)).status == "waiting"
    assert await settled(store, [signal]) == [APPLIED]
    found = await row(store)
    assert (found.status, found.signals, found.next_run_at) == ("pending", 1, world.clock.now)


async def test_a_park_that_comes_while_a_signal_is_uncommitted_does_not_sleep(world: PostgresWorld) -> None:
    store = await world.open()
    world.worker(store)
    parking = park(await started_and_claimed(store))
    with Hand(world) as hand:
        hand.run("lock_or_refuse", fences=fences(("a", None, None)))
        hand.run("deliver_signals", rows=as_json([{"id": "a", "name": "x", "payload": "1", "token": "t"}]))
        assert await one(store, parking) == BUSY
        hand.commit()
    assert await settled(store, [parking]) == [APPLIED]
    assert (await row(store)).status == "pending"


# --- W3: waiting for a workflow that is not one's child ---


@pytest.mark.parametrize("first", ["end", "watch"])
async def test_the_end_of_a_stranger_is_heard_whichever_comes_first(world: PostgresWorld, first: str) -> None:
    store = await world.open()
    world.worker(store)
    await start(store, "stranger")
    end = FinishOp(await claim_one(store, "stranger"), "completed", '"done"')
    watch = StartOp(new("stranger", seed="8" * 32), await started_and_claimed(store, "a"), watch=True)
    with Hand(world) as hand:
        if first == "end":
            hand.run("lock_or_refuse", fences=fences(("stranger", "w1", 1), ends=True))
            done = {
                "id": "stranger",
                "worker": "w1",
                "epoch": 1,
                "status": "completed",
                "result": '"done"',
                "spends": False,
            }
            hand.run("finish_rows", rows=as_json([done]))
            late: Op = watch
        else:
            hand.run("lock_or_refuse", fences=fences(("a", "w1", 1), ("stranger", None, None)))
            rows = as_json([{"target": "stranger", "waiter": "a", "type": "flow", "digest": "d1"}])
            hand.run("lock_targets", rows=rows)
            hand.run("insert_waiters", rows=rows)
            late = end
        assert await one(store, late) == BUSY
        hand.commit()
    [outcome] = await settled(store, [late])
    assert isinstance(outcome, Started) or outcome == APPLIED
    [inbox] = await store.mail([("a", 0)])
    assert ([(mail.name, mail.payload) for mail in inbox.mail], inbox.signals) == ([("stranger", '"done"')], 1)


async def test_a_stranger_that_is_started_between_the_lock_and_the_insert_is_watched_too(world: PostgresWorld) -> None:
    store = await world.open()
    world.worker(store)
    watch = StartOp(new("stranger", seed="8" * 32), await started_and_claimed(store, "a"), watch=True)
    with Hand(world) as hand:
        hand.run("insert_workflows", rows=as_json([new("stranger")]))
        waiting = asyncio.ensure_future(settled(store, [watch]))
        await asyncio.sleep(0)
        hand.commit()
        assert await waiting == [Started("stranger", False, None, "pending")]
    await complete(store, "stranger")
    [inbox] = await store.mail([("a", 0)])
    assert [mail.name for mail in inbox.mail] == ["stranger"]


# --- W4: two flushes that wake each other's rows ---


async def test_two_workers_that_end_each_others_children_never_stand_in_each_others_way_for_good(
    world: PostgresWorld,
) -> None:
    first, second = await world.open(), await world.open()
    world.worker(first, "w1")
    world.worker(second, "w2")
    parents = [await started_and_claimed(first, "p", "w1"), await started_and_claimed(second, "q", "w2")]
    rounds = 25
    for number, parent in itertools.product(range(rounds), parents):
        await start_child(first, parent, f"{parent.workflow_id}/{number:03}")
    ours = [await claim_one(first, f"q/{number:03}", "w1") for number in range(rounds)]
    theirs = [await claim_one(second, f"p/{number:03}", "w2") for number in range(rounds)]
    own: list[list[Op]] = [[JournalOp(parents[k], (entry(n + 1),)) for n in range(rounds)] for k in (0, 1)]

    async def work(store: int) -> None:
        for number in range(rounds):
            child = (ours, theirs)[store][number]
            batch: list[Op] = [own[store][number], FinishOp(child, "completed", "1")]
            assert await settled((first, second)[store], batch) == [APPLIED, APPLIED]

    async with asyncio.timeout(60):
        await asyncio.gather(work(0), work(1))
    assert [(await row(first, name)).signals for name in ("p", "q")] == [rounds, rounds]


# --- J2: unknown commits ---


@pytest.mark.parametrize("end", ["commits", "rolls back"])
async def test_a_retry_waits_for_the_transaction_whose_commit_is_unknown(world: PostgresWorld, end: str) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    batch: list[Op] = [JournalOp(fence, (entry(1),)), park(fence)]
    with Hand(world) as hand:  # the old backend, still at work
        hand.run("lock_or_refuse", fences=fences(("a", "w1", 1)))
        hand.run("insert_entries", entries=as_json([entry_row("a", entry(1))]))
        hand.run("park_rows", rows=park_row(fence))
        assert await store.write(batch, retry=True) == [BUSY, BUSY]
        if end == "commits":
            hand.commit()
        else:
            hand.roll_back()
    assert await settled(store, batch) == [APPLIED, APPLIED] if end == "rolls back" else True
    assert await store.write(batch, retry=True) == [APPLIED, APPLIED]
    assert [found.seq for found in await store.journal("a")] == [1]
    assert (await row(store)).status == "waiting"


async def test_a_late_duplicate_of_a_park_does_not_undo_the_wake_that_came_between(world: PostgresWorld) -> None:
    store = await world.open()
    world.worker(store)
    parking = park(await started_and_claimed(store))
    assert await one(store, parking) == APPLIED
    assert await one(store, SignalOp("a", "x", "1", "t")) == APPLIED
    assert await one(store, parking, retry=True) == APPLIED
    assert (await row(store)).status == "pending"
    assert await one(store, parking) == LEASE_LOST
    assert (await row(store)).status == "pending"


# --- J3: claim and history ---


async def test_what_the_former_owner_committed_last_is_in_the_history_of_the_next(world: PostgresWorld) -> None:
    store = await world.open()
    victim = world.worker(store, "w1")
    undertaker = world.worker(store, "w2")
    await started_and_claimed(store)
    world.kill(victim)
    with Hand(world) as hand:
        hand.run("lock_or_refuse", fences=fences(("a", "w1", 1)))
        hand.run("insert_entries", entries=as_json([entry_row("a", entry(1))]))
        assert undertaker.bury("w2") == 0  # the row is held: it is left for the next look
        assert await store.claim(request("w2")) == []
        hand.commit()
    bury_until(undertaker, "w2", 1)
    [claimed] = await store.claim(request("w2"))
    [loaded] = await store.load([claimed.id])
    assert (claimed.epoch, claimed.is_fresh, [found.seq for found in loaded.entries]) == (3, False, [1])


def bury_until(leases: object, worker_id: str, count: int) -> None:
    """Look again, as a lease thread does."""
    assert isinstance(leases, PostgresLeases)
    leases.sweep_soon()
    assert leases.bury(worker_id) == count


async def test_a_write_of_the_former_owner_after_the_takeover_is_lost(world: PostgresWorld) -> None:
    store = await world.open()
    victim = world.worker(store, "w1")
    undertaker = world.worker(store, "w2")
    fence = await started_and_claimed(store)
    world.kill(victim)
    late = JournalOp(fence, (entry(1),))
    with Hand(world) as hand:
        for text in ("mark_dead",):
            hand.run(text, id="w1", is_free=False, renewed_at=0)
        hand.run("release_orphans", limit=CRASH_LIMIT)
        assert await one(store, late) == BUSY
        hand.commit()
    assert await settled(store, [late]) == [LEASE_LOST]
    assert await store.journal("a") == []
    assert undertaker.bury("w2") == 0


# --- J4: an application's open transaction ---


async def test_one_open_transaction_of_an_application_stops_one_workflow_and_not_a_whole_worker(
    world: PostgresWorld,
) -> None:
    store = await world.open()
    world.worker(store)
    names = [f"x{number:03}" for number in range(200)]
    await store.write([StartOp(new(name)) for name in names])
    claimed = await store.claim(request(limit=200))
    held = [Fence(found.id, "w1", found.epoch) for found in claimed]
    batch: list[Op] = [JournalOp(fence, (entry(1),)) for fence in held]
    with Hand(world) as hand:
        hand.hold("x100")
        outcomes = await store.write(batch)
        assert [fence.workflow_id for fence, outcome in zip(held, outcomes, strict=True) if outcome == BUSY] == ["x100"]
        assert outcomes.count(APPLIED) == 199
        hand.roll_back()
    assert await settled(store, [batch[100]]) == [APPLIED]


async def test_a_parent_that_an_application_holds_makes_only_the_ends_of_its_children_wait(
    world: PostgresWorld,
) -> None:
    store = await world.open()
    world.worker(store)
    parent = await started_and_claimed(store, "p")
    await start_child(store, parent, "p/c")
    child, other = await claim_one(store, "p/c"), await started_and_claimed(store, "other")
    batch: list[Op] = [
        JournalOp(child, (entry(1),)),
        FinishOp(child, "completed", "1"),
        FinishOp(other, "completed", "2"),
    ]
    with Hand(world) as hand:
        hand.hold("p")
        assert await store.write(batch) == [BUSY, BUSY, APPLIED]
        hand.roll_back()
    assert await settled(store, batch[:2]) == [APPLIED, APPLIED]
    assert (await row(store, "p")).signals == 1


# --- L1: rows that a worker has and does not know of ---


async def test_a_claim_whose_reply_was_lost_is_given_back_by_its_own_worker(world: PostgresWorld) -> None:
    store = await world.open()
    world.worker(store)
    known = await started_and_claimed(store, "known")
    await started_and_claimed(store, "unknown")
    assert await store.reconcile("w1", [("known", known.epoch)]) == ["unknown"]
    found = await row(store, "unknown")
    assert (found.status, found.worker, found.crashes) == ("pending", None, 0)
    assert (await row(store, "known")).worker == "w1"


async def test_a_claim_that_commits_behind_a_reconciliation_is_found_by_the_next(world: PostgresWorld) -> None:
    store = await world.open()
    world.worker(store)
    await start(store)
    values = {"worker": "w1", "queue": "default", "types": '["flow"]', "version": "1/3.11", "code_version": "c1"}
    with Hand(world) as hand:
        hand.run("claim_due", **values, format=1, alone=False, limit=10)
        assert await store.reconcile("w1", []) == []
        hand.commit()
    assert await store.reconcile("w1", []) == ["a"]


# --- L2: death is final ---


async def test_a_renewal_that_meets_the_mark_of_death_does_not_undo_it(world: PostgresWorld) -> None:
    store = await world.open()
    stalled = world.worker(store, "w1", lease_s=5)
    world.clock.advance(6)
    with Hand(world) as hand:
        assert hand.run("mark_dead", id="w1", is_free=False, renewed_at=0) is not None
        with pytest.raises(TransientStoreError):
            await asyncio.to_thread(stalled.renew, "w1", 5 * SECOND)
        hand.commit()
    assert not stalled.renew("w1", 5 * SECOND)


async def test_a_burial_that_meets_a_renewal_finds_the_worker_alive(world: PostgresWorld) -> None:
    store = await world.open()
    world.worker(store, "w1", lease_s=5)
    undertaker = world.worker(store, "w2", lease_s=100)
    await started_and_claimed(store)
    world.clock.advance(6)
    with Hand(world) as hand:
        looking: dict[str, int] = {"since": 0, "late": 0, "class": 0}
        hand.run("renew_lease", id="w1", lease=5 * SECOND, **looking)
        with pytest.raises(TransientStoreError):
            await asyncio.to_thread(undertaker.bury, "w2")
        hand.commit()
    assert undertaker.bury("w2") == 0
    assert (await row(store)).worker == "w1"


@pytest.mark.parametrize("first", ["claim", "death"])
async def test_no_row_is_held_by_the_dead_for_good(world: PostgresWorld, first: str) -> None:
    store = await world.open()
    world.worker(store, "w1", lease_s=5)
    undertaker = world.worker(store, "w2", lease_s=100)
    await start(store)
    world.clock.advance(6)
    values = {"worker": "w1", "queue": "default", "types": '["flow"]', "version": "1/3.11", "code_version": "c1"}
    with Hand(world) as hand:
        if first == "claim":
            hand.run("claim_due", **values, format=1, alone=False, limit=10)
            with pytest.raises(TransientStoreError):
                await asyncio.to_thread(undertaker.bury, "w2")
            hand.commit()
            assert undertaker.bury("w2") == 1
        else:
            hand.run("mark_dead", id="w1", is_free=False, renewed_at=0)
            with pytest.raises(TransientStoreError):
                await store.claim(request("w1"))
            hand.commit()
            assert await store.claim(request("w1")) == []
    assert (await row(store)).worker is None


# --- ST2: starts by one id ---


@pytest.mark.parametrize("end", ["commits", "rolls back"])
async def test_a_start_that_another_transaction_has_not_committed_yet_holds_up_nobody_else(
    world: PostgresWorld, end: str
) -> None:
    store = await world.open()
    batch = [StartOp(new("x", seed="1" * 32)), *(StartOp(new(f"y{number}")) for number in range(20))]
    with Hand(world) as hand:
        hand.run("insert_workflows", rows=as_json([new("x", seed="2" * 32)]))
        outcomes = await store.write(batch)
        assert outcomes[0] == BUSY
        assert all(isinstance(outcome, Started) for outcome in outcomes[1:])
        if end == "commits":
            hand.commit()
        else:
            hand.roll_back()
    [outcome] = await settled(store, batch[:1])
    assert outcome == Started("x", end == "rolls back", None, "pending")


async def test_of_two_starts_at_once_with_other_arguments_one_is_a_conflict(world: PostgresWorld) -> None:
    first, second = await world.open(), await world.open()
    for number in range(20):
        ops = [StartOp(new(f"x{number}", digest=digest, seed=digest * 32)) for digest in "12"]
        outcomes = await asyncio.gather(settled(first, ops[:1]), settled(second, ops[1:]))
        kinds = sorted(type(outcome) is IdConflict for [outcome] in outcomes)
        assert kinds == [False, True]


async def test_an_entry_is_never_recorded_without_the_lock(world: PostgresWorld) -> None:
    """The fence is checked under the row's lock in the very transaction that writes the entry."""
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    await record(store, fence, entry(1))
    with Hand(world) as hand:
        hand.execute("UPDATE {schema}.workflows SET epoch = epoch + 1 WHERE id = 'a'")
        late = JournalOp(fence, (entry(2),))
        assert await one(store, late) == BUSY
        hand.commit()
    assert await settled(store, [late]) == [LEASE_LOST]
    assert [found.seq for found in await store.journal("a")] == [1]

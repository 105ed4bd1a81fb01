"""Claiming: what is taken, in which order, by whom, and what changes."""

from __future__ import annotations

import asyncio
from dataclasses import astuple, dataclass

import pytest

from onward._store.operations import APPLIED, CancelOp, FailAttemptOp, Fence, ParkOp, ReleaseOp, SignalOp
from tests.conformance.support import (
    SECOND,
    T0,
    World,
    claim_one,
    entry,
    fence_of,
    one,
    park,
    record,
    request,
    row,
    start,
    started_and_claimed,
)


async def test_a_claim_makes_the_row_running_under_a_new_epoch(world: World) -> None:
    store = await world.open()
    world.worker(store)
    await start(store, tags='{"x":"y"}')
    world.clock.advance(1)
    [claimed] = await store.claim(request())
    found = await row(store)
    assert (found.status, found.worker, found.epoch, found.next_run_at) == ("running", "w1", 1, None)
    assert (found.started_at, found.version, found.code_version) == (T0 + SECOND, "1/3.11", "c1")
    assert (claimed.id, claimed.epoch, claimed.started_at, claimed.tags) == ("a", 1, T0 + SECOND, '{"x":"y"}')
    assert (claimed.payload, claimed.digest, claimed.version, claimed.code_version) == (
        "[[1],{}]",
        "d1",
        "1/3.11",
        "c1",
    )
    assert claimed.is_fresh


async def test_later_claims_keep_what_the_first_has_set(world: World) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    await one(store, ReleaseOp(fence))
    world.clock.advance(60)
    [claimed] = await store.claim(request(version="1/3.13", code_version="c2"))
    assert (claimed.epoch, claimed.started_at) == (2, T0)
    assert (claimed.version, claimed.code_version) == ("1/3.11", "c1")
    assert not claimed.is_fresh
    found = await row(store)
    assert (found.started_at, found.version, found.code_version) == (T0, "1/3.11", "c1")


async def test_a_first_claim_after_a_signal_is_not_fresh(world: World) -> None:
    store = await world.open()
    world.worker(store)
    await start(store)
    await one(store, SignalOp("a", "go", "1", "t1"))
    [claimed] = await store.claim(request())
    assert (claimed.epoch, claimed.signals, claimed.is_fresh) == (1, 1, False)


async def test_rows_come_by_priority_then_due_time_then_id(world: World) -> None:
    store = await world.open()
    world.worker(store)
    await start(store, "late", run_at=T0 - 1)
    await start(store, "b", run_at=T0 - 5)
    await start(store, "a", run_at=T0 - 5)
    await start(store, "urgent", run_at=T0, priority=-1)
    await start(store, "lazy", run_at=T0 - 9, priority=5)
    assert [one.id for one in await store.claim(request(limit=4))] == ["urgent", "a", "b", "late"]
    assert [one.id for one in await store.claim(request(limit=4))] == ["lazy"]
    assert await store.claim(request(limit=4)) == []


async def test_the_limit_holds_over_all_priorities(world: World) -> None:
    store = await world.open()
    world.worker(store)
    for priority in range(5):
        for number in range(3):
            await start(store, f"{priority}-{number}", priority=priority)
    taken = [one.id for one in await store.claim(request(limit=10))]
    assert taken == [f"{priority}-{number}" for priority in range(4) for number in range(3)][:10]


async def test_only_due_rows_of_the_queue_and_types_are_taken(world: World) -> None:
    store = await world.open()
    world.worker(store)
    await start(store, "later", run_at=T0 + 1)
    await start(store, "elsewhere", queue="other")
    await start(store, "unknown", type="unknown")
    assert await store.claim(request()) == []
    assert [one.id for one in await store.claim(request(types=("unknown", "flow")))] == ["unknown"]
    assert [one.id for one in await store.claim(request(queue="other"))] == ["elsewhere"]
    world.clock.now += 1
    assert [one.id for one in await store.claim(request())] == ["later"]


async def test_only_restricts_to_the_given_ids(world: World) -> None:
    store = await world.open()
    world.worker(store)
    for name in ("a", "b", "c"):
        await start(store, name)
    assert [one.id for one in await store.claim(request(only=("c", "a", "nobody", "a")))] == ["a", "c"]


@pytest.mark.parametrize("worker", ["unregistered", "dead"])
async def test_nothing_is_claimed_for_a_worker_that_is_unknown_or_dead(world: World, worker: str) -> None:
    store = await world.open()
    undertaker = world.worker(store, "w1")
    world.kill(world.worker(store, "dead"))
    undertaker.bury("w1")
    await start(store)
    assert await store.claim(request(worker)) == []
    assert await store.claim(request(worker, only=("a",))) == []
    assert (await row(store)).epoch == 0


async def test_a_newer_journal_format_is_left_for_newer_workers(world: World) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed_with(world, version="2/3.14")
    await one(store, ReleaseOp(fence))
    assert await store.claim(request(version="1/3.14")) == []
    assert await store.next_due(["default"], ["flow"], "c1") is None
    assert [one.id for one in await store.claim(request(version="2/3.14"))] == ["a"]


async def started_and_claimed_with(world: World, **changes: str) -> Fence:
    store = await world.open()
    await start(store)
    [claimed] = await store.claim(request(**changes))
    return fence_of(claimed)


async def crash(world: World, times: int) -> None:
    """Let workers die while they run workflow a."""
    store = await world.open()
    undertaker = world.worker(store, "undertaker")
    for number in range(times):
        leases = world.worker(store, f"victim{number}")
        [_] = await store.claim(request(f"victim{number}", only=("a",), alone=number >= 2))
        world.kill(leases)
        undertaker.bury("undertaker")
    undertaker.retire("undertaker")


async def test_a_row_that_crashed_twice_is_claimed_alone_only(world: World) -> None:
    store = await world.open()
    world.worker(store)
    await start(store)
    await start(store, "b", run_at=T0 - 1)
    await crash(world, 2)
    assert (await row(store)).crashes == 2
    assert await store.next_due(["default"], ["flow"], "c1", alone=True) == (await row(store)).next_run_at
    assert await store.next_due(["default"], ["flow"], "c1", alone=None) == T0 - 1
    assert [one.id for one in await store.claim(request())] == ["b"]
    assert await store.next_due(["default"], ["flow"], "c1") is None
    assert await store.next_due(["default"], ["flow"], "c1", alone=None) == (await row(store)).next_run_at
    assert await store.next_due(["default"], ["flow"], "c1", only=["a"], alone=None) == (await row(store)).next_run_at
    assert [(one.id, one.crashes) for one in await store.claim(request(alone=True))] == [("a", 2)]


async def test_alone_takes_one_quarantined_row_at_a_time_and_no_other(world: World) -> None:
    store = await world.open()
    world.worker(store)
    await start(store)
    await crash(world, 2)
    await start(store, "healthy")
    assert [one.id for one in await store.claim(request(alone=True, limit=10))] == ["a"]
    assert await store.claim(request(alone=True, limit=10)) == []


async def test_claims_of_two_stores_never_share_a_row(world: World) -> None:
    stores = [await world.open() for _ in range(3)]
    for number, store in enumerate(stores):
        world.worker(store, f"w{number}")
    for number in range(60):
        await start(stores[0], f"x{number:02}")
    rounds = [store.claim(request(f"w{n}", limit=7)) for _ in range(4) for n, store in enumerate(stores)]
    taken = [one.id for claimed in await asyncio.gather(*rounds) for one in claimed]
    assert len(taken) == len(set(taken)) == 60


async def test_a_history_is_loaded_after_the_claim_with_mail_and_retries(world: World) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    await record(store, fence, entry(1), entry(2, "x", error='{"type":"E","message":"m"}', result=None))
    retries = FailAttemptOp(
        fence, '{"type":"E","message":"m"}', 0, entries=(entry(3, "attempt", "attempt"),), strike=(2,)
    )
    await one(store, retries)
    await one(store, SignalOp("a", "go", "7", "t1"))
    await claim_one(store)
    [loaded] = await store.load(["a"])
    assert [one.seq for one in loaded.entries] == [1, 3]
    assert loaded.entries[0] == entry(1)
    assert (loaded.last_seq, loaded.signals) == (3, 1)
    assert [(mail.kind, mail.name, mail.payload) for mail in loaded.mail] == [("signal", "go", "7")]


async def test_load_answers_for_the_workflows_that_exist(world: World) -> None:
    store = await world.open()
    await start(store)
    assert [(one.id, one.entries, one.last_seq) for one in await store.load(["a", "nobody"])] == [("a", [], 0)]


async def test_reconcile_releases_what_the_worker_does_not_hold_and_nothing_else(world: World) -> None:
    store = await world.open()
    world.worker(store, "w1")
    world.worker(store, "w2")
    held = await started_and_claimed(store, "held")
    lost = await started_and_claimed(store, "lost")
    other = await started_and_claimed(store, "other", "w2")
    assert await store.reconcile("w1", [("held", held.epoch), ("lost", lost.epoch + 1)]) == ["lost"]
    assert await store.reconcile("w1", [("held", held.epoch)]) == []
    found = await row(store, "lost")
    assert (found.status, found.worker, found.next_run_at, found.crashes) == ("pending", None, T0, 0)
    assert (await row(store, "held")).worker == "w1"
    assert (await row(store, "other")).epoch == other.epoch


async def test_a_write_of_the_owner_after_reconcile_is_never_taken_for_applied(world: World) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    await store.reconcile("w1", [])
    outcome = await one(store, park(fence), retry=True)
    assert outcome != APPLIED
    assert (await row(store)).status == "pending"


@dataclass
class _Due:
    queue: str
    type: str
    run_at: int


async def test_next_due_is_the_earliest_claimable_time_due_or_not(world: World) -> None:
    store = await world.open()
    world.worker(store)
    assert await store.next_due(["default"], ["flow"], "c1") is None
    rows = [_Due("default", "flow", T0 + 9), _Due("second", "flow", T0 + 5), _Due("default", "other", T0 + 1)]
    for number, due in enumerate(rows):
        queue, kind, run_at = astuple(due)
        await start(store, f"x{number}", queue=queue, type=kind, run_at=run_at, priority=number)
    assert await store.next_due(["default"], ["flow"], "c1") == T0 + 9
    assert await store.next_due(["default", "second"], ["flow"], "c1") == T0 + 5
    assert await store.next_due(["default", "second"], ["flow", "other"], "c1") == T0 + 1
    assert await store.next_due(["default", "second"], ["flow"], "c1", only=["x0"]) == T0 + 9
    assert await store.next_due(["default"], ["flow"], "c1", only=["x1"]) is None


async def test_running_and_waiting_rows_without_a_time_are_not_due(world: World) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    assert await store.next_due(["default"], ["flow"], "c1") is None
    await one(store, park(fence))
    assert await store.next_due(["default"], ["flow"], "c1") is None
    assert await store.claim(request()) == []


async def test_a_waiting_row_with_a_time_out_is_claimed_when_it_is_due(world: World) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    await one(store, ParkOp(fence, 0, T0 + SECOND, True, "[]", awaited=3, wake_floor=T0))
    assert await store.next_due(["default"], ["flow"], "c1") == T0 + SECOND
    assert await store.claim(request()) == []
    world.clock.advance(1)
    [claimed] = await store.claim(request())
    found = await row(store)
    assert (claimed.epoch, found.status, found.waiting_for, found.next_run_at) == (2, "running", None, None)


async def test_signals_of_a_worker_are_those_of_its_running_rows(world: World) -> None:
    store = await world.open()
    world.worker(store, "w1")
    world.worker(store, "w2")
    await started_and_claimed(store, "a")
    await started_and_claimed(store, "b", "w2")
    parked = await started_and_claimed(store, "c")
    await one(store, park(parked))
    await one(store, SignalOp("a", "go", "1", "t1"))
    await one(store, SignalOp("a", "go", "2", "t2"))
    assert await store.signals("w1") == {"a": 2}
    assert await store.signals("w2") == {"b": 0}
    assert await store.signals("nobody") == {}


async def test_a_diverged_row_is_adopted_once_by_each_other_code_version(world: World) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    await one(store, ReleaseOp(fence, 300 * SECOND, '{"type":"N","message":"m"}', "v1"))
    assert await store.adopt_diverged("v1") == 0
    assert await store.claim(request()) == []
    assert await store.adopt_diverged("v2") == 1
    [claimed] = await store.claim(request())
    assert claimed.divergences == 1
    await one(store, ReleaseOp(fence_of(claimed), 300 * SECOND, None, "v2"))
    assert await store.adopt_diverged("v1") == 0  # or two versions would push it to and fro for ever
    assert await store.adopt_diverged("v3") == 1
    assert (await row(store)).next_run_at == world.clock.now


async def test_only_the_rows_that_others_could_not_replay_are_adopted(world: World) -> None:
    store = await world.open()
    world.worker(store)
    for version in ("v1", "v2"):
        fence = await started_and_claimed(store, version)
        await one(store, ReleaseOp(fence, 300 * SECOND, None, version))
    assert await store.adopt_diverged("v1") == 1
    assert [found.id for found in await store.claim(request())] == ["v2"]


async def test_a_diverged_row_is_kept_from_that_code_version_until_its_back_off_ends(world: World) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    await one(store, ReleaseOp(fence, 300 * SECOND, None, "v1"))
    assert await store.adopt_diverged("v2") == 1
    for only in (None, ("a",)):
        assert await store.claim(request(code_version="v1", only=only)) == []
        assert await store.next_due(["default"], ["flow"], "v1", only) == T0 + 300 * SECOND
        assert await store.next_due(["default"], ["flow"], "v2", only) == T0
    [claimed] = await store.claim(request(code_version="v2"))
    await one(store, ReleaseOp(fence_of(claimed)))  # v2 stops: v1 is held back still
    world.clock.advance(299)
    assert await store.claim(request(code_version="v1")) == []
    world.clock.advance(1)
    assert [one.id for one in await store.claim(request(code_version="v1"))] == ["a"]


async def test_each_code_version_that_diverged_has_a_back_off_of_its_own(world: World) -> None:
    store = await world.open()
    world.worker(store)
    odd = 'v"2.\\$'
    fence = await started_and_claimed(store)
    await one(store, ReleaseOp(fence, 10 * SECOND, None, "v1"))
    assert await store.adopt_diverged(odd) == 1
    await one(store, ReleaseOp(await claim_one(store, code_version=odd), 300 * SECOND, None, odd))
    assert await store.adopt_diverged(odd) == 0
    assert await store.adopt_diverged("v3") == 1
    world.clock.advance(10)
    assert await store.claim(request(code_version=odd)) == []
    assert await store.next_due(["default"], ["flow"], odd) == T0 + 300 * SECOND
    assert await store.next_due(["default"], ["flow"], odd, alone=True) is None
    assert await store.next_due(["default"], ["other"], odd) is None
    assert await store.next_due(["other"], ["flow"], odd) is None
    assert [claimed.divergences for claimed in await store.claim(request(code_version="v1"))] == [2]


async def test_a_wake_does_not_give_a_diverged_row_to_code_that_is_held_back(world: World) -> None:
    store = await world.open()
    world.worker(store)
    await start(store, "other", run_at=T0 + 50 * SECOND)
    fence = await started_and_claimed(store)
    await one(store, ReleaseOp(fence, 300 * SECOND, None, "v1"))
    await one(store, CancelOp("a"))
    assert (await row(store)).next_run_at == T0
    assert await store.claim(request(code_version="v1")) == []
    assert await store.next_due(["default"], ["flow"], "v1") == T0 + 50 * SECOND
    assert [one.id for one in await store.claim(request(code_version="v2"))] == ["a"]


async def test_the_first_claim_sets_the_deadline_and_no_later_one_moves_it(world: World) -> None:
    store = await world.open()
    world.worker(store)
    await start(store, timeout_us=60 * SECOND)
    world.clock.advance(3600)
    [claimed] = await store.claim(request())
    assert claimed.deadline == claimed.started_at + 60 * SECOND == T0 + 3660 * SECOND
    await one(store, ReleaseOp(fence_of(claimed)))
    world.clock.advance(30)
    for only in (None, ("a",)):
        [again] = await store.claim(request(only=only))
        assert (again.deadline, (await row(store)).deadline) == (claimed.deadline, claimed.deadline)
        await one(store, ReleaseOp(fence_of(again)))


async def test_an_accepted_history_forgets_its_divergences(world: World) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    await one(store, ReleaseOp(fence, 0, None, "v1"))
    fence = await claim_one(store)
    await one(store, park(fence, until=T0, waiting=False))
    [claimed] = await store.claim(request())
    assert claimed.divergences == 0
    await one(store, ReleaseOp(fence_of(claimed), 300 * SECOND))
    assert await store.adopt_diverged("v2") == 0

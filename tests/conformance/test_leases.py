"""Workers, their leases, and what happens to the work of the dead."""

from __future__ import annotations

import asyncio

import pytest

from onward._store.operations import APPLIED, LEASE_LOST, FinishOp, JournalOp, StartOp
from onward.errors import OnwardError
from tests.conformance.support import (
    SECOND,
    T0,
    World,
    claim_one,
    entry,
    new,
    one,
    park,
    record,
    request,
    row,
    start,
    started_and_claimed,
    worker_row,
)


async def test_a_worker_is_listed_with_its_lease_newest_first(world: World) -> None:
    store = await world.open()
    world.worker(store, "w1", lease_s=15)
    world.clock.advance(1)
    world.worker(store, "w2", lease_s=20)
    second, first = await store.workers()
    assert (first.id, first.started_at, first.expires_at, first.is_dead) == ("w1", T0, T0 + 15 * SECOND, False)
    assert (second.id, second.expires_at) == ("w2", T0 + 21 * SECOND)
    assert (first.queues, first.types, first.code_version, first.name) == (("default",), ("flow",), "c1", "test")


async def test_an_id_is_registered_once(world: World) -> None:
    store = await world.open()
    world.worker(store, "w1")
    with pytest.raises(OnwardError):
        world.worker(store, "w1")


async def test_renewal_extends_the_lease_from_now(world: World) -> None:
    store = await world.open()
    leases = world.worker(store, "w1", lease_s=15)
    world.clock.advance(10)
    assert leases.renew("w1", 15 * SECOND)
    [worker] = await store.workers()
    assert worker.expires_at == T0 + 25 * SECOND
    assert not leases.renew("nobody", 15 * SECOND)


async def test_a_living_worker_is_never_buried(world: World) -> None:
    store = await world.open()
    world.worker(store, "w1")
    undertaker = world.worker(store, "w2")
    await started_and_claimed(store)
    assert world.bury_all(undertaker, "w2") == 0
    found = await row(store)
    assert (found.worker, found.crashes) == ("w1", 0)


async def test_a_worker_never_buries_itself(world: World) -> None:
    store = await world.open()
    leases = world.worker(store, "w1", lease_s=1)
    await started_and_claimed(store)
    world.clock.advance(60)
    assert world.bury_all(leases, "w1") == 0
    assert leases.renew("w1", SECOND)


async def test_a_vanished_worker_is_buried_at_once_and_its_rows_released(world: World) -> None:
    store = await world.open()
    victim = world.worker(store, "w1", lease_s=1000)
    undertaker = world.worker(store, "w2", lease_s=1000)
    fence = await started_and_claimed(store)
    await started_and_claimed(store, "mine", "w2")
    world.kill(victim)
    assert undertaker.bury("w2") == 1
    found = await row(store)
    assert (found.status, found.worker, found.crashes, found.attempts) == ("pending", None, 1, 0)
    assert found.next_run_at == world.clock.now
    assert (await row(store, "mine")).worker == "w2"
    assert await one(store, JournalOp(fence, (entry(1),))) == LEASE_LOST
    assert undertaker.bury("w2") == 0


async def test_a_stalled_worker_is_buried_after_its_lease_and_death_is_final(world: World) -> None:
    store = await world.open()
    stalled = world.worker(store, "w1", lease_s=5)
    undertaker = world.worker(store, "w2", lease_s=1000)
    fence = await started_and_claimed(store)
    world.clock.advance(6)
    assert world.bury_all(undertaker, "w2") == 1
    assert not stalled.renew("w1", 1000 * SECOND)
    assert await store.claim(request("w1")) == []
    assert await one(store, FinishOp(fence, "completed", "1")) == LEASE_LOST
    assert [(worker.id, worker.is_dead) for worker in await store.workers()] == [("w2", False), ("w1", True)]
    assert await claim_one(store, worker="w2") is not None


async def test_a_renewal_in_time_saves_a_late_worker(world: World) -> None:
    store = await world.open()
    late = world.worker(store, "w1", lease_s=5)
    undertaker = world.worker(store, "w2", lease_s=1000)
    await started_and_claimed(store)
    world.clock.advance(4)
    assert late.renew("w1", 5 * SECOND)
    world.clock.advance(3)
    assert world.bury_all(undertaker, "w2") == 0


async def test_of_two_undertakers_one_releases_each_row(world: World) -> None:
    store = await world.open()
    victim = world.worker(store, "w1")
    first, second = world.worker(store, "w2"), world.worker(store, "w3")
    for number in range(5):
        await started_and_claimed(store, f"x{number}")
    world.kill(victim)
    counts = await asyncio.gather(asyncio.to_thread(first.bury, "w2"), asyncio.to_thread(second.bury, "w3"))
    assert sum(counts) == 5
    assert {found.crashes for found in [await row(store, f"x{n}") for n in range(5)]} == {1}


async def test_rows_of_an_absent_worker_are_swept(world: World) -> None:
    store = await world.open()
    gone = world.worker(store, "w1")
    undertaker = world.worker(store, "w2")
    await started_and_claimed(store)
    gone.retire("w1")
    assert [worker.id for worker in await store.workers()] == ["w2"]
    assert undertaker.bury("w2") == 1
    assert (await row(store)).status == "pending"


async def test_the_fourth_crash_fails_the_workflow_and_tells_its_parent(world: World) -> None:
    store = await world.open()
    undertaker = world.worker(store, "undertaker")
    parent = await started_and_claimed(store, "parent", "undertaker")
    await one(store, StartOp(new("a", parent_id="parent"), parent))
    await one(store, park(parent))
    for number in range(4):
        victim = world.worker(store, f"v{number}")
        claimed = await store.claim(request(f"v{number}", only=("a",), alone=number >= 2))
        assert [(one.id, one.crashes) for one in claimed] == [("a", number)]
        world.kill(victim)
        assert undertaker.bury("undertaker") == 1
    found = await row(store)
    assert (found.status, found.crashes, found.next_run_at, found.worker) == ("failed", 4, None, None)
    assert '"WorkflowCrashed"' in (found.error or "")
    woken = await row(store, "parent")
    assert (woken.status, woken.signals) == ("pending", 1)
    [inbox] = await store.mail([("parent", 0)])
    assert [(mail.name, mail.error) for mail in inbox.mail] == [("a", found.error)]


async def test_a_recorded_step_between_crashes_resets_the_count(world: World) -> None:
    store = await world.open()
    undertaker = world.worker(store, "undertaker")
    await start(store)
    for number in range(2):
        victim = world.worker(store, f"v{number}")
        fence = await claim_one(store, worker=f"v{number}")
        if number:
            await record(store, fence, entry(1), reset_counters=True)
        world.kill(victim)
        undertaker.bury("undertaker")
    assert (await row(store)).crashes == 1


async def test_takeover_and_the_owners_last_write_end_in_one_winner(world: World) -> None:
    for order in ("write first", "bury first"):
        store = await world.open()
        victim = world.worker(store, f"v-{order}")
        undertaker = world.worker(store, f"u-{order}")
        await start(store, order)
        fence = await claim_one(store, order, f"v-{order}")
        world.kill(victim)
        operation = JournalOp(fence, (entry(1),))
        if order == "write first":
            assert await one(store, operation) == APPLIED
            undertaker.bury(f"u-{order}")
        else:
            undertaker.bury(f"u-{order}")
            assert await one(store, operation) == LEASE_LOST
        await claim_one(store, order, f"u-{order}")
        [loaded] = await store.load([order])
        assert len(loaded.entries) == (1 if order == "write first" else 0)


async def test_a_new_worker_row_needs_a_new_id_after_death(world: World) -> None:
    store = await world.open()
    victim = world.worker(store, "w1")
    undertaker = world.worker(store, "w2")
    world.kill(victim)
    undertaker.bury("w2")
    fresh = store.leases()
    with pytest.raises(OnwardError):
        fresh.register(worker_row("w1"), SECOND)
    fresh.close()

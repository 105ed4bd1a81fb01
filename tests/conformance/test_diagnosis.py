"""What a look at a database says of its work: the facts that `onward doctor` judges are the same on every store."""

from __future__ import annotations

import msgspec

from onward._store.base import Store
from onward._store.diagnosis import Group, Sample, Work
from onward._store.operations import FinishOp, ReleaseOp
from onward._store.records import ErrorRecord
from tests.conformance.support import (
    SECOND,
    T0,
    World,
    claim_one,
    complete,
    entry,
    one,
    park,
    record,
    start,
    start_child,
    started_and_claimed,
)

DAY = 24 * 3600
MISFIT = msgspec.json.encode(ErrorRecord(type="NonDeterminismError", message="does not fit")).decode()


async def work_of(store: Store) -> Work:
    work = (await store.diagnose()).work
    assert work is not None
    return work


async def test_an_empty_database_has_no_work(world: World) -> None:
    work = await work_of(await world.open())
    assert (work.now, work.groups, work.workers, work.held) == (T0, (), (), {})
    assert {work.quarantined, work.crashed, work.diverged, work.unwakeable} == {Sample()}
    assert (work.created_last_day, work.oldest_created_at, work.payloads) == (0, None, ())


async def test_a_look_needs_no_open_store(world: World) -> None:
    store = await world.open()
    await start(store)
    await store.close()
    assert len((await work_of(store)).groups) == 1


async def test_workflows_are_counted_by_status_queue_and_type_with_what_is_due(world: World) -> None:
    store = await world.open()
    world.worker(store)
    await start(store, "due")
    await start(store, "later", delay_us=60 * SECOND)
    await start(store, "mail", queue="mail", type="send")
    await started_and_claimed(store, "runs")
    await start(store, "done")
    await complete(store, "done")
    world.clock.advance(10)
    groups = {(group.status, group.queue, group.type): group for group in (await work_of(store)).groups}
    assert groups["pending", "default", "flow"] == Group("pending", "default", "flow", 2, 1, T0, T0)
    assert groups["pending", "mail", "send"] == Group("pending", "mail", "send", 1, 1, T0, T0)
    assert groups["running", "default", "flow"] == Group("running", "default", "flow", 1, 0, None, T0)
    assert groups["completed", "default", "flow"] == Group("completed", "default", "flow", 1, 0, None, T0, T0)
    assert len(groups) == 4


async def test_workers_are_there_with_what_they_hold_and_whether_their_life_is_proved(world: World) -> None:
    store = await world.open()
    world.worker(store, "w1")
    victim = world.worker(store, "w2", lease_s=1000)
    await started_and_claimed(store, "a")
    await started_and_claimed(store, "b")
    await started_and_claimed(store, "c", "w2")
    victim.close()  # as a killed process does
    work = await work_of(store)
    assert {worker.id for worker in work.workers} == {"w1", "w2"}
    assert work.held == {"w1": 2, "w2": 1}
    assert work.proofs.get("w1") is not False
    assert work.proofs.get("w2") is not True


async def test_a_buried_worker_has_no_proof_and_holds_nothing(world: World) -> None:
    store = await world.open()
    victim = world.worker(store, "w1", lease_s=5)
    undertaker = world.worker(store, "w2", lease_s=1000)
    await started_and_claimed(store)
    victim.close()
    world.clock.advance(6)
    world.bury_all(undertaker, "w2")
    work = await work_of(store)
    assert [worker.id for worker in work.workers if worker.is_dead] == ["w1"]
    assert work.held == {}
    assert "w1" not in work.proofs


async def test_what_crashed_two_workers_is_quarantined_and_not_counted_as_due(world: World) -> None:
    store = await world.open()
    undertaker = world.worker(store, "undertaker", lease_s=1_000_000)
    await start(store)
    await start(store, "innocent")
    for number in range(4):
        worker_id = f"w{number}"
        victim = world.worker(store, worker_id, lease_s=5)
        await claim_one(store, worker=worker_id, alone=number >= 2)
        victim.close()
        world.clock.advance(6)
        world.bury_all(undertaker, "undertaker")
        work = await work_of(store)
        if number == 0:
            assert (work.quarantined, work.groups[0].due_count) == (Sample(), 2)
        elif number < 3:
            assert work.quarantined == Sample(1, ("a",))
            assert work.groups[0].due_count == 1
    assert work.quarantined == Sample()
    assert work.crashed == Sample(1, ("a",))
    world.clock.advance(8 * DAY)
    assert (await work_of(store)).crashed == Sample()


async def test_an_ordinary_failure_is_no_crash(world: World) -> None:
    store = await world.open()
    world.worker(store)
    error = msgspec.json.encode(ErrorRecord(type="ValueError", message="no")).decode()
    await one(store, FinishOp(await started_and_claimed(store), "failed", error=error))
    assert (await work_of(store)).crashed == Sample()


async def test_what_the_code_could_not_replay_is_named_and_not_counted_as_due(world: World) -> None:
    store = await world.open()
    world.worker(store)
    await one(store, ReleaseOp(await started_and_claimed(store), SECOND, MISFIT, "c1"))
    world.clock.advance(60)
    work = await work_of(store)
    assert work.diverged == Sample(1, ("a",))
    assert [group.due_count for group in work.groups] == [0]


async def test_a_sample_names_a_few_and_counts_all(world: World) -> None:
    store = await world.open()
    world.worker(store)
    for number in range(7):
        await one(store, ReleaseOp(await started_and_claimed(store, f"x{number}"), SECOND, MISFIT, "c1"))
    assert (await work_of(store)).diverged == Sample(7, ("x0", "x1", "x2", "x3", "x4"))


async def test_a_wait_for_a_signal_or_for_an_open_workflow_can_end(world: World) -> None:
    store = await world.open()
    world.worker(store)
    signal = msgspec.structs.replace(
        park(await started_and_claimed(store, "s")), waiting_for='[{"kind":"signal","key":"signal:go","name":"go"}]'
    )
    await one(store, signal)
    parent = await started_and_claimed(store, "p")
    await start_child(store, parent, "p/c")
    waits = '[{"kind":"child","key":"gone","name":"gone"},{"kind":"child","key":"p/c","name":"p/c"}]'
    await one(store, msgspec.structs.replace(park(parent), waiting_for=waits))
    assert (await work_of(store)).unwakeable == Sample()


async def test_a_wait_for_what_has_ended_or_does_not_exist_cannot_end_unless_it_has_a_time_out(world: World) -> None:
    store = await world.open()
    world.worker(store)
    await start(store, "ended")
    await complete(store, "ended")
    for name, waits, until in (
        ("absent", '[{"kind":"child","key":"nobody","name":"nobody"}]', None),
        ("over", '[{"kind":"child","key":"ended","name":"ended"}]', None),
        ("nothing", "[]", None),
        ("timed", '[{"kind":"child","key":"nobody","name":"nobody"}]', T0 + 60 * SECOND),
    ):
        fence = await started_and_claimed(store, name)
        await one(store, msgspec.structs.replace(park(fence, until=until), waiting_for=waits))
    assert (await work_of(store)).unwakeable == Sample(3, ("absent", "nothing", "over"))


async def test_a_row_with_as_many_waits_as_are_kept_may_wait_for_more(world: World) -> None:
    store = await world.open()
    world.worker(store)
    waits = msgspec.json.encode([{"kind": "child", "key": "x", "name": f"gone{n}"} for n in range(20)]).decode()
    await one(store, msgspec.structs.replace(park(await started_and_claimed(store)), waiting_for=waits))
    assert (await work_of(store)).unwakeable == Sample()


async def test_growth_is_what_was_created_in_the_last_day(world: World) -> None:
    store = await world.open()
    await start(store, "old")
    world.clock.advance(2 * DAY)
    await start(store, "new")
    work = await work_of(store)
    assert (work.created_last_day, work.oldest_created_at) == (1, T0)


async def test_the_largest_payloads_are_named_with_their_owners(world: World) -> None:
    store = await world.open()
    world.worker(store)
    large = '"' + "x" * 5000 + '"'
    fence = await started_and_claimed(store, payload='["' + "y" * 300 + '"]')
    await record(store, fence, entry(1, "charge", result=large), entry(2, "sleep", "timer", result=None))
    await one(store, FinishOp(fence, "completed", '"' + "ü" * 400 + '"'))
    payloads = (await work_of(store)).payloads
    assert payloads is not None
    assert [(one.workflow_id, one.what, one.size) for one in payloads] == [
        ("a", "result of step charge", 5002),
        ("a", "result", 802),
        ("a", "arguments", 304),
    ]

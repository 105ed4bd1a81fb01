"""What each fenced operation writes: entries, parks, attempts, releases."""

from __future__ import annotations

from typing import Literal

import pytest

from onward._store.operations import (
    APPLIED,
    LEASE_LOST,
    FailAttemptOp,
    Fence,
    FinishOp,
    JournalOp,
    Op,
    ReleaseOp,
    SignalOp,
    StartOp,
)
from onward._store.records import StepRetry
from onward.errors import StoreConflict
from tests.conformance.support import (
    SECOND,
    T0,
    World,
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
    started_and_claimed,
)

ERROR = '{"type":"ValueError","message":"no"}'


async def test_entries_are_recorded_as_they_are(world: World) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    full = entry(
        1, "pay", digest="d", arguments='{"n": "ü\\u0000\\""}', tries=3, started_at=T0, result='"é\\u2028 \\"q\\""'
    )
    failed = entry(2, "pay#2", result=None, error=ERROR)
    await record(store, fence, full, failed)
    [loaded] = await store.load(["a"])
    assert loaded.entries == [full, failed]
    first, second = await store.journal("a")
    assert (first.arguments, first.result, first.tries, first.struck) == (full.arguments, full.result, 3, False)
    assert (second.error, second.result) == (ERROR, None)


async def test_the_last_step_of_the_journal_is_the_workflows_step(world: World) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    await record(store, fence, entry(1, "one"), entry(2, "two"), step="two")
    await record(store, fence, entry(3, "timer", "timer"))
    assert (await row(store)).step == "two"


async def test_progress_and_a_lone_step_are_set(world: World) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    await store.write([JournalOp(fence, progress="1"), JournalOp(fence, progress="2"), JournalOp(fence, step="s")])
    found = await row(store)
    assert (found.progress, found.step, found.status) == ("2", "s", "running")
    await record(store, fence, progress="3")
    assert (await row(store)).progress == "3"


async def test_delivered_mail_leaves_the_mailbox_and_settled_retries_go(world: World) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    await one(
        store, park(fence, until=T0, waiting=False, retries=(StepRetry("s", 2, T0, ERROR), StepRetry("t", 1, T0)))
    )
    for number in range(3):
        await one(store, SignalOp("a", "go", str(number), f"t{number}"))
    fence = await claim_one(store)
    [inbox] = await store.mail([("a", 0)])
    first, second, third = (mail.id for mail in inbox.mail)
    await record(store, fence, entry(1, "signal:go", "signal"), consumed=(first, third), settled=("s",))
    [inbox] = await store.mail([("a", 0)])
    assert [mail.id for mail in inbox.mail] == [second]
    [loaded] = await store.load(["a"])
    assert loaded.retries == [StepRetry("t", 1, T0, None)]


async def test_mail_of_another_workflow_is_never_consumed(world: World) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    await start(store, "b")
    await one(store, SignalOp("b", "go", "1", "t"))
    [inbox] = await store.mail([("b", 0)])
    await record(store, fence, entry(1), consumed=(inbox.mail[0].id,))
    [inbox] = await store.mail([("b", 0)])
    assert len(inbox.mail) == 1


async def test_progress_of_the_workflow_resets_its_counters(world: World) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    await one(store, FailAttemptOp(fence, ERROR, 0))
    fence = await claim_one(store)
    await record(store, fence, entry(1))
    assert (await row(store)).attempts == 1
    await record(store, fence, entry(2), reset_counters=True)
    found = await row(store)
    assert (found.attempts, found.crashes) == (0, 0)


async def test_a_number_that_is_taken_is_a_conflict_and_nothing_of_the_batch_is_written(world: World) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    await record(store, fence, entry(1))
    batch: list[Op] = [
        StartOp(new("z")),
        SignalOp("a", "go", "1", "t"),
        JournalOp(fence, (entry(2),), progress="1"),
        JournalOp(fence, (entry(1, "another"),)),
    ]
    with pytest.raises(StoreConflict):
        await store.write(batch)
    assert [one.seq for one in await store.journal("a")] == [1]
    assert await store.get("z") is None
    found = await row(store)
    assert (found.progress, found.signals, found.status) == (None, 0, "running")


async def test_park_waits_without_a_time_or_until_one(world: World) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    await one(store, park(fence))
    found = await row(store)
    assert (found.status, found.worker, found.next_run_at) == ("waiting", None, None)
    assert found.waiting_for == '[{"for":"test"}]'
    fence = await started_and_claimed(store, "b")
    await one(store, park(fence, until=T0 + SECOND, waiting=False))
    found = await row(store, "b")
    assert (found.status, found.next_run_at) == ("pending", T0 + SECOND)


async def test_retry_states_survive_a_park_and_are_replaced_by_the_next(world: World) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    await one(store, park(fence, until=T0, waiting=False, retries=(StepRetry("s", 1, T0, ERROR),)))
    fence = await claim_one(store)
    await one(store, FailAttemptOp(fence, ERROR, 0, retries=(StepRetry("s", 2, T0 + 1, None),)))
    [loaded] = await store.load(["a"])
    assert loaded.retries == [StepRetry("s", 2, T0 + 1, None)]


async def test_a_failed_attempt_backs_off_and_strikes_out(world: World) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    await record(store, fence, entry(1), entry(2))
    operation = FailAttemptOp(fence, ERROR, 7 * SECOND, (entry(3, "attempt", "attempt", result="7000000"),), (2,))
    assert await one(store, operation) == APPLIED
    found = await row(store)
    assert (found.status, found.attempts, found.error, found.worker) == ("pending", 1, ERROR, None)
    assert (found.next_run_at, found.waiting_for) == (T0 + 7 * SECOND, None)
    assert [(one.seq, one.struck) for one in await store.journal("a")] == [(1, False), (2, True), (3, False)]


async def test_a_release_spends_nothing(world: World) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    await one(store, FailAttemptOp(fence, ERROR, 0))
    fence = await claim_one(store)
    await one(store, ReleaseOp(fence, 3 * SECOND))
    found = await row(store)
    assert (found.status, found.attempts, found.crashes, found.error) == ("pending", 1, 0, ERROR)
    assert (found.worker, found.next_run_at) == (None, T0 + 3 * SECOND)


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
async def test_finish_writes_the_one_outcome_and_clears_what_is_no_longer_needed(
    world: World, status: Literal["completed", "failed", "cancelled"]
) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    await one(store, park(fence, until=T0, waiting=False, retries=(StepRetry("s", 1, T0),)))
    await one(store, SignalOp("a", "go", "1", "t"))
    fence = await claim_one(store)
    world.clock.advance(1)
    await one(
        store, FinishOp(fence, status, '"r"', None) if status == "completed" else FinishOp(fence, status, None, ERROR)
    )
    found = await row(store)
    assert (found.status, found.worker, found.next_run_at, found.finished_at) == (status, None, None, T0 + SECOND)
    assert (found.result, found.error) == (('"r"', None) if status == "completed" else (None, ERROR))
    [loaded] = await store.load(["a"])
    assert (loaded.mail, loaded.retries) == ([], [])
    assert await store.claim(request()) == []


@pytest.mark.parametrize("spends", [True, False])
async def test_an_end_counts_as_a_failed_attempt_where_it_says_so(world: World, spends: bool) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    await one(store, FailAttemptOp(fence, ERROR, 0))
    end = FinishOp(await claim_one(store), "failed", error=ERROR, spends_attempt=spends)
    assert [await one(store, end, retry=retry) for retry in (False, True)] == [APPLIED, APPLIED]
    assert (await row(store)).attempts == 1 + spends


# --- fences and the prefix rule ---


def fenced(fence: Fence) -> dict[str, Op]:
    return {
        "journal": JournalOp(fence, (entry(9),), progress="9"),
        "park": park(fence),
        "finish": FinishOp(fence, "completed", "1"),
        "fail": FailAttemptOp(fence, ERROR, 0, (entry(9),)),
        "release": ReleaseOp(fence),
        "start": StartOp(new("a/late", parent_id="a"), fence),
    }


@pytest.mark.parametrize("kind", ["journal", "park", "finish", "fail", "release", "start"])
@pytest.mark.parametrize("retry", [False, True])
@pytest.mark.parametrize("stale", ["epoch", "worker", "nobody"])
async def test_a_worker_that_lost_the_row_writes_nothing(world: World, kind: str, stale: str, retry: bool) -> None:
    store = await world.open()
    world.worker(store, "w1")
    world.worker(store, "w2")
    late = await started_and_claimed(store)
    if stale == "epoch":
        await one(store, ReleaseOp(late))
        await claim_one(store)
    elif stale == "worker":
        late = Fence("a", "w2", late.epoch)
    else:
        late = Fence("nobody", "w1", 1)
    before, journal = await row(store), await store.journal("a")
    assert await one(store, fenced(late)[kind], retry=retry) == LEASE_LOST
    assert await row(store) == before
    assert await store.journal("a") == journal
    assert await store.get("a/late") is None


async def test_a_refused_execution_takes_none_of_the_others_along(world: World) -> None:
    store = await world.open()
    world.worker(store)
    good = await started_and_claimed(store, "good")
    bad = await started_and_claimed(store, "bad")
    stale = Fence("bad", "w1", bad.epoch - 1)
    batch: list[Op] = [
        JournalOp(stale, (entry(1),)),
        JournalOp(good, (entry(1),)),
        FinishOp(stale, "completed", "1"),
        FinishOp(good, "completed", "1"),
    ]
    assert await store.write(batch) == [LEASE_LOST, APPLIED, LEASE_LOST, APPLIED]
    assert (await row(store, "bad")).status == "running"
    assert (await row(store, "good")).status == "completed"


async def test_nothing_follows_the_operation_that_gives_a_row_back(world: World) -> None:
    store = await world.open()
    world.worker(store)
    for number, kind in enumerate(("park", "finish", "fail", "release")):
        name = f"x{number}"
        fence = await started_and_claimed(store, name)
        batch: list[Op] = [JournalOp(fence, (entry(1),)), fenced(fence)[kind], JournalOp(fence, (entry(2),))]
        assert await store.write([*batch, ReleaseOp(fence)]) == [APPLIED, APPLIED, LEASE_LOST, LEASE_LOST]
        seqs = [one.seq for one in await store.journal(name)]
        assert seqs == ([1, 9] if kind == "fail" else [1])


# --- the same batch again, after an unknown commit ---


@pytest.mark.parametrize("kind", ["journal", "park", "finish", "fail", "release", "start"])
async def test_a_batch_written_again_after_its_commit_changes_nothing(world: World, kind: str) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    batch: list[Op] = [JournalOp(fence, (entry(1), entry(2))), fenced(fence)[kind]]
    outcomes = await store.write(batch)
    before, journal = await row(store), await store.journal("a")
    world.clock.advance(5)
    assert await store.write(batch, retry=True) == outcomes
    after = await row(store)
    assert await store.journal("a") == journal
    assert (after.attempts, after.status, after.next_run_at) == (before.attempts, before.status, before.next_run_at)


@pytest.mark.parametrize("kind", ["journal", "park", "finish", "fail", "release", "start"])
async def test_a_batch_that_never_reached_the_database_is_written_by_the_retry(world: World, kind: str) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    batch: list[Op] = [JournalOp(fence, (entry(1), entry(2))), fenced(fence)[kind]]
    outcomes = await store.write(batch, retry=True)
    assert outcomes[0] == APPLIED
    assert [one.seq for one in await store.journal("a")][:2] == [1, 2]


async def test_a_wake_between_commit_and_retry_is_not_overwritten(world: World) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    operation = park(fence)
    await one(store, operation)
    await one(store, SignalOp("a", "go", "1", "t"))
    assert await one(store, operation, retry=True) == APPLIED
    assert (await row(store)).status == "pending"


async def test_other_content_under_a_recorded_number_is_a_conflict_on_retry(world: World) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    await record(store, fence, entry(1))
    with pytest.raises(StoreConflict):
        await one(store, JournalOp(fence, (entry(1, result='"other"'),)), retry=True)


async def test_an_execution_ended_by_someone_else_is_lost_on_retry_and_not_applied(world: World) -> None:
    store = await world.open()
    world.worker(store, "w1", lease_s=1)
    undertaker = world.worker(store, "w2", lease_s=100)
    fence = await started_and_claimed(store)
    world.clock.advance(2)
    assert world.bury_all(undertaker, "w2") == 1
    batch: list[Op] = [JournalOp(fence, (entry(1),)), FinishOp(fence, "completed", "1")]
    assert await store.write(batch, retry=True) == [LEASE_LOST, LEASE_LOST]
    assert await store.journal("a") == []
    assert (await row(store)).status == "pending"


# --- ends ---


async def test_a_childs_end_is_mail_for_its_parent_and_wakes_it(world: World) -> None:
    store = await world.open()
    world.worker(store)
    parent = await started_and_claimed(store)
    await one(store, StartOp(new("a/c", parent_id="a"), parent))
    await one(store, park(parent))
    world.clock.advance(1)
    await complete(store, "a/c")
    found = await row(store)
    assert (found.status, found.next_run_at, found.signals) == ("pending", T0 + SECOND, 1)
    [loaded] = await store.load(["a"])
    [mail] = loaded.mail
    assert (mail.kind, mail.name, mail.payload, mail.error) == ("child", "a/c", '"done"', None)
    assert mail.created_at == T0 + SECOND


async def test_a_failed_childs_error_is_in_the_mail(world: World) -> None:
    store = await world.open()
    world.worker(store)
    parent = await started_and_claimed(store)
    await one(store, StartOp(new("a/c", parent_id="a"), parent))
    child = await claim_one(store, "a/c")
    await one(store, FinishOp(child, "failed", None, ERROR))
    [inbox] = await store.mail([("a", 0)])
    assert [(mail.payload, mail.error) for mail in inbox.mail] == [(None, ERROR)]


async def test_a_parent_that_has_ended_gets_no_mail(world: World) -> None:
    store = await world.open()
    world.worker(store)
    parent = await started_and_claimed(store)
    await one(store, StartOp(new("a/c", parent_id="a"), parent))
    child = await claim_one(store, "a/c")
    batch: list[Op] = [FinishOp(parent, "completed", "1"), FinishOp(child, "completed", "2")]
    assert await store.write(batch) == [APPLIED, APPLIED]
    [inbox] = await store.mail([("a", 0)])
    assert (inbox.mail, inbox.signals) == ([], 0)


async def test_many_ends_in_one_batch_wake_a_parent_once_with_all_the_mail(world: World) -> None:
    store = await world.open()
    world.worker(store)
    parent = await started_and_claimed(store)
    children = [f"a/c{number}" for number in range(5)]
    for name in children:
        await one(store, StartOp(new(name, parent_id="a"), parent))
    fences = [await claim_one(store, name) for name in children]
    await store.write(
        [park(parent, awaited=5, wake_floor=T0 + 60 * SECOND), *(FinishOp(f, "completed", "1") for f in fences)]
    )
    found = await row(store)
    assert (found.status, found.next_run_at, found.signals) == ("pending", T0, 5)
    [loaded] = await store.load(["a"])
    assert [mail.name for mail in loaded.mail] == children


async def test_a_cancelled_parent_takes_its_living_children_along_in_its_own_transaction(world: World) -> None:
    store = await world.open()
    world.worker(store)
    parent = await started_and_claimed(store)
    for name in ("a/new", "a/running", "a/done"):
        await one(store, StartOp(new(name, parent_id="a"), parent))
    await claim_one(store, "a/running")
    await one(store, FinishOp(await claim_one(store, "a/done"), "completed", "1"))
    assert await one(store, FinishOp(parent, "cancelled", error=ERROR, cancels_children=True)) == APPLIED
    assert (await row(store, "a/new")).status == "cancelled"
    assert (await row(store, "a/done")).status == "completed"
    running = await row(store, "a/running")
    assert (running.status, running.cancel_requested_at) == ("running", T0)
    [inbox] = await store.mail([("a/running", 0)])
    assert [mail.kind for mail in inbox.mail] == ["cancel"]


async def test_a_parent_that_simply_ends_leaves_its_children_alone(world: World) -> None:
    store = await world.open()
    world.worker(store)
    parent = await started_and_claimed(store)
    await one(store, StartOp(new("a/c", parent_id="a"), parent))
    assert await one(store, FinishOp(parent, "failed", error=ERROR)) == APPLIED
    assert (await row(store, "a/c")).status == "pending"

"""Mail and wakes: signals, children, cancels, operators' retries, in every order relative to a park."""

from __future__ import annotations

import itertools

import pytest

from onward._store.base import Store
from onward._store.operations import (
    APPLIED,
    NOT_FOUND,
    AlreadyFinal,
    CancelOp,
    FailAttemptOp,
    FinishOp,
    JournalOp,
    Op,
    ReleaseOp,
    RetryOp,
    SignalOp,
    StartOp,
)
from onward._store.records import StepRetry
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
    start_child,
    started_and_claimed,
)

ERROR = '{"type":"ValueError","message":"no"}'


async def test_signals_are_kept_in_order_with_their_names_and_payloads(world: World) -> None:
    store = await world.open()
    await start(store)
    await store.write([SignalOp("a", "x", "1", "t1"), SignalOp("a", "y", '"ü"', "t2")])
    world.clock.advance(1)
    await one(store, SignalOp("a", "x", "3", "t3"))
    [loaded] = await store.load(["a"])
    assert [(m.kind, m.name, m.payload) for m in loaded.mail] == [
        ("signal", "x", "1"),
        ("signal", "y", '"ü"'),
        ("signal", "x", "3"),
    ]
    assert [m.created_at for m in loaded.mail] == [T0, T0, T0 + SECOND]
    assert sorted(m.id for m in loaded.mail) == [m.id for m in loaded.mail]


async def test_mail_is_read_from_a_watermark(world: World) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    await start(store, "b")
    for number in range(4):
        await one(store, SignalOp("a" if number % 2 else "b", "x", str(number), f"t{number}"))
    [everything] = await store.mail([("a", 0)])
    assert (everything.epoch, everything.signals) == (fence.epoch, 2)
    a, b = await store.mail([("a", everything.mail[0].id), ("b", everything.mail[1].id), ("nobody", 0)])
    assert [m.payload for m in a.mail] == ["3"]
    assert b.mail == []


async def test_a_signal_to_nobody_or_to_the_ended_is_refused(world: World) -> None:
    store = await world.open()
    world.worker(store)
    await start(store)
    await complete(store, "a")
    outcomes = await store.write([SignalOp("nobody", "x", "1", "t"), SignalOp("a", "x", "1", "t")])
    assert outcomes == [NOT_FOUND, AlreadyFinal("completed")]
    [loaded] = await store.load(["a"])
    assert (loaded.mail, loaded.signals) == ([], 0)


async def test_a_signal_repeated_with_its_token_is_delivered_once_even_after_it_was_read(world: World) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    operation = SignalOp("a", "x", "1", "token")
    assert await store.write([operation, operation]) == [APPLIED, APPLIED]
    [inbox] = await store.mail([("a", 0)])
    assert (len(inbox.mail), inbox.signals) == (1, 1)
    await record(store, fence, entry(1, "signal:x", "signal"), consumed=(inbox.mail[0].id,))
    assert await one(store, operation, retry=True) == APPLIED
    [inbox] = await store.mail([("a", 0)])
    assert (inbox.mail, inbox.signals) == ([], 1)


async def test_the_same_token_for_two_workflows_is_two_signals(world: World) -> None:
    store = await world.open()
    await start(store, "a")
    await start(store, "b")
    await store.write([SignalOp("a", "x", "1", "token"), SignalOp("b", "x", "1", "token")])
    assert [len(inbox.mail) for inbox in await store.mail([("a", 0), ("b", 0)])] == [1, 1]


# --- the rule of the count ---


@pytest.mark.parametrize("order", ["park first", "signal first", "one batch", "one batch, signal first"])
async def test_a_signal_and_a_park_in_any_order_leave_the_workflow_runnable(world: World, order: str) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    parks, signal = park(fence), SignalOp("a", "x", "1", "t")
    batches: dict[str, list[list[Op]]] = {
        "park first": [[parks], [signal]],
        "signal first": [[signal], [parks]],
        "one batch": [[parks, signal]],
        "one batch, signal first": [[signal, parks]],
    }
    for batch in batches[order]:
        assert set(await store.write(batch)) == {APPLIED}
    found = await row(store)
    assert (found.status, found.next_run_at, found.signals) == ("pending", T0, 1)
    [claimed] = await store.claim(request())
    assert claimed.signals == 1


async def test_a_park_that_knows_the_signal_sleeps(world: World) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    await one(store, SignalOp("a", "x", "1", "t"))
    await one(store, park(fence, seen=1))
    assert (await row(store)).status == "waiting"


async def test_a_sleeping_row_is_pulled_forward_by_a_signal_but_never_put_back(world: World) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    await one(store, park(fence, until=T0 + 60 * SECOND, waiting=False))
    world.clock.advance(1)
    await one(store, SignalOp("a", "x", "1", "t1"))
    world.clock.advance(1)
    await one(store, SignalOp("a", "x", "1", "t2"))
    found = await row(store)
    assert (found.status, found.next_run_at, found.signals) == ("pending", T0 + SECOND, 2)


@pytest.mark.parametrize("kind", ["delayed", "backing off", "released"])
async def test_rows_delayed_or_backing_off_are_not_pulled_forward_by_signals(world: World, kind: str) -> None:
    store = await world.open()
    world.worker(store)
    if kind == "delayed":
        await start(store, run_at=T0 + 60 * SECOND)
    else:
        fence = await started_and_claimed(store)
        back_off = FailAttemptOp(fence, ERROR, 60 * SECOND) if kind == "backing off" else ReleaseOp(fence, 60 * SECOND)
        await one(store, back_off)
    await one(store, SignalOp("a", "x", "1", "t"))
    found = await row(store)
    assert (found.status, found.next_run_at, found.signals) == ("pending", T0 + 60 * SECOND, 1)


async def test_a_running_row_only_counts(world: World) -> None:
    store = await world.open()
    world.worker(store)
    await started_and_claimed(store)
    await one(store, SignalOp("a", "x", "1", "t"))
    found = await row(store)
    assert (found.status, found.next_run_at, found.signals) == ("running", None, 1)


# --- children and the floor ---


async def waiting_for_children(world: World, count: int, floor_s: float | None, awaited: int | None = None) -> Store:
    store = await world.open()
    world.worker(store)
    parent = await started_and_claimed(store)
    for number in range(count):
        await start_child(store, parent, f"a/c{number}")
    floor = None if floor_s is None else T0 + int(floor_s * SECOND)
    await one(store, park(parent, awaited=count if awaited is None else awaited, wake_floor=floor))
    return store


async def test_a_child_before_the_floor_wakes_its_parent_only_then(world: World) -> None:
    store = await waiting_for_children(world, 3, floor_s=10)
    await complete(store, "a/c0")
    found = await row(store)
    assert (found.status, found.next_run_at, found.signals) == ("waiting", T0 + 10 * SECOND, 1)
    assert await store.claim(request(only=("a",))) == []
    world.clock.advance(10)
    [_] = await store.claim(request(only=("a",)))


async def test_the_last_awaited_child_wakes_at_once(world: World) -> None:
    store = await waiting_for_children(world, 2, floor_s=10)
    await complete(store, "a/c0")
    world.clock.advance(1)
    await complete(store, "a/c1")
    found = await row(store)
    assert (found.status, found.next_run_at, found.signals) == ("pending", T0 + SECOND, 2)


async def test_a_failed_child_wakes_at_once(world: World) -> None:
    store = await waiting_for_children(world, 3, floor_s=10)
    child = await claim_one(store, "a/c0")
    await one(store, FinishOp(child, "failed", None, ERROR))
    assert (await row(store)).next_run_at == T0


async def test_a_child_after_the_floor_wakes_at_once(world: World) -> None:
    store = await waiting_for_children(world, 3, floor_s=10)
    world.clock.advance(11)
    await complete(store, "a/c0")
    assert (await row(store)).next_run_at == T0 + 11 * SECOND


async def test_without_a_floor_each_child_wakes(world: World) -> None:
    store = await waiting_for_children(world, 3, floor_s=None)
    await complete(store, "a/c0")
    found = await row(store)
    assert (found.status, found.next_run_at) == ("pending", T0)


async def test_a_signal_wakes_before_the_floor(world: World) -> None:
    store = await waiting_for_children(world, 3, floor_s=10)
    await one(store, SignalOp("a", "x", "1", "t"))
    assert (await row(store)).next_run_at == T0


async def test_a_time_out_before_the_floor_stays(world: World) -> None:
    store = await world.open()
    world.worker(store)
    parent = await started_and_claimed(store)
    for number in range(2):
        await start_child(store, parent, f"a/c{number}")
    await one(store, park(parent, until=T0 + 5 * SECOND, awaited=2, wake_floor=T0 + 10 * SECOND))
    await complete(store, "a/c0")
    assert (await row(store)).next_run_at == T0 + 5 * SECOND


@pytest.mark.parametrize("order", list(itertools.permutations(["park", "c0", "c1"])))
async def test_two_children_and_a_park_in_any_order_never_lose_the_wake(world: World, order: tuple[str, ...]) -> None:
    store = await world.open()
    world.worker(store)
    parent = await started_and_claimed(store)
    for name in ("c0", "c1"):
        await start_child(store, parent, f"a/{name}")
    for what in order:
        if what == "park":
            await one(store, park(parent, awaited=2, wake_floor=T0 + 60 * SECOND))
        else:
            await complete(store, f"a/{what}")
    found = await row(store)
    assert (found.status, found.next_run_at, found.signals) == ("pending", T0, 2)


# --- cancel ---


async def test_a_cancel_before_the_first_claim_ends_the_workflow_and_tells_its_parent(world: World) -> None:
    store = await world.open()
    world.worker(store)
    parent = await started_and_claimed(store)
    await one(store, StartOp(new("a/c", parent_id="a", delay_us=99 * SECOND), parent))
    await one(store, SignalOp("a/c", "x", "1", "t"))
    assert await one(store, CancelOp("a/c")) == APPLIED
    found = await row(store, "a/c")
    assert (found.status, found.next_run_at, found.finished_at) == ("cancelled", None, T0)
    assert '"status":"cancelled"' in (found.error or "")
    [inbox] = await store.mail([("a", 0)])
    assert [(m.kind, m.name, m.error) for m in inbox.mail] == [("child", "a/c", found.error)]
    [loaded] = await store.load(["a/c"])
    assert loaded.mail == []
    assert await one(store, CancelOp("a/c"), retry=True) == APPLIED
    assert await one(store, CancelOp("a/c")) == AlreadyFinal("cancelled")


@pytest.mark.parametrize("state", ["waiting", "sleeping", "backing off", "running"])
async def test_a_later_cancel_is_asked_for_once_and_wakes_whatever_the_row_does(world: World, state: str) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    operations: dict[str, Op] = {
        "waiting": park(fence, awaited=3, wake_floor=T0 + 60 * SECOND),
        "sleeping": park(fence, until=T0 + 60 * SECOND, waiting=False),
        "backing off": FailAttemptOp(fence, ERROR, 60 * SECOND),
        "running": JournalOp(fence, (entry(1),)),
    }
    await one(store, operations[state])
    world.clock.advance(1)
    assert await store.write([CancelOp("a"), CancelOp("a")]) == [APPLIED, APPLIED]
    await one(store, CancelOp("a"))
    found = await row(store)
    assert (found.cancel_requested_at, found.signals) == (T0 + SECOND, 1)
    expected = ("running", None) if state == "running" else ("pending", T0 + SECOND)
    assert (found.status, found.next_run_at) == expected
    [inbox] = await store.mail([("a", 0)])
    assert [(m.kind, m.created_at) for m in inbox.mail] == [("cancel", T0 + SECOND)]


async def test_cancelling_nobody_or_the_ended_is_refused(world: World) -> None:
    store = await world.open()
    world.worker(store)
    await start(store)
    await complete(store, "a")
    assert await store.write([CancelOp("nobody"), CancelOp("a")]) == [NOT_FOUND, AlreadyFinal("completed")]


# --- an operator's retry ---


async def failed(world: World, error: str, status: str = "failed") -> Store:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store, timeout_us=100 * SECOND)
    await one(store, FailAttemptOp(fence, ERROR, 0))
    fence = await claim_one(store)
    await one(store, CancelOp("a"))
    entries = (entry(1), entry(2), entry(3, "cancel", "cancel"), entry(4))
    await record(store, fence, *entries)
    await one(store, FinishOp(fence, status, None, error))  # type: ignore[arg-type]
    return store


async def test_retrying_a_failed_workflow_makes_it_pending_and_clears_its_outcome(world: World) -> None:
    store = await failed(world, ERROR)
    world.clock.advance(1)
    assert await one(store, RetryOp("a")) == APPLIED
    found = await row(store)
    assert (found.status, found.next_run_at, found.attempts, found.crashes) == ("pending", T0 + SECOND, 0, 0)
    assert (found.error, found.finished_at, found.cancel_requested_at) == (None, None, None)
    assert [one.struck for one in await store.journal("a")] == [False] * 4


async def test_retrying_a_failed_workflow_gives_it_a_new_deadline_from_its_next_claim_on(world: World) -> None:
    store = await failed(world, ERROR)
    assert (await row(store)).deadline == T0 + 100 * SECOND
    await one(store, RetryOp("a"))
    assert (await row(store)).deadline is None
    world.clock.advance(500)
    [claimed] = await store.claim(request())
    assert (claimed.started_at, claimed.deadline) == (T0, T0 + 600 * SECOND)
    assert (await row(store)).deadline == claimed.deadline


async def test_an_operators_retry_lets_code_that_diverged_try_at_once(world: World) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    await one(store, ReleaseOp(fence, 300 * SECOND, ERROR, "c1"))
    assert await one(store, RetryOp("a")) == APPLIED
    assert await store.next_due(["default"], ["flow"], "c1") == T0
    assert [claimed.divergences for claimed in await store.claim(request())] == [1]


async def test_retry_strikes_out_from_the_entry_that_made_the_failure_certain(world: World) -> None:
    store = await failed(world, '{"type":"E","message":"m","seq":2}')
    await one(store, RetryOp("a"))
    assert [one.struck for one in await store.journal("a")] == [False, True, True, True]
    [loaded] = await store.load(["a"])
    assert ([one.seq for one in loaded.entries], loaded.last_seq) == ([1], 4)


@pytest.mark.parametrize(
    ("status", "error"),
    [("cancelled", '{"type":"C","message":"m"}'), ("failed", '{"type":"T","message":"m","timed_out":true}')],
)
async def test_retry_of_a_cancelled_or_timed_out_workflow_strikes_out_from_there(
    world: World, status: str, error: str
) -> None:
    store = await failed(world, error, status)
    await one(store, RetryOp("a"))
    assert [one.struck for one in await store.journal("a")] == [False, False, True, True]


async def test_retry_survives_an_error_that_is_no_json(world: World) -> None:
    if not world.keeps_any_text:
        pytest.skip("this database keeps no error that is no JSON")
    store = await failed(world, "spoiled by hand")
    assert await one(store, RetryOp("a")) == APPLIED
    assert (await row(store)).status == "pending"


async def test_retry_runs_what_is_backing_off_now_its_steps_too(world: World) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    retries = (StepRetry("s", 1, T0 + 60 * SECOND),)
    await one(store, FailAttemptOp(fence, ERROR, 60 * SECOND, retries=retries))
    await start(store, "delayed", delay_us=60 * SECOND)
    assert await store.write([RetryOp("a"), RetryOp("delayed")]) == [APPLIED, APPLIED]
    assert {one.id for one in await store.claim(request())} == {"a", "delayed"}
    [loaded] = await store.load(["a"])
    assert [retry.next_at for retry in loaded.retries] == [T0]


async def test_retry_leaves_the_running_alone_and_refuses_the_completed(world: World) -> None:
    store = await world.open()
    world.worker(store)
    await started_and_claimed(store, "running")
    before = await row(store, "running")
    await start(store, "over")
    await complete(store, "over")
    outcomes = await store.write([RetryOp("running"), RetryOp("over"), RetryOp("nobody")])
    assert outcomes == [APPLIED, AlreadyFinal("completed"), NOT_FOUND]
    assert await row(store, "running") == before

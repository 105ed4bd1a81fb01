"""Group commit: batches, order, the prefix rule, splitting, trying again, and telling the owners."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from typing import Any, cast
from unittest.mock import AsyncMock

import pytest

from onward._engine.committer import MAX_BATCH, SHARE, Call, Committer
from onward._store.base import Store
from onward._store.operations import APPLIED, BUSY, LEASE_LOST, CancelOp, Op, Outcome
from onward.errors import (
    FatalStoreError,
    OnwardError,
    OutcomeUnknown,
    StoreConflict,
    StoreError,
    StoreMoved,
    TransientStoreError,
)
from tests.unit.engine.leaping import turns

Answer = StoreError | Sequence[Outcome] | Callable[[list[str]], "Sequence[Outcome] | StoreError | None"] | None


class FakeStore:
    """The protocol's `write`: keeps what it was given, answers as told, else that all is applied."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.writes: list[list[str]] = []
        self.retries: list[bool] = []
        self.at: list[float] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def write(self, batch: Sequence[Op], *, retry: bool = False) -> Sequence[Outcome]:
        names = [op.workflow_id for op in batch if isinstance(op, CancelOp)]
        self.writes.append(names)
        self.retries.append(retry)
        self.at.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0)  # no real store answers in the same turn
        await self.gate.wait()
        answer = self.answers.pop(0) if self.answers else None
        if callable(answer):
            answer = answer(names)
        if isinstance(answer, StoreError):
            raise answer
        return answer if answer is not None else [APPLIED] * len(batch)


class Teller:
    """An owner that keeps what it is told."""

    def __init__(self) -> None:
        self.is_dropped = False
        self.told: list[tuple[str, object]] = []
        self.when_told: Callable[[], None] = lambda: None

    def settled(self, op: Op, outcome: Outcome) -> None:
        self.told.append((cast("CancelOp", op).workflow_id, outcome))
        self.when_told()

    def refused(self, op: Op, error: OnwardError) -> None:
        self.told.append((cast("CancelOp", op).workflow_id, error))


def committer(store: FakeStore, **options: Any) -> Committer:
    made = Committer(cast("Store", store), rng=random.Random(1), **options)
    made.start()
    return made


def put(to: Committer, owner: Teller | Call, *names: str) -> None:
    for name in names:
        to.submit(CancelOp(name), owner)


def poison(name: str) -> Callable[[list[str]], StoreConflict | None]:
    """Refuses every batch with this operation in it."""
    return lambda names: StoreConflict(f"{name} breaks a constraint") if name in names else None


async def test_an_operation_that_finds_the_store_idle_goes_out_at_once() -> None:
    """No fixed delay: it is written before the loop's time has moved."""
    store = FakeStore()
    writer = committer(store)
    put(writer, Teller(), "a")
    await writer.stop()
    assert store.writes == [["a"]]
    assert store.at == [0.0]


async def test_everything_queued_during_a_flush_goes_out_in_one_batch_in_order() -> None:
    """Operations of several owners that come while a commit is in flight share the next one."""
    store, one, two = FakeStore(), Teller(), Teller()
    store.gate.clear()
    writer = committer(store)
    put(writer, one, "a1")
    await turns()
    for number in range(2, 5):
        put(writer, one, f"a{number}")
        put(writer, two, f"b{number}")
        await turns(3)
    store.gate.set()
    await writer.stop()
    assert store.writes == [["a1"], ["a2", "b2", "a3", "b3", "a4", "b4"]]
    assert one.told == [("a1", APPLIED), ("a2", APPLIED), ("a3", APPLIED), ("a4", APPLIED)]
    assert two.told == [("b2", APPLIED), ("b3", APPLIED), ("b4", APPLIED)]


async def test_a_batch_has_a_limit_and_what_is_over_follows_at_once() -> None:
    """More than MAX_BATCH operations take two commits, in order."""
    store, owner = FakeStore(), Teller()
    writer = committer(store)
    names = [str(number) for number in range(MAX_BATCH + 3)]
    put(writer, owner, *names)
    await writer.stop()
    assert store.writes == [names[:MAX_BATCH], names[MAX_BATCH:]]


async def test_outcomes_go_to_the_owner_of_each_operation() -> None:
    """The n-th outcome belongs to the n-th operation, whoever owns it."""
    store, one, two = FakeStore([APPLIED, LEASE_LOST]), Teller(), Teller()
    writer = committer(store)
    put(writer, one, "a")
    put(writer, two, "b")
    await writer.stop()
    assert one.told == [("a", APPLIED)]
    assert two.told == [("b", LEASE_LOST)]


async def test_after_a_lost_lease_nothing_of_that_owner_is_told_or_written() -> None:
    """The first refused operation drops its owner: later ones of the batch are silent, queued ones are never written."""
    store, lost, other = FakeStore([APPLIED, LEASE_LOST, LEASE_LOST, APPLIED]), Teller(), Teller()
    store.gate.clear()
    writer = committer(store)
    put(writer, lost, "a1", "a2", "a3")
    put(writer, other, "b1")
    await turns()
    put(writer, lost, "a4")
    put(writer, other, "b2")
    store.gate.set()
    await writer.stop()
    assert lost.told == [("a1", APPLIED), ("a2", LEASE_LOST)]
    assert lost.is_dropped
    assert store.writes == [["a1", "a2", "a3", "b1"], ["b2"]]
    assert other.told == [("b1", APPLIED), ("b2", APPLIED)]


async def test_what_an_owner_submits_when_it_is_told_of_its_loss_is_never_written() -> None:
    """Not even an operation that it queues in the very call that tells it."""
    store, owner = FakeStore([LEASE_LOST]), Teller()
    writer = committer(store)
    owner.when_told = lambda: put(writer, owner, "late")
    put(writer, owner, "a")
    await writer.stop()
    assert store.writes == [["a"]]


async def test_a_poisonous_operation_fails_alone() -> None:
    """A refused batch is halved until its owner stands alone; all others are written."""
    store = FakeStore(*[poison("c")] * 20)
    owners = {name: Teller() for name in "abcdefg"}
    writer = committer(store)
    for name, owner in owners.items():
        put(writer, owner, name)
    await writer.stop()
    [(_, error)] = owners.pop("c").told
    assert isinstance(error, StoreConflict)
    assert [owner.told for owner in owners.values()] == [[(name, APPLIED)] for name in owners]
    written = [names for names in store.writes if "c" not in names]
    assert sorted(name for names in written for name in names) == sorted(owners)


async def test_a_refused_batch_is_never_split_within_one_owner() -> None:
    """The good operations before and after a poisonous one are in no smaller batch without it: a prefix or nothing."""
    store = FakeStore(*[poison("a2")] * 20)
    one, two, three = Teller(), Teller(), Teller()
    writer = committer(store)
    put(writer, two, "b1")
    put(writer, one, "a1", "a2")
    put(writer, two, "b2")
    put(writer, one, "a3")
    put(writer, three, "c1")
    await writer.stop()
    assert ["a1", "a2", "a3"] in store.writes
    assert all({"a1", "a2", "a3"} & set(names) in (set(), {"a1", "a2", "a3"}) for names in store.writes)
    assert all(names.index("b1") < names.index("b2") for names in store.writes if "b1" in names)
    assert [name for name, _ in one.told] == ["a1"]
    assert one.is_dropped
    assert two.told == [("b1", APPLIED), ("b2", APPLIED)]
    assert three.told == [("c1", APPLIED)]


async def test_operations_queued_while_a_refused_batch_is_split_are_left_out() -> None:
    """The prefix rule holds for what the refused owner queued meanwhile."""
    store, one, two = FakeStore(*[poison("a1")] * 3), Teller(), Teller()
    store.gate.clear()
    writer = committer(store)
    put(writer, one, "a1")
    put(writer, two, "b1")
    await turns()
    put(writer, one, "a2")
    put(writer, two, "b2")
    store.gate.set()
    await writer.stop()
    assert store.writes == [["a1", "b1"], ["a1"], ["b1"], ["b2"]]


async def test_a_transient_error_writes_the_same_batch_again_after_growing_pauses(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing is lost or reordered, nothing queued meanwhile slips in, and people are told once."""
    store, owner = FakeStore(*[TransientStoreError("busy")] * 5), Teller()
    writer = committer(store)
    put(writer, owner, "a", "b")
    await turns()
    put(writer, owner, "c")
    with caplog.at_level(logging.INFO, "onward.committer"):
        await writer.stop()
    assert store.writes == [["a", "b"]] * 6 + [["c"]]
    assert store.retries == [False] * 7
    pauses = [later - earlier for earlier, later in zip(store.at[:5], store.at[1:6], strict=True)]
    for number, pause in enumerate(pauses):
        assert 0.01 * 2**number <= pause <= 0.03 * 2**number + 1e-6
    assert [name for name, _ in owner.told] == ["a", "b", "c"]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


async def test_after_an_unknown_commit_the_batch_is_written_as_a_retry_until_it_is_answered() -> None:
    """Once unknown, always `retry=True`, also after a later error of another kind; the next batch is no retry."""
    store, owner = FakeStore(TransientStoreError("busy"), OutcomeUnknown("cut"), TransientStoreError("busy")), Teller()
    writer = committer(store)
    put(writer, owner, "a")
    await turns()
    put(writer, owner, "b")
    await writer.stop()
    assert store.writes == [["a"]] * 4 + [["b"]]
    assert store.retries == [False, False, True, True, False]
    assert owner.told == [("a", APPLIED), ("b", APPLIED)]


async def test_the_halves_of_a_batch_that_is_refused_after_an_unknown_commit_are_retries_too() -> None:
    """Nobody knows which of them the lost commit has written already."""
    store = FakeStore(OutcomeUnknown("cut"), *[poison("b")] * 3)
    first, second = Teller(), Teller()
    writer = committer(store)
    put(writer, first, "a")
    put(writer, second, "b")
    await writer.stop()
    assert store.writes == [["a", "b"], ["a", "b"], ["a"], ["b"]]
    assert store.retries == [False, True, True, True]
    assert first.told == [("a", APPLIED)]


async def test_a_worker_keeps_its_batch_through_fatal_errors() -> None:
    """Without patience a full disk is waited out: the executions stay in memory."""
    store, owner = FakeStore(FatalStoreError("disk full"), FatalStoreError("disk full")), Teller()
    writer = committer(store)
    put(writer, owner, "a")
    await writer.stop()
    assert store.writes == [["a"]] * 3
    assert owner.told == [("a", APPLIED)]


async def test_a_client_is_told_of_a_fatal_error_at_once() -> None:
    """With patience a fatal error is refused without a wait: nobody waits for a read-only file."""
    store, call = FakeStore(FatalStoreError("read-only")), Call(asyncio.get_running_loop())
    writer = committer(store, patience_s=10)
    put(writer, call, "a")
    with pytest.raises(FatalStoreError, match="read-only"):
        await call.future
    assert store.at == [0.0]
    assert asyncio.get_running_loop().time() == 0.0
    await writer.stop()


async def test_a_clients_patience_with_a_busy_database_ends() -> None:
    """The batch is tried again for `patience_s` from its first failure, then refused; the next batch has its own patience."""
    store = FakeStore(lambda names: TransientStoreError("busy") if "a" in names else None)
    store.answers *= 100
    writer = committer(store, patience_s=3)
    first, second = Call(asyncio.get_running_loop()), Call(asyncio.get_running_loop())
    put(writer, first, "a")
    with pytest.raises(TransientStoreError):
        await first.future
    assert 3 <= asyncio.get_running_loop().time() < 3 + 2 * 1.5
    put(writer, second, "b")
    assert await second.future is APPLIED
    await writer.stop()


async def test_owners_dropped_while_the_batch_waits_are_left_out_of_the_next_try() -> None:
    """And if nobody is left, nothing is written."""
    store, gone, kept = FakeStore(*[TransientStoreError("busy")] * 2), Teller(), Teller()
    writer = committer(store)
    put(writer, gone, "a")
    put(writer, kept, "b")
    await turns()
    gone.is_dropped = True
    while len(store.writes) < 2:
        await asyncio.sleep(0.01)
    kept.is_dropped = True
    await writer.stop()
    assert store.writes == [["a", "b"], ["b"]]
    assert gone.told == kept.told == []


async def test_owners_dropped_while_the_commit_is_in_flight_are_not_told() -> None:
    """Their execution is gone."""
    store, owner = FakeStore(), Teller()
    store.gate.clear()
    writer = committer(store)
    put(writer, owner, "a")
    await turns()
    owner.is_dropped = True
    store.gate.set()
    await writer.stop()
    assert store.writes == [["a"]]
    assert owner.told == []


async def test_stop_writes_what_is_queued() -> None:
    """Also what an owner queues when it is told of the last commit."""
    store, owner = FakeStore(), Teller()
    writer = committer(store)
    more = ["b", "c"]
    owner.when_told = lambda: put(writer, owner, more.pop(0)) if more else None
    put(writer, owner, "a")
    await writer.stop()
    await writer.stop()
    assert store.writes == [["a"], ["b"], ["c"]]


async def test_the_owners_of_a_large_batch_are_told_in_several_turns() -> None:
    """What the first owners do next is with the store while the last ones are still being told."""
    store = FakeStore()
    writer = committer(store)
    owners = [Teller() for _ in range(2 * SHARE + 1)]
    for number, owner in enumerate(owners):
        put(writer, owner, str(number))
    first = owners[0]
    first.when_told = lambda: put(writer, first, "next") if len(first.told) == 1 else None
    counts: list[int] = []
    while sum(counts) < len(owners):
        await turns(1)
        counts.append(sum(bool(owner.told) for owner in owners) - sum(counts))
        if sum(counts) == 2 * SHARE:
            assert store.writes[1:] == [["next"]]
    assert [count for count in counts if count] == [SHARE, SHARE, 1]
    await writer.stop()


async def test_outcomes_are_told_in_the_order_of_the_commits_however_quick_the_database_is() -> None:
    """The rest of a large batch is told before anything of the batch after it, even if that is committed in the meantime."""
    store, owner = FakeStore(), Teller()
    one = committer(store)
    put(one, owner, *(f"a{n}" for n in range(8 * SHARE)))
    owner.when_told = lambda: put(one, owner, "b") if len(owner.told) == 1 else None
    while len(owner.told) < 8 * SHARE + 1:
        await turns(1)
    assert [name for name, _ in owner.told] == [*(f"a{n}" for n in range(8 * SHARE)), "b"]
    assert len(store.writes) == 2
    await one.stop()


async def test_an_error_that_is_none_of_the_database_ends_the_committers_task() -> None:
    """A bug must not pass unseen: the task, which the engine watches, ends with it."""

    class Bug(Exception):
        pass

    def fail(names: list[str]) -> None:
        raise Bug

    writer = committer(FakeStore(fail))
    put(writer, Teller(), "a")
    with pytest.raises(Bug):
        await asyncio.shield(writer.task)


async def test_an_abandoned_call_is_written_and_harms_nobody() -> None:
    """A client call that was cancelled has been queued: its outcome, good or bad, is dropped."""
    store = FakeStore(None, StoreConflict("no"))
    writer = committer(store, patience_s=1)
    first, second = Call(asyncio.get_running_loop()), Call(asyncio.get_running_loop())
    for call, name in ((first, "a"), (second, "b")):
        put(writer, call, name)
        call.future.cancel()
        await turns()
    await writer.stop()
    assert store.writes == [["a"], ["b"]]


def busy(*names: str) -> Callable[[list[str]], list[Outcome]]:
    """A stranger holds the rows of these."""
    return lambda batch: [BUSY if name in names else APPLIED for name in batch]


async def test_what_is_busy_is_written_apart_from_the_others_later_and_as_a_retry() -> None:
    store = FakeStore(busy("a"))
    writer = committer(store)
    held, free = Teller(), Teller()
    put(writer, held, "a")
    put(writer, free, "b")
    await turns(5)
    assert (held.told, free.told) == ([], [("b", APPLIED)])
    put(writer, free, "c")
    await writer.stop()
    assert (store.writes, store.retries) == ([["a", "b"], ["c"], ["a"]], [False, False, True])
    assert held.told == [("a", APPLIED)]


async def test_later_operations_of_a_busy_owner_wait_behind_it_in_order() -> None:
    store = FakeStore(busy("a"), busy("a", "a2", "a3"))
    store.gate.clear()
    writer = committer(store)
    held = Teller()
    put(writer, held, "a")
    await turns(3)
    put(writer, held, "a2")  # while the first flush is on its way
    store.gate.set()
    await turns(5)
    put(writer, held, "a3")  # while it stands aside
    await writer.stop()
    assert store.writes == [["a"], ["a", "a2", "a3"], ["a", "a2", "a3"]]
    assert held.told == [("a", APPLIED), ("a2", APPLIED), ("a3", APPLIED)]


async def test_what_stays_busy_is_tried_after_growing_pauses_while_others_go_on() -> None:
    store = FakeStore(*[busy("a")] * 4)
    writer = committer(store)
    held = Teller()
    put(writer, held, "a")
    await writer.stop()
    pauses = [after - before for before, after in zip(store.at, store.at[1:], strict=False)]
    assert len(store.writes) == 5
    assert pauses == sorted(pauses)
    assert held.told == [("a", APPLIED)]


async def test_a_clients_patience_with_a_busy_row_ends() -> None:
    store = FakeStore(*[busy("a")] * 1000)
    writer = committer(store, patience_s=3.0)
    held = Teller()
    put(writer, held, "a")
    await writer.stop()
    [(name, error)] = held.told
    assert name == "a"
    assert isinstance(error, TransientStoreError)


async def test_a_busy_owner_that_was_dropped_is_forgotten() -> None:
    store = FakeStore(*[busy("a")] * 1000)
    writer = committer(store)
    held = Teller()
    put(writer, held, "a")
    await turns(5)
    held.is_dropped = True
    await writer.stop()
    assert held.told == []


async def test_a_database_that_has_moved_is_told_to_the_worker_before_the_owners() -> None:
    """The worker drops its executions, whose writes are then refused by nobody; a client's call gets the error."""
    store, call, dropped = FakeStore(), Call(asyncio.get_running_loop()), Teller()
    store.write = AsyncMock(side_effect=StoreMoved("sqlite:///here.db", "sqlite:///there.db"))  # type: ignore[method-assign]

    def moved(error: OnwardError) -> None:
        assert not call.future.done()
        dropped.is_dropped = True

    writer = committer(store, moved=moved)
    put(writer, dropped, "a")
    put(writer, call, "b")
    with pytest.raises(StoreMoved):
        await call.future
    assert dropped.told == []
    await writer.stop()

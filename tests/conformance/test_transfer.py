"""One side of a move to another database (`base.Transfer`): what is fenced stays fenced, and rows come out as they went in."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from onward._engine.moving import Copying
from onward._store.base import Store, Transfer
from onward._store.operations import CancelOp, Fence, FinishOp, Op, ReleaseOp, RetryOp, SignalOp, StartOp
from onward._store.pruning import PruneRequest
from onward._store.records import StepRetry
from onward._store.transfer import TABLES, Row, Table
from onward.errors import ConfigurationError, StoreConflict, StoreImporting, StoreMoved
from tests.conformance.support import (
    SECOND,
    T0,
    WORLDS,
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

MOVABLE = ("postgres", "sqlite")


@pytest.fixture(params=MOVABLE)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    """An empty database that workflows can be moved from and to."""
    return WORLDS[request.param](tmp_path)


@pytest.fixture(params=MOVABLE)
def other(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    """Another one, of the same kind or not."""
    (tmp_path / "other").mkdir()
    return WORLDS[request.param](tmp_path / "other")


def table(name: str) -> Table:
    return next(one for one in TABLES if one.name == name)


async def all_rows(side: Transfer) -> dict[str, list[Row]]:
    return {one.name: await side.read_rows(one, one.first, limit=1000, size=10**9) for one in TABLES}


async def fill(store: Store, world: World) -> None:
    """A workflow in each state, with all that may be in a row."""
    world.worker(store)
    await start(store, "new", priority=-3, partition="p", tags='{"team":"a"}', delay_us=5 * SECOND, timeout_us=SECOND)
    await complete_with_mail(store)
    fence = await started_and_claimed(store, "sleeping")
    await record(store, fence, entry(1, arguments='{"n":"ö \\u0000"}', digest="d", tries=2, started_at=T0), step="a")
    await record(store, fence, entry(2, result=None, error='{"type":"E","message":"x"}'), progress='{"done": 1}')
    retries = (StepRetry("b", 2, T0 + SECOND, '{"type":"E"}'), StepRetry("c", 1, T0 + 2 * SECOND))
    await one(store, park(fence, until=T0 + 9 * SECOND, waiting=False, retries=retries))
    fence = await started_and_claimed(store, "waiting")
    await start_child(store, fence, "child")
    await one(store, StartOp(new("new", priority=-3), fence, watch=True))
    await one(store, park(fence, awaited=1, wake_floor=T0 + SECOND))
    fence = await started_and_claimed(store, "diverged")
    await one(store, ReleaseOp(fence, 3 * SECOND, '{"type":"N"}', "c1"))
    await store.adopt_diverged("c0")
    fence = await claim_one(store, "diverged", code_version="c0")
    await one(store, ReleaseOp(fence, 3 * SECOND, '{"type":"N"}', "c0"))
    await started_and_claimed(store, "running")
    await one(store, SignalOp("running", "go", "[1.0, 2]", "t1"))
    await one(store, SignalOp("sleeping", "go", "null", "t2"))


async def complete_with_mail(store: Store) -> None:
    fence = await started_and_claimed(store, "done")
    await record(store, fence, entry(1))
    await one(store, FinishOp(fence, "completed", '{"b": 1, "a": 1e400000}'))
    fence = await started_and_claimed(store, "failed")
    await record(store, fence, entry(1), entry(2))
    await one(store, FinishOp(fence, "failed", error='{"type":"E","message":"x","seq":2}'))
    await one(store, RetryOp("failed"))


async def test_rows_come_out_of_the_other_database_as_they_were(world: World, other: World) -> None:
    """Every column of every table, JSON text to the letter, struck entries, read mail; running rows are given back."""
    store, target = await world.open(), await other.open()
    await fill(store, world)
    fence = await claim_one(store, "failed")
    [inbox] = await store.mail([("running", 0)])
    running = await row(store, "running")
    await record(store, Fence("running", "w1", running.epoch), entry(1, kind="signal"), consumed=(inbox.mail[0].id,))
    journal = await store.journal("failed")
    assert any(item.struck for item in journal)

    source_side, target_side = world.side(store), other.side(target)
    moved = await Copying(source_side, target_side).move()
    rows = await all_rows(source_side)
    assert await all_rows(target_side) == rows
    assert moved.counts == {name: len(found) for name, found in rows.items()}
    assert all(rows.values())

    assert await target.journal("failed") == journal
    given_back = await row(target, "running")
    assert (given_back.status, given_back.worker, given_back.crashes) == ("pending", None, 0)
    assert given_back.epoch == running.epoch + 1
    assert given_back.next_run_at is not None
    assert (await row(target, "waiting")).status == "waiting"
    assert (await row(target, "sleeping")).next_run_at == (await row(store, "sleeping")).next_run_at
    assert (await row(target, "new")).epoch == 0
    assert fence.epoch < (await row(target, "failed")).epoch


async def test_what_was_moved_goes_on_in_the_target(world: World, other: World) -> None:
    """It is claimed with its history; new mail has higher ids, a signal's token is still known, the end of a child arrives."""
    store, target = await world.open(), await other.open()
    await fill(store, world)
    sides = world.side(store), other.side(target)
    await Copying(*sides).move()
    highest = (await sides[0].look()).mail_id

    other.worker(target)
    other.clock.advance(60)
    await one(target, SignalOp("running", "go", "[1.0, 2]", "t1"))
    await one(target, SignalOp("sleeping", "more", "1", "t3"))
    [claimed] = await target.claim(request(only=("sleeping",)))
    [loaded] = await target.load(["sleeping"])
    assert [item.key for item in loaded.entries] == ["step#1", "step#2"]
    assert {retry.key: retry.tries for retry in loaded.retries} == {"b": 2, "c": 1}
    assert [mail.name for mail in loaded.mail] == ["go", "more"]
    assert loaded.mail[1].id > highest
    assert not claimed.is_fresh
    [running] = await target.mail([("running", 0)])
    assert [mail.name for mail in running.mail] == ["go"]
    await complete(target, "child")
    await complete(target, "new")
    [waiting] = await target.mail([("waiting", 0)])
    assert [mail.name for mail in waiting.mail] == ["child", "new"]


async def test_a_fenced_source_refuses_every_write_with_the_new_url(world: World) -> None:
    """Starts, signals, cancels, retries, claims, late entries and ends, renewals, new workers, prunings."""
    store = await world.open()
    leases = world.worker(store)
    fence = await started_and_claimed(store)
    await complete_with_mail(store)
    await start(store, "due")
    side = world.side(store)
    await side.fence_source("copy", "postgresql://there/db")

    writes: list[Op] = [
        StartOp(new("late")),
        SignalOp("a", "go", "1", "t"),
        CancelOp("a"),
        RetryOp("done"),
        FinishOp(fence, "completed", "1"),
        park(fence),
        ReleaseOp(fence, 0),
    ]
    if world.name == "sqlite":
        writes.remove(RetryOp("done"))  # a completed one: there is nothing to write
    for op in writes:
        with pytest.raises(StoreMoved, match="postgresql://there/db") as caught:
            await store.write([op])
        assert caught.value.moved_to == "postgresql://there/db"
        with pytest.raises(StoreMoved):
            await store.write([op], retry=True)
    with pytest.raises(StoreMoved):
        await record(store, fence, entry(1))
    with pytest.raises(StoreMoved):
        await store.claim(request())
    with pytest.raises(StoreMoved):
        await asyncio.to_thread(leases.renew, "w1", 15 * SECOND)
    with pytest.raises(StoreMoved):
        world.worker(store, "w2")
    world.clock.advance(60)
    with pytest.raises(StoreMoved):
        await store.prune(PruneRequest(before=world.clock.now_us(), limit=100))
    with pytest.raises(StoreMoved):
        await store.check_serving()
    assert (await row(store)).status == "pending"  # reads go on
    leases.retire("w1")  # and a worker may leave
    assert await store.workers() == []


async def test_an_importing_target_refuses_every_write_but_those_of_the_copy(world: World) -> None:
    """Until it is opened nothing can be started, claimed or registered there."""
    store = await world.open()
    side = world.side(store)
    await side.mark_target("copy", "sqlite:///there.db")
    with pytest.raises(StoreImporting, match="sqlite:///there.db") as caught:
        await start(store)
    assert caught.value.copied_from == "sqlite:///there.db"
    with pytest.raises(StoreImporting):
        world.worker(store)
    with pytest.raises(StoreImporting):
        await store.check_serving()
    waiters = table("waiters")
    await side.write_rows("copy", waiters, [("a", "b", T0)], before=None, after=(3, ("a", "b")))
    with pytest.raises(StoreImporting):
        await start(store)
    await side.open_target("copy", 41)
    await store.check_serving()
    await start(store)
    await one(store, SignalOp("a", "go", "1", "t"))
    [inbox] = await store.mail([("a", 0)])
    assert inbox.mail[0].id > 41


async def test_each_mark_is_made_once_and_by_one_copy_only(world: World) -> None:
    """Repeating it changes nothing; another copy is refused, and so is a target that is not empty."""
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    side = world.side(store)
    with pytest.raises(ConfigurationError, match="not empty"):
        await side.mark_target("copy", "sqlite:///there.db")
    for _ in range(2):
        await side.fence_source("copy", "sqlite:///there.db")
    assert (await row(store)).epoch == fence.epoch + 1
    with pytest.raises(ConfigurationError, match="moved to sqlite:///there.db"):
        await side.fence_source("another", "sqlite:///elsewhere.db")
    with pytest.raises(ConfigurationError):
        await side.unfence_source("another")
    for _ in range(2):
        await side.unfence_source("copy")
    await store.check_serving()
    assert await claim_one(store) == Fence("a", "w1", fence.epoch + 2)


async def test_a_batch_is_written_from_the_expected_position_only(world: World) -> None:
    """A second copy process, or one that was aborted, writes nothing."""
    store = await world.open()
    side = world.side(store)
    await side.mark_target("copy", "sqlite:///there.db")
    waiters = table("waiters")
    await side.write_rows("copy", waiters, [("a", "b", T0)], before=None, after=(3, ("a", "b")))
    for before in (None, (3, ("a", "c"))):
        with pytest.raises(ConfigurationError, match="another `onward copy`"):
            await side.write_rows("copy", waiters, [("x", "y", T0)], before=before, after=(4, ()))
    with pytest.raises(ConfigurationError):
        await side.write_rows("another", waiters, [("x", "y", T0)], before=(3, ("a", "b")), after=(4, ()))
    assert (await side.look()).counts["waiters"] == 1
    await side.empty_target("copy")
    with pytest.raises(ConfigurationError):
        await side.write_rows("copy", waiters, [("x", "y", T0)], before=(3, ("a", "b")), after=(4, ()))
    with pytest.raises(ConfigurationError):
        await side.open_target("copy", 0)
    found = await side.look()
    assert found.is_empty
    assert found.target is None
    await start(store)


async def test_an_open_target_can_not_be_emptied(world: World) -> None:
    """Who opens it and who gives it up exclude each other."""
    store = await world.open()
    side = world.side(store)
    await side.mark_target("copy", "sqlite:///there.db")
    await side.open_target("copy", 0)
    await side.open_target("copy", 0)
    with pytest.raises(ConfigurationError, match="is open"):
        await side.empty_target("copy")
    await side.mark_target("next", "sqlite:///there.db")  # still empty: it may be a target again
    with pytest.raises(ConfigurationError):
        await side.empty_target("copy")


async def test_rows_are_read_in_order_of_the_key_and_in_bounded_batches(world: World) -> None:
    """At least one row, however large; then no more than the size allows."""
    store = await world.open()
    ids = ["a", "a-1", "a/1", "aA", "ab", "b", "ä", "€", "😀"]
    for workflow_id in reversed(ids):
        await start(store, workflow_id, payload=f'[["{"x" * 1000}"],{{}}]')
    side = world.side(store)
    workflows = table("workflows")
    first = await side.read_rows(workflows, workflows.first, limit=100, size=10)
    assert [found[0] for found in first] == sorted(ids)[:1]
    next_ones = await side.read_rows(workflows, workflows.key(first[0]), limit=100, size=1500)
    assert [found[0] for found in next_ones] == sorted(ids)[1:3]
    rest = await side.read_rows(workflows, workflows.key(next_ones[-1]), limit=3, size=10**6)
    assert [found[0] for found in rest] == sorted(ids)[3:6]


async def test_a_row_that_the_target_cannot_hold_is_named(world: World, other: World) -> None:
    """The rest of its batch is there; once it is gone from the source, the copy goes on."""
    store, target = await world.open(), await other.open()
    for number in range(7):
        await start(store, f"w{number}")
    side, there = world.side(store), other.side(target)
    await there.mark_target("copy", store.url)
    await side.fence_source("copy", target.url)
    workflows = table("workflows")
    rows = await side.read_rows(workflows, workflows.first, limit=100, size=10**6)
    bad = [*rows[4][:4], "no such status", *rows[4][5:]]
    rows[4] = tuple(bad)
    with pytest.raises(StoreConflict, match="row of workflows, id 'w4'"):
        await Copying(side, there)._write("copy", workflows, rows, None, (0, ("w6",)))
    assert (await there.look()).target is not None
    position = (await there.look()).target
    assert position is not None
    assert position.position == (0, ("w3",))


async def test_the_doctor_tells_of_a_move(world: World) -> None:
    """Where the workflows are, or that a copy is not complete, and what to do about it; nothing where there is none."""
    store = await world.open()
    side = world.side(store)

    async def found() -> list[str]:
        diagnosis = await store.diagnose()
        return [f"{one.text}; {one.cure}" for one in diagnosis.findings if one.check == "moved"]

    assert await found() == []
    await side.mark_target("copy", "sqlite:///before.db")
    [text] = await found()
    assert "unfinished copy of sqlite:///before.db" in text
    await side.open_target("copy", 0)
    assert await found() == []
    await side.fence_source("next", "sqlite:///there.db")
    [text] = await found()
    assert "not complete" in text
    assert "--abort" in text
    await side.note_end("next")
    [text] = await found()
    assert text.endswith("moved to sqlite:///there.db; use that URL")


async def test_a_source_that_was_moved_can_be_dropped_and_a_new_schema_made(world: World) -> None:
    """That is how the old place becomes a target again."""
    store = await world.open()
    await start(store)
    await world.side(store).fence_source("copy", "sqlite:///there.db")
    await store.drop_schema()
    again = await world.open()
    await again.check_serving()
    await start(again, "b")
    assert await again.counts() == {"pending": 1}

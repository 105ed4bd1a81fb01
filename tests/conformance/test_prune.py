"""Deleting finished workflows: which, how many at once, and that trees go whole."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from onward._store.base import Store
from onward._store.operations import (
    APPLIED,
    BUSY,
    NOT_FOUND,
    Fence,
    FinishOp,
    JournalOp,
    Op,
    Outcome,
    ReleaseOp,
    RetryOp,
    SignalOp,
    StartOp,
)
from onward._store.pruning import START, PruneBatch, PruneRequest
from onward._store.records import StepRetry
from tests.conformance.support import (
    T0,
    World,
    claim_one,
    complete,
    entry,
    new,
    one,
    park,
    record,
    row,
    start,
    start_child,
    started_and_claimed,
)

DAY = 86_400.0


def older_than(world: World, seconds: float, **changes: Any) -> PruneRequest:
    return PruneRequest(before=world.clock.now_us() - int(seconds * 1_000_000), **changes)


async def prune(store: Store, request: PruneRequest) -> PruneBatch:
    """Call until there is nothing more to look at; returns the sums."""
    workflows = children = 0
    async with asyncio.timeout(60):
        while True:
            batch = await store.prune(request)
            workflows, children = workflows + batch.workflows, children + batch.children
            if batch.after is None:
                return PruneBatch(workflows=workflows, children=children)
            request = PruneRequest(
                before=request.before,
                statuses=request.statuses,
                types=request.types,
                limit=request.limit,
                after=batch.after,
                is_dry_run=request.is_dry_run,
            )


async def finish(store: Store, fence: Fence, status: Any = "completed") -> None:
    assert await one(store, FinishOp(fence, status, '"done"' if status == "completed" else None)) == APPLIED


async def finished(store: Store, workflow_id: str, status: Any = "completed", **changes: Any) -> None:
    await start(store, workflow_id, **changes)
    await finish(store, await claim_one(store, workflow_id, types=(changes.get("type", "flow"),)), status)


async def family(store: Store, root: str, *shape: str) -> None:
    """A finished tree: of each path ("root/a/b") the part before the last slash is the parent."""
    fences = {root: await started_and_claimed(store, root)}
    for path in shape:
        await start_child(store, fences[path.rpartition("/")[0]], path)
        fences[path] = await claim_one(store, path)
    for path in reversed((root, *shape)):
        await finish(store, fences[path])


async def insist(store: Store, op: Op) -> Outcome:
    """Write it as a committer does: again, while somebody holds the row."""
    while (outcome := await one(store, op)) == BUSY:
        pass
    return outcome


async def ids(store: Store, *candidates: str) -> list[str]:
    """Those of them that are there."""
    return [workflow_id for workflow_id in candidates if await store.get(workflow_id) is not None]


async def test_what_finished_before_the_limit_goes_with_all_that_belongs_to_it(world: World) -> None:
    store = await world.open()
    world.worker(store, lease_s=10 * DAY)
    await start(store, "a")
    await one(store, SignalOp("a", "go", "1", "token"))
    fence = await claim_one(store, "a")
    await record(store, fence, entry(1), entry(2))
    retry = StepRetry("step#3", 2, T0, None)
    await one(store, park(fence, 1, retries=(retry,)))
    await one(store, SignalOp("a", "go", "2", "token-2"))
    await finish(store, await claim_one(store, "a"))
    world.clock.advance(DAY)
    assert await store.prune(older_than(world, DAY)) == PruneBatch()
    world.clock.advance(1)
    assert await store.prune(older_than(world, DAY)) == PruneBatch(workflows=1)
    assert await store.get("a") is None
    assert await store.journal("a") == []
    assert await store.counts() == {}
    await start(store, "a")  # its id is new again
    await claim_one(store, "a")
    [loaded] = await store.load(["a"])
    assert (loaded.entries, loaded.mail, loaded.retries, loaded.last_seq) == ([], [], [], 0)
    assert (await row(store, "a")).epoch == 1
    assert await one(store, SignalOp("a", "go", "1", "token")) == APPLIED
    assert (await row(store, "a")).signals == 1


async def test_what_has_not_finished_stays_however_old_it_is(world: World) -> None:
    store = await world.open()
    world.worker(store, lease_s=1000 * DAY)
    await started_and_claimed(store, "running")
    await start(store, "pending")
    await one(store, park(await started_and_claimed(store, "waiting")))
    await one(store, ReleaseOp(await started_and_claimed(store, "released"), delay_us=1))
    await finished(store, "retried", "failed")
    assert await one(store, RetryOp("retried")) == APPLIED
    world.clock.advance(100 * DAY)
    assert await prune(store, older_than(world, DAY)) == PruneBatch()
    assert sum((await store.counts()).values()) == 5


async def test_the_age_counts_from_the_end_and_not_from_the_start(world: World) -> None:
    store = await world.open()
    world.worker(store, lease_s=1000 * DAY)
    fence = await started_and_claimed(store, "a")
    world.clock.advance(100 * DAY)
    await finish(store, fence)
    world.clock.advance(1)
    assert await prune(store, older_than(world, DAY)) == PruneBatch()
    world.clock.advance(DAY)
    assert await prune(store, older_than(world, DAY)) == PruneBatch(workflows=1)


async def test_a_child_stays_while_its_parent_runs_and_goes_with_it(world: World) -> None:
    store = await world.open()
    world.worker(store, lease_s=1000 * DAY)
    parent = await started_and_claimed(store, "p")
    await start_child(store, parent, "p/a")
    child = await claim_one(store, "p/a")
    await start_child(store, child, "p/a/x")
    await complete(store, "p/a/x")
    await finish(store, child)
    world.clock.advance(100 * DAY)
    assert await prune(store, older_than(world, DAY)) == PruneBatch()
    assert await ids(store, "p", "p/a", "p/a/x") == ["p", "p/a", "p/a/x"]
    await finish(store, parent)
    world.clock.advance(DAY)
    assert await prune(store, older_than(world, DAY)) == PruneBatch()
    world.clock.advance(1)
    assert await prune(store, older_than(world, DAY)) == PruneBatch(workflows=3, children=2)
    assert await store.counts() == {}


@pytest.mark.parametrize("is_young", [False, True], ids=["alive", "young"])
async def test_one_descendant_that_is_not_old_keeps_the_whole_tree(world: World, is_young: bool) -> None:
    store = await world.open()
    world.worker(store, lease_s=1000 * DAY)
    parent = await started_and_claimed(store, "p")
    for name in ("p/a", "p/b"):
        await start_child(store, parent, name)
    await complete(store, "p/b")
    child = await claim_one(store, "p/a")
    await start_child(store, child, "p/a/x")
    await finish(store, child)
    await finish(store, parent)
    await finished(store, "neighbour")
    world.clock.advance(100 * DAY)
    if is_young:
        await complete(store, "p/a/x")
        world.clock.advance(1)
    assert await prune(store, older_than(world, DAY)) == PruneBatch(workflows=1)
    assert await ids(store, "p", "p/a", "p/b", "p/a/x", "neighbour") == ["p", "p/a", "p/b", "p/a/x"]


async def test_status_and_type_are_those_of_the_root(world: World) -> None:
    store = await world.open()
    world.worker(store)
    parent = await started_and_claimed(store, "p")
    await start_child(store, parent, "p/a")
    await finish(store, await claim_one(store, "p/a"), "failed")
    await finish(store, parent)
    await finished(store, "failed", "failed")
    await finished(store, "cancelled", "cancelled")
    await finished(store, "other", type="other")
    world.clock.advance(1)
    everything = ("p", "p/a", "failed", "cancelled", "other")
    assert await prune(store, older_than(world, 0, types=("none",))) == PruneBatch()
    assert await prune(store, older_than(world, 0, statuses=("failed",), types=("other",))) == PruneBatch()
    assert await prune(store, older_than(world, 0, statuses=("failed",))) == PruneBatch(workflows=1)
    assert await ids(store, *everything) == ["p", "p/a", "cancelled", "other"]
    request = older_than(world, 0, statuses=("completed", "failed"), types=("flow",))
    assert await prune(store, request) == PruneBatch(workflows=2, children=1)
    assert await ids(store, *everything) == ["cancelled", "other"]
    assert await prune(store, older_than(world, 0)) == PruneBatch(workflows=2)


async def test_a_call_deletes_the_oldest_up_to_its_limit_and_says_where_to_go_on(world: World) -> None:
    store = await world.open()
    world.worker(store)
    names = [f"x{9 - number}" for number in range(10)]
    for name in names:
        await finished(store, name)
        world.clock.advance(1)
    request = older_than(world, 0, limit=4)
    seen = []
    while True:
        batch = await store.prune(request)
        seen.append(batch.workflows)
        left = await ids(store, *names)
        assert left == names[sum(seen) :]
        if batch.after is None:
            break
        request = older_than(world, 0, limit=4, after=batch.after)
    assert sum(seen) == 10
    assert max(seen) <= 4
    assert await store.prune(older_than(world, 0, after=START)) == PruneBatch()


async def test_a_call_that_finds_nothing_it_wants_goes_on_behind_what_it_has_looked_at(world: World) -> None:
    store = await world.open()
    world.worker(store)
    for number in range(6):
        await finished(store, f"kept{number}", "failed")
    await finished(store, "wanted")
    world.clock.advance(1)
    request = older_than(world, 0, limit=2, statuses=("completed",))
    assert await prune(store, request) == PruneBatch(workflows=1)
    assert await store.counts() == {"failed": 6}


async def test_a_tree_larger_than_the_limit_goes_whole_and_its_root_last(world: World) -> None:
    store = await world.open()
    world.worker(store)
    shape = [f"r/{a}" for a in "abcdef"] + [f"r/{a}/{b}" for a in "bdf" for b in "uvwxyz"] + ["r/b/u/1", "r/b/u/1/2"]
    await family(store, "r", *shape)
    await family(store, "s", "s/a")
    world.clock.advance(1)
    request = older_than(world, 0, limit=5)
    deleted = 0
    while True:
        batch = await store.prune(request)
        deleted += batch.workflows
        left = await ids(store, "r", *shape)
        for path in left:  # nobody is there without its parent
            assert path == "r" or path.rpartition("/")[0] in left
        if world.name == "sqlite":  # the others delete it at once: nobody waits for that
            assert batch.workflows <= 5
        if batch.after is None:
            break
        request = older_than(world, 0, limit=5, after=batch.after)
    assert deleted == len(shape) + 3
    assert await store.counts() == {}


async def test_a_journal_longer_than_the_limit_goes_too(world: World) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store, "long")
    await record(store, fence, *(entry(seq) for seq in range(1, 30)))
    await finish(store, fence)
    await finished(store, "short")
    world.clock.advance(1)
    assert await prune(store, older_than(world, 0, limit=4)) == PruneBatch(workflows=2)
    assert await store.journal("long") == []
    assert await store.counts() == {}


async def test_while_a_large_tree_goes_nothing_in_it_can_be_retried(world: World) -> None:
    store = await world.open()
    world.worker(store)
    parent = await started_and_claimed(store, "r")
    names = [f"r/{number}" for number in range(9)]
    for name in names:
        await start_child(store, parent, name)
        await finish(store, await claim_one(store, name), "failed")
    await finish(store, parent, "failed")
    world.clock.advance(1)
    request = older_than(world, 0, limit=3)
    while (batch := await store.prune(request)).after is not None:
        left = await ids(store, "r", *names)
        if len(left) < 10:
            for name in left:
                assert await one(store, RetryOp(name)) == NOT_FOUND
        request = older_than(world, 0, limit=3, after=batch.after)
    assert await store.counts() == {}


async def test_an_interrupted_pruning_is_finished_by_the_next_one_whatever_that_one_wants(world: World) -> None:
    store = await world.open()
    world.worker(store)
    await family(store, "r", *(f"r/{number}" for number in range(9)))
    world.clock.advance(1)
    await store.prune(older_than(world, 0, limit=3))
    await store.prune(older_than(world, 0, limit=3))
    again = await world.open()
    await prune(again, older_than(world, 50 * DAY, types=("none",)))
    assert await again.counts() == {}


async def test_a_retry_beside_a_pruning_finds_the_workflow_or_is_told_that_there_is_none(world: World) -> None:
    store, other = await world.open(), await world.open()
    world.worker(store)
    for number in range(12):
        root = f"r{number}"
        await family(store, root, *(f"{root}/{name}" for name in "abcde"))
        await finished(store, f"f{number}", "failed")
        parent = await started_and_claimed(store, f"g{number}")
        await start_child(store, parent, f"g{number}/a")
        await finish(store, await claim_one(store, f"g{number}/a"), "failed")
        await finish(store, parent)
        world.clock.advance(1)
        retried = (f"f{number}", f"g{number}/a")
        answers = await asyncio.gather(
            *(insist(other, RetryOp(name)) for name in retried), prune(store, older_than(world, 0, limit=1 + number))
        )
        for name, answer in zip(retried, answers, strict=False):
            tree = [name, name.partition("/")[0]]
            expected = [] if answer == NOT_FOUND else tree
            assert answer in (APPLIED, NOT_FOUND)
            assert await ids(store, *tree) == expected
        assert await store.get(root) is None
        for name in retried:
            if await store.get(name) is not None:
                await complete(store, name)


async def test_of_two_prunings_at_once_each_workflow_is_counted_once(world: World) -> None:
    first, second = await world.open(), await world.open()
    world.worker(first)
    for number in range(20):
        await finished(first, f"x{number}")
    await family(first, "r", *(f"r/{number}" for number in range(20)))
    world.clock.advance(1)
    batches = await asyncio.gather(*(prune(store, older_than(world, 0, limit=7)) for store in (first, second)))
    assert sum(batch.workflows for batch in batches) == 41
    assert sum(batch.children for batch in batches) == 20
    assert await first.counts() == {}


async def test_a_dry_run_counts_whole_trees_and_deletes_nothing(world: World) -> None:
    store = await world.open()
    world.worker(store)
    await family(store, "r", *(f"r/{number}" for number in range(9)))
    for number in range(5):
        await finished(store, f"x{number}")
    await start(store, "alive")
    world.clock.advance(1)
    request = older_than(world, 0, limit=3, is_dry_run=True)
    assert await prune(store, request) == PruneBatch(workflows=15, children=9)
    assert await store.counts() == {"completed": 15, "pending": 1}
    assert await prune(store, older_than(world, 0, limit=3)) == PruneBatch(workflows=15, children=9)


async def test_who_waited_and_is_pruned_is_not_told_under_its_new_life(world: World) -> None:
    store = await world.open()
    world.worker(store)
    await start(store, "target")
    waiter = await started_and_claimed(store, "w")
    await one(store, StartOp(new("target"), waiter, watch=True))
    await finish(store, waiter)
    world.clock.advance(1)
    assert await prune(store, older_than(world, 0)) == PruneBatch(workflows=1)
    await start(store, "w")
    await complete(store, "target")
    assert (await row(store, "w")).signals == 0
    [inbox] = await store.mail([("w", 0)])
    assert inbox.mail == []


async def test_a_late_write_for_a_pruned_workflow_is_refused(world: World) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store, "a")
    await finish(store, fence)
    world.clock.advance(1)
    await prune(store, older_than(world, 0))
    assert await one(store, JournalOp(fence, (entry(1),)), retry=True) != APPLIED
    await start(store, "a")
    assert await one(store, FinishOp(fence, "completed", "1"), retry=True) != APPLIED
    assert (await row(store, "a")).status == "pending"

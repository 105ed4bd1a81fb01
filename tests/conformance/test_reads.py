"""Reads for people, subscriptions, and the life of a store object."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from onward._store.operations import CancelOp, SignalOp, StartOp
from onward._store.records import EntryKind, Filter
from onward.errors import StoreError
from tests.conformance.support import (
    SECOND,
    T0,
    World,
    complete,
    entry,
    new,
    one,
    record,
    row,
    start,
    start_child,
    started_and_claimed,
)


async def test_what_is_not_there_reads_as_nothing(world: World) -> None:
    store = await world.open()
    assert await store.get("nobody") is None
    assert await store.journal("nobody") == []
    assert await store.children("nobody") == []
    assert await store.outcomes(["nobody"]) == []
    assert await store.list(Filter()) == []
    assert await store.counts() == {}
    assert await store.workers() == []
    assert await store.seed("nobody") is None


async def test_the_seed_is_given_when_it_is_asked_for(world: World) -> None:
    store = await world.open()
    workflow = new("a")
    await one(store, StartOp(workflow))
    assert await store.seed("a") == workflow.seed


async def test_outcomes_are_given_for_the_ended_only(world: World) -> None:
    store = await world.open()
    world.worker(store)
    for name in ("a", "b", "c"):
        await start(store, name)
    await complete(store, "b", result="42")
    await one(store, CancelOp("c"))
    found = {one.id: (one.status, one.result) for one in await store.outcomes(["a", "b", "c", "nobody"])}
    assert found == {"b": ("completed", "42"), "c": ("cancelled", None)}


async def listed(world: World) -> dict[str, int]:
    store = await world.open()
    world.worker(store)
    names = ["a", "b", "c", "d", "e"]
    for number, name in enumerate(names):
        tags = f'{{"n":"{number % 2}","team":"x"}}'
        await start(store, name, type="even" if number % 2 == 0 else "odd", tags=tags if number else None)
        if number != 2:  # c and d are created in the same microsecond
            world.clock.advance(1)
    return {name: (await row(store, name)).created_at for name in names}


async def test_lists_are_newest_first_and_paged_by_key(world: World) -> None:
    await listed(world)
    store = await world.open()
    seen: list[str] = []
    before = None
    while page := await store.list(Filter(limit=2, before=before)):
        assert len(page) <= 2
        seen += [one.id for one in page]
        before = (page[-1].created_at, page[-1].id)
    assert seen == ["e", "d", "c", "b", "a"]


async def test_lists_are_filtered_by_status_type_time_and_tags(world: World) -> None:
    created = await listed(world)
    store = await world.open()

    async def ids(filter: Filter) -> str:
        return "".join(one.id for one in await store.list(filter))

    await one(store, CancelOp("b"))
    assert await ids(Filter(status=("cancelled",))) == "b"
    assert await ids(Filter(status=("cancelled", "pending"))) == "edcba"
    assert await ids(Filter(types=("odd",))) == "db"
    assert await ids(Filter(created_after=created["a"], created_before=created["e"])) == "dcb"
    assert await ids(Filter(tags=(("n", "1"),))) == "db"
    assert await ids(Filter(tags=(("n", "0"), ("team", "x")))) == "ec"
    assert await ids(Filter(tags=(("n", "0"), ("team", "y")))) == ""
    assert await ids(Filter(tags=(("n", "1"),), status=("pending",), types=("odd",))) == "d"


async def test_children_are_listed_oldest_first_and_paged_newest_first(world: World) -> None:
    store = await world.open()
    world.worker(store)
    parent = await started_and_claimed(store)
    for name in ("a/1", "a/2", "a/3"):
        await start_child(store, parent, name)
        world.clock.advance(1)
    await start(store, "stranger")
    assert [one.id for one in await store.children("a")] == ["a/1", "a/2", "a/3"]
    assert [one.id for one in await store.list(Filter(parent_id="a", limit=2))] == ["a/3", "a/2"]


async def test_counts_are_by_status(world: World) -> None:
    store = await world.open()
    world.worker(store)
    await started_and_claimed(store, "a")
    await start(store, "b")
    await start(store, "c")
    await complete(store, "c")
    assert await store.counts() == {"running": 1, "pending": 1, "completed": 1}


async def test_a_journal_shows_struck_out_entries_and_times(world: World) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    await record(store, fence, entry(2, "b", started_at=T0, tries=2), entry(1, "a", "timer", result=None))
    first, second = await store.journal("a")
    assert (first.seq, first.key, first.kind, first.result, first.struck) == (1, "a", "timer", None, False)
    assert (second.seq, second.tries, second.started_at, second.finished_at) == (2, 2, T0, T0 + 2)


async def test_reads_of_a_second_store_see_what_the_first_has_committed(world: World) -> None:
    first, second = await world.open(), await world.open()
    await start(first)
    assert (await row(second)).id == "a"


async def test_now_never_falls(world: World) -> None:
    store = await world.open()
    before = store.now_us()
    world.clock.now -= 5 * SECOND
    assert store.now_us() == before
    await start(store)
    assert (await row(store)).created_at == before


async def test_a_journal_is_shown_as_it_stands_with_kinds_that_nobody_knows(world: World) -> None:
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    await record(store, fence, entry(1), entry(2, kind=cast(EntryKind, "nonsense")))
    assert [one.kind for one in await store.journal("a")] == ["step", "nonsense"]


async def test_a_subscriber_hears_of_commits_of_every_store(world: World) -> None:
    first, second = await world.open(), await world.open()
    heard = asyncio.Event()
    end = first.subscribe(heard.set)
    for store in (first, second):
        heard.clear()
        await one(store, StartOp(new(f"x{id(store)}")))
        await asyncio.wait_for(heard.wait(), 5)
    end()


async def test_a_subscriber_that_has_ended_hears_nothing(world: World) -> None:
    store = await world.open()
    calls: list[None] = []
    heard = asyncio.Event()
    end = store.subscribe(lambda: calls.append(None))
    store.subscribe(heard.set)
    end()
    end()
    await start(store)
    await asyncio.wait_for(heard.wait(), 5)
    assert calls == []


async def test_close_is_idempotent_and_a_closed_store_says_so(world: World) -> None:
    store = await world.open()
    await start(store)
    await store.close()
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await store.get("a")
    with pytest.raises(StoreError, match="closed"):
        await store.write([SignalOp("a", "x", "1", "t")])


async def test_an_empty_batch_writes_nothing(world: World) -> None:
    store = await world.open()
    assert await store.write([]) == []


async def test_writes_of_many_tasks_all_get_their_own_answer(world: World) -> None:
    store = await world.open()
    outcomes = await asyncio.gather(*(store.write([StartOp(new(f"x{n}"))]) for n in range(100)))
    assert [outcome.id for [outcome] in outcomes] == [f"x{n}" for n in range(100)]  # type: ignore[union-attr]
    assert await store.counts() == {"pending": 100}


async def test_a_cancelled_caller_leaves_the_store_usable(world: World) -> None:
    store = await world.open()
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    task = asyncio.ensure_future(store.write([StartOp(new("a"))]))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (await one(store, StartOp(new("b")))) is not None
    assert (await row(store, "b")).status == "pending"
    assert complaints == []

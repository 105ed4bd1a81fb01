"""Pruning a file: what is left in its tables, how much one transaction deletes, and what happens when it is cut off."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator

import pytest

from onward._store.operations import APPLIED, FinishOp, RetryOp, SignalOp, StartOp
from onward._store.pruning import START, PruneBatch, PruneRequest
from onward._store.sqlite.store import SqliteStore
from tests.conformance.support import (
    SqliteWorld,
    claim_one,
    entry,
    new,
    one,
    record,
    start,
    start_child,
    started_and_claimed,
)
from tests.conformance.test_prune import family, finish, finished, older_than, prune

TABLES = ("workflows", "journal", "mailbox", "waiters", "step_retries", "prunings")


@contextlib.contextmanager
def connected(world: SqliteWorld) -> Iterator[sqlite3.Connection]:
    conn = sqlite3.connect(world.path, isolation_level=None)
    try:
        yield conn
    finally:
        conn.close()


def sizes(world: SqliteWorld) -> dict[str, int]:
    """Rows of each table that is not empty."""
    with connected(world) as conn:
        found = {name: conn.execute(f"SELECT count(*) FROM onward_{name}").fetchone()[0] for name in TABLES}
    return {name: count for name, count in found.items() if count}


def insert_finished(world: SqliteWorld, parents: dict[str, str | None], journal: int = 0) -> None:
    """Finished workflows by id, each with its parent, without the cost of running them."""
    with connected(world) as conn, conn:
        conn.execute("BEGIN")
        conn.executemany(
            "INSERT INTO onward_workflows (id, type, queue, priority, status, max_attempts, created_at, updated_at, "
            "finished_at, digest, seed, payload, parent_id) VALUES (?, 'flow', 'default', 0, 'completed', 5, 1, 1, 1, 'd', 's', "
            "'[]', ?)",
            list(parents.items()),
        )
        conn.executemany(
            "INSERT INTO onward_journal (workflow_id, seq, key, kind, finished_at) VALUES (?, ?, 's', 'step', 1)",
            [(workflow_id, seq) for workflow_id in parents for seq in range(1, journal + 1)],
        )


async def test_nothing_of_a_pruned_tree_is_left_in_any_table(world: SqliteWorld) -> None:
    store = await world.open()
    world.worker(store)
    await start(store, "alive")
    fence = await started_and_claimed(store, "a")
    await start_child(store, fence, "a/b")
    await one(store, StartOp(new("alive"), fence, watch=True))
    await one(store, SignalOp("a", "go", "1", "t"))
    await record(store, fence, entry(1))
    child = await claim_one(store, "a/b")
    await record(store, child, entry(1))
    await finish(store, child)
    await finish(store, fence)
    with connected(world) as conn:  # as a bug or a hand may leave them
        conn.execute("INSERT INTO onward_mailbox (workflow_id, kind, created_at) VALUES ('a', 'signal', 1)")
        conn.execute("INSERT INTO onward_step_retries VALUES ('a', 'step', 1, 1, NULL)")
        conn.execute("INSERT INTO onward_waiters VALUES ('a', 'alive', 1)")
    world.clock.advance(1)
    assert await prune(store, older_than(world, 0)) == PruneBatch(workflows=2, children=1)
    assert sizes(world) == {"workflows": 1}


@pytest.mark.parametrize(("limit", "size"), [(1, 60), (7, 300), (500, 300)])  # each row of limit 1 is a commit
async def test_no_transaction_deletes_much_more_than_the_limit_however_the_tree_is_made(
    world: SqliteWorld, limit: int, size: int
) -> None:
    store = await world.open()
    shapes: dict[str, str | None] = {"chain": None, "wide": None, "deep": None}
    shapes |= {f"chain{n}": f"chain{n - 1}" if n else "chain" for n in range(size)}
    shapes |= {f"wide{n}": "wide" for n in range(size)}
    shapes |= {f"deep{n}": f"deep{n // 3}" if n > 2 else "deep" for n in range(size)}
    insert_finished(world, shapes, journal=2)
    before = {name: count for name, count in sizes(world).items() if name != "prunings"}
    assert before == {"workflows": 3 * size + 3, "journal": 6 * size + 6}
    request = PruneRequest(before=10, limit=limit)
    while True:
        batch = await store.prune(request)
        now = sizes(world)
        deleted = sum(before.values()) - now.get("workflows", 0) - now.get("journal", 0)
        assert deleted <= limit
        before = {name: count for name, count in now.items() if name != "prunings"}
        if batch.after is None:
            break
        request = PruneRequest(before=10, limit=limit, after=batch.after)
    assert sizes(world) == {}


async def test_a_chain_too_deep_for_one_walk_goes(world: SqliteWorld) -> None:
    store = await world.open()
    insert_finished(world, {"c0": None, **{f"c{n}": f"c{n - 1}" for n in range(1, 20_000)}})
    async with asyncio.timeout(60):
        assert await prune(store, PruneRequest(before=10)) == PruneBatch(workflows=20_000, children=19_999)
    assert sizes(world) == {}


async def test_a_look_that_finds_nothing_takes_no_write_lock(world: SqliteWorld) -> None:
    store = await world.open()
    world.worker(store)
    await finished(store, "young")
    await family(store, "r", "r/a")
    parent = await started_and_claimed(store, "p")
    await start_child(store, parent, "p/a")
    await finish(store, parent)
    request = older_than(world, 0)
    world.clock.advance(1)
    with connected(world) as conn:
        conn.execute("BEGIN IMMEDIATE")
        assert await prune(store, request) == PruneBatch()
        assert await prune(store, older_than(world, 0, is_dry_run=True)) == PruneBatch(workflows=3, children=1)


async def test_a_pruning_that_is_cut_off_anywhere_is_taken_up_where_it_stopped(world: SqliteWorld) -> None:
    store = await world.open()
    shape = [f"r/{a}/{b}" if b else f"r/{a}" for a in "abc" for b in ("", *"uvwxyz")]
    parents = {"r": None, **{path: path.rpartition("/")[0] for path in shape}}
    cut = 0
    while True:
        insert_finished(world, parents, journal=1)
        calls = 0

        async def interrupted(store: SqliteStore, stop_after: int) -> bool:
            """Whether it came to its end within so many transactions."""
            nonlocal calls

            def probe(point: str) -> None:
                nonlocal calls
                if point == "prune:before-commit":
                    calls += 1
                    if calls > stop_after:
                        raise KeyError("killed")

            store._database.probe = probe
            with contextlib.suppress(KeyError):
                await prune(store, PruneRequest(before=10, limit=4))
            return calls <= stop_after

        assert isinstance(store, SqliteStore)
        is_over = await interrupted(store, cut)
        other = await world.open()
        await prune(other, PruneRequest(before=10, limit=4))
        assert sizes(world) == {}
        if is_over:
            break
        cut += 1
    assert cut > 8


async def test_a_large_tree_with_a_part_that_was_retried_before_the_mark_is_let_go(world: SqliteWorld) -> None:
    store, other = await world.open(), await world.open()
    world.worker(store)
    names = [f"r/{number}" for number in range(9)]
    parent = await started_and_claimed(store, "r")
    for name in names:
        await start_child(store, parent, name)
        await finish(store, await claim_one(store, name), "failed")
    await finish(store, parent)
    world.clock.advance(1)
    request = older_than(world, 0, limit=3)
    assert await one(other, RetryOp("r/5")) == APPLIED
    with connected(world) as conn:  # the mark of a process that looked before the retry, and died
        conn.execute("INSERT INTO onward_prunings (root, finished_before) VALUES ('r', ?)", (request.before,))
    assert await prune(store, request) == PruneBatch()
    assert sizes(world) == {"workflows": 10}
    assert await one(store, FinishOp(await claim_one(store, "r/5"), "completed", "1")) == APPLIED
    world.clock.advance(1)
    assert await prune(store, older_than(world, 0, limit=3)) == PruneBatch(workflows=10, children=9)


async def test_marks_of_trees_that_are_gone_vanish(world: SqliteWorld) -> None:
    store = await world.open()
    with connected(world) as conn:  # somebody has deleted rows by hand
        conn.execute("INSERT INTO onward_prunings VALUES ('gone', 10, NULL), ('gone-too', 10, 'nowhere')")
    assert await prune(store, PruneRequest(before=10, limit=3, after=START)) == PruneBatch()
    assert sizes(world) == {}

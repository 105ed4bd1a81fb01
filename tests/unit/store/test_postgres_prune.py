"""Pruning on PostgreSQL: nobody waits for it, it waits for nobody, a tree goes whole or not at all."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from onward._store.operations import APPLIED, NOT_FOUND, RetryOp
from onward._store.postgres import pruning
from onward._store.pruning import PruneBatch, PruneRequest
from tests.conformance.support import PostgresWorld, World, one
from tests.conformance.test_prune import family, finished, ids, older_than, prune
from tests.postgres.server import server_url


@pytest.fixture
def world(tmp_path: Path) -> World:
    """An empty schema."""
    return PostgresWorld(tmp_path)


def schema_of(world: World) -> sql.Identifier:
    assert isinstance(world, PostgresWorld)
    return sql.Identifier(world.schema)


async def test_a_tree_that_somebody_holds_a_row_of_is_passed_over_whole(world: World) -> None:
    store = await world.open()
    world.worker(store)
    await family(store, "r", "r/a", "r/b")
    await finished(store, "free")
    world.clock.advance(1)
    async with await psycopg.AsyncConnection.connect(server_url()) as other:
        await other.execute(sql.SQL("SELECT 1 FROM {}.workflows WHERE id = 'r/a' FOR UPDATE").format(schema_of(world)))
        async with asyncio.timeout(20):
            assert await prune(store, older_than(world, 0)) == PruneBatch(workflows=1)
        assert await ids(store, "r", "r/a", "r/b", "free") == ["r", "r/a", "r/b"]
    assert await prune(store, older_than(world, 0)) == PruneBatch(workflows=3, children=2)


async def test_a_retry_waits_for_a_pruning_under_way_and_then_finds_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = await world.open(), await world.open()
    world.worker(store)
    await finished(store, "a", "failed")
    world.clock.advance(1)
    retried: list[object] = []
    still_whole = pruning._still_whole

    async def between(*args: object) -> object:
        """The rows are locked now."""
        retried.append(await one(other, RetryOp("a")))
        return await still_whole(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(pruning, "_still_whole", between)
    assert await prune(store, older_than(world, 0)) == PruneBatch(workflows=1)
    assert retried[0] != APPLIED  # busy: the committer asks again
    assert await one(other, RetryOp("a")) == NOT_FOUND


async def test_a_large_tree_goes_statement_by_statement_and_still_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "CHUNK", 3)
    store = await world.open()
    world.worker(store)
    await family(store, "r", *(f"r/{number}" for number in range(10)))
    world.clock.advance(1)
    batch = await store.prune(older_than(world, 0, limit=2))
    assert (batch.workflows, batch.children) == (11, 10)
    assert await store.counts() == {}


async def test_roots_that_ended_in_one_instant_are_counted_once_each_on_pages_shorter_than_they_are_many(
    world: World,
) -> None:
    """The index knows no ids, so that it gives them in the order of their rows, which is another one."""
    store = await world.open()
    world.worker(store)
    for workflow_id in "fbgdcae":
        await finished(store, workflow_id)
    world.clock.advance(1)
    await finished(store, "0")
    world.clock.advance(1)
    assert await prune(store, older_than(world, 0, limit=2, is_dry_run=True)) == PruneBatch(workflows=8)
    assert (await store.prune(older_than(world, 0, limit=2))).workflows == 2
    assert await ids(store, *"abcdefg0") == [*"cdefg0"]
    assert await prune(store, older_than(world, 0, limit=2)) == PruneBatch(workflows=6)


def test_the_request_knows_no_more_than_what_is_filtered_by() -> None:
    assert set(pruning._filter(PruneRequest(before=1))) == {
        "before",
        "after_at",
        "after_id",
        "statuses",
        "types",
        "limit",
    }

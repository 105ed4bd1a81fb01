"""Deleting old workflows: by a client's call, and by workers that have a retention."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from onward import (
    Client,
    ConfigurationError,
    Fail,
    InTransactionalStep,
    Pruned,
    TransientStoreError,
    Worker,
    WorkflowFailed,
    WorkflowNotFound,
    step,
    workflow,
)
from onward._engine import pruning, retention
from onward._store.pruning import PruneBatch, PruneRequest
from onward.errors import StoreError
from tests.engine.flows import child, fetch
from tests.engine.support import PATIENCE_S, Lab

MONTH = timedelta(days=30)


@workflow
async def family(name: str) -> str:
    """Two children, one of them inside the other."""
    return await middle(name) + await fetch(name)


@workflow
async def middle(name: str) -> str:
    """Between the two."""
    return await child(name)


@workflow
async def failing() -> None:
    """Fails."""
    raise Fail("no")


class Messages(logging.Handler):
    """The log lines of retentions."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._news = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self._news.set()

    async def until(self, words: str, count: int = 1) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while sum(words in line for line in self.lines) < count:
                self._news.clear()
                await self._news.wait()


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> Iterator[Messages]:
    """Retentions that look often, and what they say."""
    monkeypatch.setattr(retention, "FIRST_S", 0.0)
    monkeypatch.setattr(retention, "LEAST_S", 0.02)
    monkeypatch.setattr(retention, "MOST_S", 0.02)
    handler = Messages()
    logger = logging.getLogger("onward.retention")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


async def test_prune_deletes_old_trees_and_their_ids_are_new(plain_lab: Lab) -> None:
    async with plain_lab.running(family, middle, child, failing) as client:
        old = await client.start(family.using(id="old"), "a")
        failed = await client.start(failing)
        await old.result(timeout=10)
        with pytest.raises(WorkflowFailed):
            await failed.result(timeout=10)
        plain_lab.clock.advance(MONTH)
        young = await client.start(family.using(id="young"), "b")
        await young.result(timeout=10)
        assert await client.repair.prune(MONTH, dry_run=True) == Pruned(workflows=4, children=2)
        assert await client.repair.prune(MONTH, status="failed", type=family) == Pruned(workflows=0, children=0)
        assert await client.repair.prune(MONTH, status=["completed"], type="family") == Pruned(workflows=3, children=2)
        assert await client.repair.prune(MONTH.total_seconds()) == Pruned(workflows=1, children=0)
        assert await young.result() == "BB"
        with pytest.raises(WorkflowNotFound):
            await old.result()
        again = await client.start(family.using(id="old"), "c")
        assert again.created
        assert await again.result(timeout=10) == "CC"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"status": "running"}, "only finished workflows are deleted: cancelled, completed, failed; not 'running'"),
        ({"status": ["completed", "done"]}, "not 'done'"),
        ({"type": 3}, "type takes a workflow or a type name"),
        ({"older_than": -1}, "older_than must be zero or more"),
        ({"older_than": "30d"}, "older_than must be seconds or a timedelta"),
    ],
)
async def test_wrong_options_are_refused(plain_lab: Lab, options: dict[str, object], match: str) -> None:
    async with plain_lab.client() as client:
        with pytest.raises(ConfigurationError, match=match):
            await client.repair.prune(**{"older_than": 60.0, **options})  # type: ignore[arg-type]


def test_the_blocking_client_prunes_too(tmp_path: Path) -> None:
    with Client(f"sqlite:///{tmp_path / 'onward.db'}") as client:
        assert client.run(child, "x") == "X"
        assert client.repair.prune(3600) == Pruned(workflows=0, children=0)
        assert client.repair.prune(0, dry_run=True) == Pruned(workflows=1, children=0)
        assert client.repair.prune(0) == Pruned(workflows=1, children=0)
        assert client.counts() == {}


async def test_pruning_inside_a_transactional_step_of_the_same_file_is_refused(sqlite_lab: Lab) -> None:
    refusals: list[InTransactionalStep] = []

    @step(transactional=True)
    def tidy(conn: sqlite3.Connection) -> None:
        with Client(sqlite_lab.url) as client:
            try:
                client.repair.prune(0)
            except InTransactionalStep as refusal:
                refusals.append(refusal)

    @workflow
    async def flow() -> None:
        await tidy()

    async with sqlite_lab.running(flow) as client:
        await (await client.start(flow)).result(timeout=10)
    assert len(refusals) == 1


class Fragile:
    """A store that is away at times, and says how large each batch was."""

    def __init__(self, *errors: StoreError) -> None:
        self._errors = list(errors)
        self.limits: list[int] = []
        self.left = 6

    async def prune(self, request: PruneRequest) -> PruneBatch:
        self.limits.append(request.limit)
        if self._errors:
            raise self._errors.pop()
        self.left -= 1
        return PruneBatch(workflows=2, children=1, after=(self.left, "") if self.left else None)


async def test_a_pruning_asks_a_busy_database_again_for_as_long_as_its_patience(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pruning, "RETRY_S", 0.0)
    store = Fragile(TransientStoreError("busy"), TransientStoreError("busy"))
    heard: list[int] = []
    batch = await pruning.prune(store, PruneRequest(before=1), patience_s=60, told=heard.append)  # type: ignore[arg-type]
    assert batch == PruneBatch(workflows=12, children=6)
    assert heard == [2, 4, 6, 8, 10, 12]
    with pytest.raises(TransientStoreError):
        await pruning.prune(Fragile(*[TransientStoreError("away")] * 9), PruneRequest(before=1))  # type: ignore[arg-type]


async def test_batches_grow_while_they_are_quick_and_shrink_when_they_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "REST", 0.0)
    quick, slow = Fragile(), Fragile()
    monkeypatch.setattr(pruning, "SHORT_S", 60.0)
    await pruning.prune(quick, PruneRequest(before=1))  # type: ignore[arg-type]
    assert quick.limits == [100, 200, 400, 500, 500, 500]
    monkeypatch.setattr(pruning, "SHORT_S", -1.0)
    monkeypatch.setattr(pruning, "LONG_S", -1.0)
    await pruning.prune(slow, PruneRequest(before=1))  # type: ignore[arg-type]
    assert slow.limits == [100, 50, 25, 20, 20, 20]


async def test_a_worker_with_a_retention_deletes_what_has_outlived_it(plain_lab: Lab, messages: Messages) -> None:
    async with plain_lab.running(family, middle, child, retention=MONTH) as client:
        old = await client.start(family.using(id="old"), "a")
        await old.result(timeout=10)
        plain_lab.clock.advance(MONTH)
        young = await client.start(child.using(id="young"), "b")
        await young.result(timeout=10)
        await messages.until("deleted 3 workflows that had finished more than 30 d ago")
        with pytest.raises(WorkflowNotFound):
            await old.info()
        assert await young.result() == "B"
        plain_lab.clock.advance(MONTH)
        await messages.until("deleted 1 workflow that")
        assert await client.counts() == {}


async def test_without_a_retention_nothing_is_ever_deleted(plain_lab: Lab, messages: Messages) -> None:
    async with plain_lab.client() as client:
        handle = await client.start(child, "a")
        async with plain_lab.working(child):
            await handle.result(timeout=10)
            plain_lab.clock.advance(100 * MONTH)
            other = await client.start(child, "b")
            await other.result(timeout=10)
        assert await handle.result() == "A"
        async with plain_lab.working(failing, retention=MONTH):  # it need not know the type of what it deletes
            await messages.until("deleted 1 workflow that")


async def test_a_retention_outlives_a_database_that_is_away(
    plain_lab: Lab, messages: Messages, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with plain_lab.client() as client, plain_lab.working(child) as worker:
        await (await client.start(child, "a")).result(timeout=10)
        store = worker._store
        whole = type(store).prune
        is_away = True

        async def prune(self: object, request: PruneRequest) -> PruneBatch:
            if is_away:
                raise TransientStoreError("the database is away")
            return await whole(store, request)

        monkeypatch.setattr(type(store), "prune", prune)
        plain_lab.clock.advance(2 * MONTH)
        async with plain_lab.working(failing, retention=MONTH):
            await messages.until("trying again later", 3)
            is_away = False
            store = plain_lab.store
            await messages.until("deleted 1 workflow that")


async def test_a_stop_does_not_wait_for_a_pruning(
    plain_lab: Lab, messages: Messages, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = asyncio.Event()

    async def prune(*_: object) -> PruneBatch:
        begun.set()
        return PruneBatch(after=(0, ""))

    monkeypatch.setattr(type(plain_lab.store), "prune", prune)
    monkeypatch.setattr(pruning, "REST", 1e9)
    async with plain_lab.working(child, retention=MONTH):
        async with asyncio.timeout(PATIENCE_S):
            await begun.wait()


@pytest.mark.parametrize(
    ("value", "match"), [(0, "at least 1 s"), (-1, "zero or more"), ("30d", "seconds or a timedelta")]
)
def test_a_wrong_retention_is_refused(value: object, match: str) -> None:
    with pytest.raises(ConfigurationError, match=f"retention.*{match}"):
        Worker("memory://", workflows=[child], retention=value)  # type: ignore[arg-type]

"""Workers, clients and callers' transactions on a database whose workflows are moved away, or into which they are being moved."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from onward import AsyncClient, Signal, StoreImporting, StoreMoved, step, workflow
from onward._store.base import Transfer
from tests.engine.support import Lab, engine_of
from tests.engine.txsupport import KINDS, lab_of
from tests.engine.txsupport import own as own_on

THERE = "postgresql://there/db"
go_on = Signal("go_on", int)
begun: list[asyncio.Event] = []
ended: list[str] = []


@step
async def long(value: int) -> int:
    """Runs until it is cancelled."""
    begun[-1].set()
    try:
        await asyncio.Event().wait()
    finally:
        ended.append("long")
    return value


@workflow
async def running(value: int) -> int:
    return await long(value)


@workflow
async def waiting() -> int:
    return await go_on.wait()


@pytest.fixture
def lab(kind: str, tmp_path: Path) -> Lab:
    """A database that workflows can be moved from."""
    return lab_of(kind, tmp_path)


@asynccontextmanager
async def side_of(lab: Lab) -> AsyncIterator[Transfer]:
    await lab.store.open()
    side = lab.store.transfer()
    try:
        yield side
    finally:
        await side.close()


each_kind = pytest.mark.parametrize("kind", KINDS)
each_store = pytest.mark.parametrize("kind", ["sqlite3", "psycopg"])


@each_kind
async def test_a_callers_transaction_is_refused_and_goes_on_without_the_call(lab: Lab, kind: str) -> None:
    """A start and a signal with tx= say where the workflows went; what else is in the transaction can be committed."""
    async with side_of(lab) as side, lab.client() as client, own_on(lab, kind) as own:
        await client.start(waiting.using(id="w"))
        await side.fence_source("copy", THERE)
        await own.begin()
        await own.order("a")
        with pytest.raises(StoreMoved, match=THERE) as caught:
            await own.start(waiting.using(id="late", tx=own.tx).bind())
        assert caught.value.moved_to == THERE
        with pytest.raises(StoreMoved):
            await own.signal("w", go_on, 1)
        await own.commit()
        assert own.orders() == ["a"]
        assert own.workflows() == ["w"]


@each_store
async def test_a_running_worker_drops_everything_and_ends_with_the_new_url(
    lab: Lab, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One line in the log; its bodies are cancelled, and no word of them is written."""
    begun.append(asyncio.Event())
    ended.clear()
    caplog.set_level(logging.INFO)
    async with side_of(lab) as side, lab.client() as client:
        await client.start(running.using(id="r"), 1)
        with pytest.raises(StoreMoved, match=THERE):
            async with lab.working(running) as worker:
                await begun[-1].wait()
                await side.fence_source("copy", THERE)
                await asyncio.wait([engine_of(worker).failed])
                assert engine_of(worker).dispatcher.held_ids == []
        assert ended == ["long"]
        assert await client.handle("r").journal() == []
        info = await client.handle("r").info()
        assert (info.status, info.attempts) == ("pending", 0)
        assert await lab.store.workers() == []
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1, warnings
    assert THERE in warnings[0]


@each_store
async def test_clients_and_new_workers_are_told_where_the_workflows_went(lab: Lab, kind: str) -> None:
    """Starts, signals, cancels, waits for outcomes, onward.run, workers; reads go on."""
    async with side_of(lab) as side, lab.client() as client:
        handle = await client.start(waiting.using(id="w"))
        result = asyncio.ensure_future(handle.result(timeout=60))
        await asyncio.sleep(0)
        await side.fence_source("copy", THERE)
        with pytest.raises(StoreMoved, match=THERE):
            await result
        with pytest.raises(StoreMoved):
            await client.start(waiting.using(id="late"))
        with pytest.raises(StoreMoved):
            await client.signal("w", go_on, 1)
        with pytest.raises(StoreMoved):
            await handle.cancel()
        with pytest.raises(StoreMoved):
            async with lab.working(waiting):
                pass
        assert (await handle.info()).status == "pending"
        assert [info.id for info in await client.list()] == ["w"]
    async with AsyncClient(lab.url) as client:
        with pytest.raises(StoreMoved):
            await client.run(waiting.using(id="script"))


@each_store
async def test_nothing_can_be_done_in_a_target_before_it_is_open(lab: Lab, kind: str) -> None:
    """Then all of it can."""
    async with side_of(lab) as side, lab.client() as client:
        await side.mark_target("copy", "sqlite:///there.db")
        with pytest.raises(StoreImporting, match="sqlite:///there.db"):
            await client.start(waiting.using(id="w"))
        with pytest.raises(StoreImporting):
            async with lab.working(waiting):
                pass
        await side.open_target("copy", 0)
        async with lab.working(waiting):
            handle = await client.start(waiting.using(id="w"))
            await client.signal("w", go_on, 7)
            assert await handle.result(timeout=60) == 7

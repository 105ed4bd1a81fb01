"""A busy worker claims its next rows while the present ones work; none of them is kept from other workers for long."""

from __future__ import annotations

import asyncio

import pytest

from onward import Signal, Worker, step, workflow
from onward._engine import ahead
from tests.engine.support import Lab, engine_of, held, wait_for

go = Signal("go", int)
begun: list[int] = []
let_go = asyncio.Event()


@workflow
async def quick() -> None:
    """Come and go."""


@step
async def stay(n: int) -> int:
    """Hold a slot."""
    begun.append(n)
    await wait_for(let_go)
    return n


@workflow
async def slow(n: int) -> int:
    return await stay(n)


@workflow
async def listener() -> int:
    return await go.wait()


@pytest.fixture(autouse=True)
def long_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has left counts for ever, so that the next row is claimed ahead for certain."""
    monkeypatch.setattr(ahead, "LATELY_S", 1e9)
    begun.clear()
    globals()["let_go"] = asyncio.Event()


async def test_what_is_claimed_ahead_begins_as_soon_as_a_slot_is_free(lab: Lab) -> None:
    async with lab.client() as client, lab.working(quick, slow, slots=2) as worker:
        await (await client.start(quick)).result(timeout=10)
        await (await client.start(quick)).result(timeout=10)
        handles = [await client.start(slow, n) for n in range(3)]
        await lab.until(lambda: _is_waiting(worker, handles[2].id))
        await lab.until(lambda: _are(begun, [0, 1]))
        let_go.set()
        assert [await handle.result(timeout=10) for handle in handles] == [0, 1, 2]


async def test_what_is_claimed_ahead_is_given_back_unspent_where_no_slot_gets_free(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lab.client() as client, lab.working(quick, slow, slots=2) as worker:
        await (await client.start(quick)).result(timeout=10)
        await (await client.start(quick)).result(timeout=10)
        handles = [await client.start(slow, n) for n in range(3)]
        await lab.until(lambda: _is_waiting(worker, handles[2].id))
        monkeypatch.setattr(ahead, "PATIENCE_S", 0.0)
        engine_of(worker).dispatcher.poke()
        await lab.in_status(handles[2], "pending")
        assert handles[2].id not in held(worker)
        async with lab.working(slow):  # another worker has a slot for it
            await lab.until(lambda: _are(begun, [0, 1, 2]))
            let_go.set()
            assert [await handle.result(timeout=10) for handle in handles] == [0, 1, 2]
        info = await lab.info(handles[2])
        assert (info.attempts, info.crashes) == (0, 0)


async def test_what_is_claimed_ahead_is_given_back_when_the_worker_stops(lab: Lab) -> None:
    async with lab.client() as client:
        async with lab.working(quick, slow, slots=2) as worker:
            await (await client.start(quick)).result(timeout=10)
            await (await client.start(quick)).result(timeout=10)
            handles = [await client.start(slow, n) for n in range(3)]
            await lab.until(lambda: _is_waiting(worker, handles[2].id))
            worker.stop()
            await lab.until(lambda: _is_stopping(worker))
            let_go.set()
        info = await lab.info(handles[2])
        assert (info.status, info.attempts, info.crashes, sorted(begun)) == ("pending", 0, 0, [0, 1])
        async with lab.working(slow):
            assert [await handle.result(timeout=10) for handle in handles] == [0, 1, 2]


async def test_a_signal_that_comes_before_it_begins_is_delivered_once_it_does(lab: Lab) -> None:
    async with lab.client() as client, lab.working(quick, slow, listener, slots=2) as worker:
        await (await client.start(quick)).result(timeout=10)
        await (await client.start(quick)).result(timeout=10)
        handles = [await client.start(slow, n) for n in range(2)]
        await lab.until(lambda: _are(begun, [0, 1]))
        third = await client.start(listener)
        await lab.until(lambda: _is_waiting(worker, third.id))
        await client.signal(third, go, 7)
        await lab.until(lambda: _has_mail(worker))
        let_go.set()
        assert await third.result(timeout=10) == 7
        assert [await handle.result(timeout=10) for handle in handles] == [0, 1]


async def _is_waiting(worker: Worker, workflow_id: str) -> bool:
    return workflow_id in engine_of(worker).dispatcher._ahead


async def _is_stopping(worker: Worker) -> bool:
    return engine_of(worker).dispatcher.is_stopping


async def _has_mail(worker: Worker) -> bool:
    return engine_of(worker).dispatcher._ahead.has_mail


async def _are(found: list[int], wanted: list[int]) -> bool:
    return sorted(found) == wanted

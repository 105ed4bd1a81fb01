"""`Worker.health`: live while it can be helped without a restart, ready while it takes work."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from onward import Worker, step, workflow
from onward._engine import lease
from onward.health import LONGEST_SILENCE_S
from tests.engine.support import Lab, engine_of


@step
async def pass_on(value: int) -> int:
    return value


@workflow
async def passing(value: int) -> int:
    return await pass_on(value)


@workflow
async def held(value: int) -> int:
    return await hold(value)


@step
async def hold(value: int) -> int:
    await asyncio.Event().wait()
    return value


async def test_it_is_starting_before_it_has_begun_and_stopping_after(plain_lab: Lab) -> None:
    entered, goes_on = asyncio.Event(), asyncio.Event()

    @contextlib.asynccontextmanager
    async def slow() -> AsyncIterator[None]:
        entered.set()
        await goes_on.wait()
        yield

    worker = plain_lab.worker(passing, lifespan=slow, name="mine", slots=3)
    task = asyncio.create_task(worker.run())
    await entered.wait()
    health = worker.health()
    assert (health.is_live, health.is_ready, health.problems) == (True, False, ("starting",))
    assert (health.worker_id, health.name, health.slots, health.used) == (None, "mine", 3, 0)
    goes_on.set()
    while not worker.health().is_ready:
        await asyncio.sleep(0)
    assert worker.health().worker_id == engine_of(worker).worker_id
    worker.stop()
    assert (worker.health().is_live, worker.health().problems) == (True, ("stopping",))
    await task
    assert (worker.health().is_live, worker.health().is_ready) == (True, False)


async def test_it_counts_what_it_holds(plain_lab: Lab) -> None:
    async with plain_lab.client() as client, plain_lab.working(held, grace=0.0) as worker:
        assert worker.health().used == 0
        await client.start(held, 1)

        async def holds_one() -> bool:
            return worker.health().used == 1

        await plain_lab.until(holds_one)


async def test_without_its_lease_it_is_live_and_not_ready(plain_lab: Lab) -> None:
    async with plain_lab.working(passing) as worker:
        keeper = engine_of(worker).lease
        keeper.valid_until = 0.0
        health = worker.health()
        assert (health.is_live, health.is_ready, health.problems) == (True, False, ("the lease is not held",))


async def test_a_database_that_is_away_leaves_it_live_and_not_ready(plain_lab: Lab) -> None:
    async with plain_lab.working(passing) as worker:
        engine_of(worker).lease._is_failing = True
        health = worker.health()
        assert (health.is_live, health.is_ready) == (True, False)
        assert health.problems == ("the database cannot be used now",)


@pytest.mark.parametrize(("stuck_s", "is_live"), [(4.0, True), (6.0, False)])
async def test_a_loop_that_has_not_turned_for_a_lease_is_not_live(
    plain_lab: Lab, monkeypatch: pytest.MonkeyPatch, stuck_s: float, is_live: bool
) -> None:
    async with plain_lab.working(passing, lease=5) as worker:
        monkeypatch.setattr(lease.LeaseKeeper, "stuck_s", stuck_s)
        health = worker.health()
        monkeypatch.undo()
        assert (health.is_live, health.is_ready) == (is_live, is_live)


async def test_a_lease_thread_that_hangs_is_not_live(plain_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    async with plain_lab.working(passing, lease=5) as worker:
        monkeypatch.setattr(lease.LeaseKeeper, "silent_s", LONGEST_SILENCE_S + 1)
        health = worker.health()
        monkeypatch.undo()
        assert (health.is_live, health.problems) == (False, ("the lease thread has been silent for 31 s",))


def test_a_worker_that_was_never_started_is_live_and_not_ready() -> None:
    health = Worker("memory://", workflows=[passing]).health()
    assert (health.is_live, health.is_ready, health.problems) == (True, False, ("starting",))

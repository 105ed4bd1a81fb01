"""Workflow time moves with entries only; every timer waits under a key of its own for an entry of its own."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from onward._engine.replay.commands import Waiting
from onward._store.records import Entry
from onward.context import now, sleep, sleep_until
from onward.definitions import step, workflow
from onward.errors import ConfigurationError, NonDeterminismError
from tests.unit.replay.driver import BEGAN, Run, same


@step
def tick() -> None: ...


def test_timers_are_named_by_what_made_them_and_numbered_by_creation() -> None:
    @workflow
    async def waits() -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(9, int)
        async with asyncio.timeout(8):
            await asyncio.wait(
                [asyncio.create_task(asyncio.sleep(5)), asyncio.create_task(asyncio.sleep(6))], timeout=7
            )

    run = Run(waits)
    assert [(w.key, w.kind) for w in run.core.waiting()] == [
        ("timer", "timer"),
        ("timeout", "timer"),
        ("timeout#2", "timer"),
        ("sleep", "timer"),
        ("sleep#2", "timer"),
    ]
    run.close()


def test_the_next_timer_is_the_one_with_the_lowest_deadline_then_the_oldest() -> None:
    @workflow
    async def waits() -> list[str]:
        order: list[str] = []

        async def doze(name: str, delay: float) -> None:
            await asyncio.sleep(delay)
            order.append(name)

        await asyncio.gather(doze("a", 3), doze("b", 1), doze("c", 1), doze("d", 2))
        return order

    run = Run(waits)
    assert run.core.next_timer() == Waiting("sleep#2", "timer", "", BEGAN + 1_000_000)
    assert run.work().result == ["b", "c", "d", "a"]


def test_time_stands_still_between_entries_and_is_that_of_the_last_one() -> None:
    @workflow
    async def looks() -> list[str]:
        seen = [now()]
        await tick()
        seen.append(now())
        await asyncio.sleep(0.000002)
        seen.append(now())
        return [moment.isoformat() for moment in seen]

    run = Run(looks)
    run.step("tick", at=BEGAN + 5)
    assert run.core.now_us == BEGAN + 5
    run.fire()
    base = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=BEGAN)
    assert run.result == [(base + timedelta(microseconds=us)).isoformat() for us in (0, 5, 7)]


def test_time_never_falls() -> None:
    @workflow
    async def looks() -> bool:
        before = now()
        await tick()
        return now() >= before

    run = Run(looks)
    run.step("tick", at=BEGAN - 1_000_000)
    assert run.result is True
    assert run.core.now_us == BEGAN


@pytest.mark.parametrize(
    ("delay", "us"), [(0.1 + 0.2, 300_000), (1e-6, 1), (1e-7, 1), (30 * 86400.0, 30 * 86400 * 1_000_000), (1e-3, 1000)]
)
def test_deadlines_are_whole_microseconds_rounded_up_but_not_by_float_dust(delay: float, us: int) -> None:
    @workflow
    async def waits(delay: float) -> None:
        await asyncio.sleep(delay)

    run = Run(waits, delay)
    assert run.waiting("sleep").deadline == BEGAN + us
    run.close()


def test_a_timer_of_no_delay_still_fires_by_an_entry() -> None:
    @workflow
    async def waits() -> str:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0, future.set_result, "fired")
        return await future

    run = Run(waits)
    assert run.ending is None
    run.fire()
    assert run.result == "fired"


def test_a_cancelled_timer_is_not_outstanding_and_its_entry_a_divergence() -> None:
    @workflow
    async def brief() -> None:
        async with asyncio.timeout(10):
            await tick()
        await tick()

    run = Run(brief)
    run.step("tick")
    assert run.keys == ["tick#2"]
    assert run.core.next_timer() is None
    with pytest.raises(NonDeterminismError, match=r"timer 'timeout'"):
        run.feed("timer", "timeout")
    run.close()


def test_a_timeout_starts_at_the_last_entry_not_at_the_start_of_the_workflow() -> None:
    @workflow
    async def waits() -> None:
        await tick()
        async with asyncio.timeout(60):
            await tick()

    run = Run(waits)
    run.step("tick", at=BEGAN + 3_600_000_000)
    assert run.waiting("timeout").deadline == BEGAN + 3_660_000_000
    assert same(run, run.again())
    run.close()


def test_an_attempt_entry_moves_every_pending_deadline_and_no_later_one() -> None:
    @workflow
    async def waits() -> None:
        async with asyncio.timeout(60):
            await asyncio.gather(tick(), asyncio.sleep(5), asyncio.sleep(3))
            await asyncio.sleep(7)

    run = Run(waits)
    run.feed("attempt", "attempt", result=120_000_000, at=BEGAN + 1_000_000)
    assert {w.key: w.deadline for w in run.core.waiting() if w.kind == "timer"} == {
        "timeout": BEGAN + 180_000_000,
        "sleep": BEGAN + 125_000_000,
        "sleep#2": BEGAN + 123_000_000,
    }
    assert same(run, run.again())
    for _ in range(2):
        run.fire()
    run.step("tick", at=BEGAN + 126_000_000)
    assert run.waiting("sleep#3").deadline == BEGAN + 133_000_000
    run.close()


def test_ten_thousand_cancelled_timers_leave_nothing_in_the_heap() -> None:
    @workflow
    async def loops() -> None:
        for _ in range(2000):
            async with asyncio.timeout(3600):
                await tick()

    run = Run(loops)
    for _ in range(1999):
        [key] = [w.key for w in run.core.waiting() if w.kind == "step"]
        run.core.deliver(Entry(run.core.last_seq + 1, key, "step", BEGAN, result="null"))
    assert len(run.core.loop.timers) < 100
    run.close()


def test_sleep_until_takes_a_moment_in_workflow_time_and_returns_at_once_when_it_is_past() -> None:
    @workflow
    async def waits() -> str:
        start = now()
        await sleep_until(start + timedelta(hours=1))
        await sleep_until(start)
        await sleep(timedelta(seconds=2))
        return str(now() - start)

    run = Run(waits)
    assert run.waiting("sleep").deadline == BEGAN + 3_600_000_000
    run.fire()
    assert run.keys == ["sleep#2"]
    run.fire()
    assert run.result == "1:00:02"


def test_sleep_until_refuses_a_naive_datetime_and_sleep_a_negative_delay() -> None:
    with pytest.raises(ConfigurationError, match="timezone-aware"):
        sleep_until(datetime(2030, 1, 1))  # type: ignore[unused-coroutine]  # noqa: DTZ001  # the mistake under test
    with pytest.raises(ConfigurationError, match="zero or more"):
        sleep(-1)  # type: ignore[unused-coroutine]  # it raises


def test_loop_time_counts_from_the_start_so_that_microseconds_survive() -> None:
    @workflow
    async def looks() -> float:
        await tick()
        return asyncio.get_running_loop().time()

    run = Run(looks)
    run.step("tick", at=BEGAN + 1)
    assert run.result == 1e-6

"""Parking and dropping end every coroutine and async generator here and now, with no durable call and within bounds."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest

from onward._engine.replay import closing
from onward._engine.replay.loop import Limits
from onward.context import Signal, patched, progress
from onward.definitions import step, workflow
from tests.unit.replay.driver import Run

word = Signal("word", str)
bodies: list[str] = []


@pytest.fixture(autouse=True)
def _no_bodies() -> None:
    bodies.clear()


@step
def tick() -> None:
    bodies.append("tick")


@step
async def cleanup() -> None:
    bodies.append("cleanup")


def test_closing_runs_finally_blocks_now_and_refuses_their_durable_calls() -> None:
    seen: list[str] = []

    @workflow
    async def main() -> None:
        try:
            await tick()
        finally:
            seen.append("finally")
            await cleanup()
            seen.append("never")

    run = Run(main)
    run.close()
    assert seen == ["finally"]
    assert bodies == []
    assert run.core.take_commands() == []


@pytest.mark.parametrize("kind", ["sleep", "signal", "task", "timer", "timeout", "future", "patch"])
def test_no_way_of_waiting_lives_on_in_cleanup_code(kind: str) -> None:
    seen: list[str] = []

    @workflow
    async def main() -> None:
        try:
            await tick()
        finally:
            match kind:
                case "sleep":
                    await asyncio.sleep(5)
                case "signal":
                    await word.wait()
                case "task":
                    await asyncio.create_task(asyncio.sleep(0))
                case "timer":
                    asyncio.get_running_loop().call_later(1, seen.append, "timer")
                    await tick()
                case "timeout":
                    async with asyncio.timeout(5):
                        await tick()
                case "future":
                    await asyncio.Event().wait()
                case "patch":
                    progress("x")
                    patched("x")
                    await tick()
            seen.append("went on")

    run = Run(main)
    run.core.take_commands()
    run.close()
    assert seen == []
    assert run.core.take_commands() == []
    assert run.core.waiting() == []


def test_cleanup_code_may_use_timeouts_and_task_groups_without_leaving_coroutines_unawaited() -> None:
    seen: list[str] = []

    async def more() -> None:
        seen.append("more")

    @workflow
    async def main() -> None:
        try:
            await tick()
        finally:
            try:
                async with asyncio.timeout(1), asyncio.TaskGroup() as group:
                    group.create_task(more())
                    seen.append(str(asyncio.current_task() is not None))
            finally:
                await asyncio.wait_for(more(), 5)

    run = Run(main)
    run.close()
    assert seen[0] == "True"


def test_all_tasks_are_closed_task_groups_and_gathers_too() -> None:
    closed: list[int] = []

    async def one(x: int) -> None:
        try:
            await asyncio.sleep(100 + x)
        finally:
            closed.append(x)

    @workflow
    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(one(1))
            group.create_task(one(2))
            await asyncio.gather(one(3), one(4))

    run = Run(main)
    run.close()
    assert sorted(closed) == [1, 2, 3, 4]


def test_a_closed_execution_leaves_nothing_for_the_collector_to_run() -> None:
    ran: list[str] = []

    @workflow
    async def main() -> None:
        cycle: list[Any] = []
        cycle.append(cycle)
        try:
            await asyncio.gather(asyncio.sleep(10), word.wait())
        finally:
            ran.append("finally")
            await cleanup()

    run = Run(main)
    run.close()
    assert ran == ["finally"]
    root = weakref.ref(run.core)
    del run
    gc.collect()
    assert root() is None
    assert ran == ["finally"]
    assert bodies == []


def test_parking_breaks_the_cycles_of_what_it_closed() -> None:
    class Big:
        pass

    made: list[weakref.ref[Big]] = []

    @workflow
    async def main() -> None:
        big = Big()
        made.append(weakref.ref(big))
        await asyncio.gather(tick(), asyncio.sleep(5))

    gc.disable()
    try:
        run = Run(main)
        core = weakref.ref(run.core)
        run.close()
        del run
        assert made[0]() is None
        assert core() is None, "reference counts alone free a parked execution"
    finally:
        gc.enable()


def test_garbage_of_one_execution_is_not_collected_inside_another() -> None:
    order: list[str] = []

    class Noisy:
        def __del__(self) -> None:
            order.append("collected")

    @workflow
    async def other() -> None:
        order.append("begin")
        junk = []
        for _ in range(5000):
            cell: list[Any] = []
            cell.append(cell)
            junk.append(cell)
        del junk
        order.append("end")

    cycle: list[Any] = [Noisy()]
    cycle.append(cycle)
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        gc.disable()
        del cycle
        gc.enable()
        Run(other)
    finally:
        gc.set_threshold(*threshold)
    assert order.index("end") == order.index("begin") + 1


# ---------------------------------------------------------------------- async generators


def _numbers(log: list[str]) -> Any:
    async def numbers() -> AsyncIterator[int]:
        try:
            for x in range(9):
                yield x
        finally:
            log.append("closing")
            await cleanup()
            log.append("closed")

    return numbers()


def test_an_abandoned_async_generator_cleans_up_durably_in_its_own_workflow() -> None:
    log: list[str] = []

    @workflow
    async def main() -> None:
        async for x in _numbers(log):
            if x == 2:
                break
        await tick()

    async def on_a_real_loop() -> Run:
        run = Run(main)
        await asyncio.sleep(0)
        return run

    run = asyncio.run(on_a_real_loop())
    assert log == ["closing"]
    assert run.issued() == ["tick", "cleanup"]
    assert bodies == []
    run.step("cleanup")
    assert log == ["closing", "closed"]
    log.clear()
    assert run.again().keys == ["tick"]
    run.close()


def test_an_async_generator_suspended_at_a_yield_is_closed_without_durable_calls() -> None:
    log: list[str] = []

    @workflow
    async def main() -> None:
        async for _ in _numbers(log):
            await tick()

    run = Run(main)
    run.close()
    assert log == ["closing"]
    assert bodies == []


def test_an_async_generator_suspended_in_an_await_is_closed_with_its_task() -> None:
    log: list[str] = []

    async def waits() -> AsyncIterator[int]:
        try:
            await tick()
            yield 1
        finally:
            log.append("closing")
            await cleanup()

    @workflow
    async def main() -> None:
        async for _ in waits():
            pass

    run = Run(main)
    run.close()
    assert log == ["closing"]
    assert bodies == []


def test_an_async_generator_in_a_reference_cycle_is_closed_at_the_close_and_not_by_the_collector() -> None:
    log: list[str] = []

    @workflow
    async def main() -> None:
        holder: list[Any] = [_numbers(log)]
        holder.append(holder)
        await anext(holder[0])
        del holder
        await tick()

    run = Run(main)
    gc.collect()
    assert log == [], "its moment would differ on replay"
    run.close()
    assert log == ["closing"]
    assert bodies == []


def test_an_async_generator_left_at_the_end_of_the_workflow_is_closed_without_durable_calls() -> None:
    log: list[str] = []

    @workflow
    async def main() -> int:
        async for x in _numbers(log):
            if x == 2:
                break
        return 1

    run = Run(main)
    assert run.result == 1
    assert log == ["closing"]
    assert run.taken == []
    assert bodies == []


# ---------------------------------------------------------------------- code that will not end


@pytest.mark.parametrize("how", ["step", "sleep", "bare", "signal", "task", "future"])
def test_cleanup_code_that_spins_is_abandoned_within_bounds(how: str, caplog: pytest.LogCaptureFixture) -> None:
    turns = 0

    @workflow
    async def main() -> None:
        nonlocal turns
        while True:
            try:
                turns += 1
                match how:
                    case "step":
                        await tick()
                    case "sleep":
                        await asyncio.sleep(1)
                    case "bare":
                        if turns > 1:
                            await asyncio.sleep(0)
                        else:
                            await tick()
                    case "signal":
                        await word.wait()
                    case "task":
                        await asyncio.create_task(asyncio.sleep(3))
                    case _:
                        await asyncio.get_running_loop().create_future()
            except BaseException:
                continue

    run = Run(main, limits=Limits(refusals=20))
    with caplog.at_level(logging.WARNING, "onward.workflow"):
        run.close()
    assert 2 < turns < 50
    [record] = [r for r in caplog.records if "never ends" in r.getMessage()]
    assert "test_closing.py:" in record.getMessage()
    turns = 0
    del run
    gc.collect()
    assert turns == 0, "what is buried never runs again"
    assert bodies == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_graveyard_is_bounded_and_its_oldest_cannot_run_a_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing, "GRAVES", 3)
    monkeypatch.setattr(closing, "_graveyard", type(closing._graveyard)())

    @workflow
    async def main() -> None:
        while True:
            try:
                await cleanup()
            except BaseException:
                continue

    for _ in range(8):
        Run(main, limits=Limits(refusals=5)).close()
    assert len(closing._graveyard) == 3

    async def on_a_real_loop() -> None:
        closing._empty_graveyard()

    asyncio.run(on_a_real_loop())
    assert len(closing._graveyard) == 0
    assert bodies == []


def test_an_async_generator_that_will_not_end_is_abandoned_too(caplog: pytest.LogCaptureFixture) -> None:
    async def stubborn() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            while True:
                try:
                    await cleanup()
                except BaseException:
                    continue

    @workflow
    async def main() -> None:
        async for _ in stubborn():
            await tick()

    run = Run(main, limits=Limits(refusals=20))
    run.close()
    assert [r for r in caplog.records if "never ends" in r.getMessage()]
    assert bodies == []


def test_errors_of_cleanup_code_do_not_leave_close() -> None:
    @workflow
    async def main() -> None:
        try:
            await tick()
        finally:
            raise SystemExit(3)

    run = Run(main)
    run.close()
    assert run.ending is None


def test_a_workflow_that_returns_from_its_cleanup_while_closing_has_not_ended() -> None:
    @workflow
    async def main() -> int:
        try:
            await tick()
        except BaseException:
            pass
        return 1

    run = Run(main)
    run.close()
    assert run.ending is None


def test_closing_says_nothing_of_tasks_that_are_merely_parked(caplog: pytest.LogCaptureFixture) -> None:
    async def fails() -> None:
        raise ValueError("awaited later")

    @workflow
    async def main() -> None:
        task = asyncio.create_task(fails())
        await asyncio.sleep(100)
        await task

    run = Run(main)
    run.close()
    del run
    gc.collect()
    assert caplog.records == []

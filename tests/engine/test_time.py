"""Timers, delays and deadlines: durable, precise, never early, in the order of the database's time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from onward import Signal, WorkflowTimedOut, now, sleep, sleep_until, step, workflow
from tests.engine.support import Lab, holds_nothing, keys, wait_for

approved = Signal("approved", str)


async def test_a_sleep_survives_the_worker_and_holds_nothing_in_it(lab: Lab) -> None:
    bodies: list[str] = []

    @step
    async def mail(template: str) -> str:
        bodies.append(template)
        return template

    @workflow
    async def flow() -> str:
        await mail("welcome")
        await asyncio.sleep(timedelta(days=3).total_seconds())
        return await mail("follow-up")

    async with lab.client() as client:
        async with lab.working(flow) as worker:
            handle = await client.start(flow)
            info = await lab.parked(handle, on="sleep")
            assert info.status == "pending"
            assert info.state.startswith("sleeping until")
            await holds_nothing(worker)
        lab.clock.advance(timedelta(days=2, hours=23))
        async with lab.working(flow):
            assert (await lab.info(handle)).status == "pending"
            assert bodies == ["welcome"]
            lab.clock.advance(timedelta(hours=1))
            assert await handle.result(timeout=10) == "follow-up"
        entries = await handle.journal()
    assert keys(entries) == ["mail", "sleep", "mail#2"]
    assert entries[1].finished_at - entries[0].finished_at >= timedelta(days=3)


async def test_timers_fire_close_to_their_time_and_never_early(lab: Lab) -> None:
    @workflow
    async def flow(seconds: float) -> None:
        await sleep(seconds)

    async with lab.running(flow) as client:
        handles = [await client.start(flow, seconds) for seconds in (0.002, 0.03, 0.06)]
        for handle, seconds in zip(handles, (0.002, 0.03, 0.06), strict=True):
            await handle.result(timeout=10)
            info = await handle.info()
            assert info.started_at is not None
            [entry] = await handle.journal()
            late = (entry.finished_at - info.started_at).total_seconds() - seconds
            assert 0 <= late < 1


async def test_sleep_until_a_moment_that_is_past_returns_at_once(lab: Lab) -> None:
    @workflow
    async def flow(moments: list[datetime]) -> None:
        for moment in moments:
            await sleep_until(moment)

    async with lab.running(flow) as client:
        handle = await client.start(flow, [lab.clock.now() - timedelta(days=1), lab.clock.now() + timedelta(days=1)])
        await lab.parked(handle, on="sleep")
        lab.clock.advance(timedelta(days=1))
        await handle.result(timeout=10)


async def test_a_thousand_sleepers_hold_no_executions_in_the_worker(plain_lab: Lab) -> None:
    lab = plain_lab

    @workflow
    async def flow(n: int) -> int:
        await asyncio.sleep(3600)
        return n

    async with lab.client() as client, lab.working(flow) as worker:
        handles = await client.start_many(flow.bind(n) for n in range(1000))

        async def all_sleep() -> bool:
            infos = await client.list(status="pending", limit=1000)
            return sum(bool(info.waiting_for) for info in infos) == 1000

        await lab.until(all_sleep)
        await holds_nothing(worker)
        lab.clock.advance(3600)
        results = await asyncio.gather(*(handle.result(timeout=20) for handle in handles))
    assert results == list(range(1000))


async def test_the_timeout_of_a_workflow_that_was_queued_starts_when_it_starts(lab: Lab) -> None:
    @step
    async def work() -> str:
        return "in time"

    @workflow
    async def flow() -> str:
        async with asyncio.timeout(60):
            return await work()

    async with lab.client() as client:
        handle = await client.start(flow)
        lab.clock.advance(600)
        async with lab.working(flow):
            assert await handle.result(timeout=10) == "in time"


async def test_inputs_found_after_a_downtime_are_delivered_in_the_order_of_their_time(lab: Lab) -> None:
    bodies: list[str] = []

    @step
    async def note(what: str) -> None:
        bodies.append(what)

    @workflow
    async def flow() -> str:
        try:
            message = await approved.wait(timeout=600)
        except TimeoutError:
            message = "timed out"
        await note(message)
        return message

    async with lab.client() as client:
        async with lab.working(flow):
            handle = await client.start(flow)
            await lab.parked(handle, on="signal")
        lab.clock.advance(300)
        await client.signal(handle, approved, "yes")
        lab.clock.advance(2700)
        await handle.cancel()
        lab.clock.advance(600)
        async with lab.working(flow):
            info = await lab.in_status(handle, "completed", "cancelled")
        entries = await handle.journal()
    # the signal won over the timeout; then came the cancel, before any further effect
    assert keys(entries) == ["signal:approved", "cancel"]
    assert info.status == "cancelled"
    assert bodies == []


async def test_a_timeout_that_was_due_before_the_signal_wins_after_a_downtime(lab: Lab) -> None:
    @workflow
    async def flow() -> str:
        try:
            return await approved.wait(timeout=600)
        except TimeoutError:
            return "timed out"

    async with lab.client() as client:
        async with lab.working(flow):
            handle = await client.start(flow)
            await lab.parked(handle, on="signal")
        lab.clock.advance(900)
        await client.signal(handle, approved, "too late")
        async with lab.working(flow):
            assert await handle.result(timeout=10) == "timed out"


async def test_several_timers_due_at_once_fire_in_the_order_of_their_deadlines(lab: Lab) -> None:
    @workflow
    async def flow() -> list[str]:
        order: list[str] = []

        async def after(seconds: float) -> None:
            await asyncio.sleep(seconds)
            order.append(f"{seconds:g} at {(now() - begun).total_seconds() >= seconds}")

        begun = now()
        async with asyncio.TaskGroup() as group:
            for seconds in (300, 100, 200):
                group.create_task(after(seconds))
        return order

    async with lab.client() as client:
        async with lab.working(flow):
            handle = await client.start(flow)
            await lab.parked(handle, on="sleep")
        lab.clock.advance(3600)
        async with lab.working(flow):
            assert await handle.result(timeout=10) == ["100 at True", "200 at True", "300 at True"]
        assert keys(await handle.journal()) == ["sleep#2", "sleep#3", "sleep"]


async def test_a_delayed_start_waits_for_its_time(lab: Lab) -> None:
    bodies: list[str] = []

    @step
    async def work(name: str) -> None:
        bodies.append(name)

    @workflow
    async def flow(name: str) -> None:
        await work(name)

    async with lab.running(flow) as client:
        delayed = await client.start(flow.using(delay=timedelta(hours=1)), "delayed")
        dated = await client.start(flow.using(run_at=lab.clock.now() + timedelta(hours=2)), "dated")
        await (await client.start(flow, "now")).result(timeout=10)
        assert bodies == ["now"]
        assert (await delayed.info()).state.startswith("delayed until")
        lab.clock.advance(3600)
        await delayed.result(timeout=10)
        assert bodies == ["now", "delayed"]
        lab.clock.advance(3600)
        await dated.result(timeout=10)


async def test_a_run_at_in_the_past_runs_at_once(lab: Lab) -> None:
    @workflow
    async def flow() -> str:
        return "ran"

    async with lab.running(flow) as client:
        handle = await client.start(flow.using(run_at=datetime(2000, 1, 1, tzinfo=UTC)))
        assert await handle.result(timeout=10) == "ran"


async def test_the_workflows_own_timeout_ends_it_where_it_waits(lab: Lab) -> None:
    @workflow
    async def flow() -> None:
        await approved.wait()

    async with lab.running(flow) as client:
        handle = await client.start(flow.using(timeout=timedelta(minutes=10)))
        info = await lab.parked(handle, on="signal")
        assert info.next_run_at == info.deadline
        lab.clock.advance(601)
        with pytest.raises(WorkflowTimedOut):
            await handle.result(timeout=10)
        assert (await handle.info()).status == "failed"
        assert keys(await handle.journal()) == ["timeout"]


async def test_a_workflow_that_was_queued_for_longer_than_its_timeout_has_all_of_it_left(lab: Lab) -> None:
    @workflow
    async def flow() -> None:
        await approved.wait()

    async with lab.client() as client:
        handle = await client.start(flow.using(timeout=60))
        lab.clock.advance(3600)
        assert (await handle.info()).deadline is None
        async with lab.working(flow):
            info = await lab.parked(handle, on="signal")
            assert info.deadline is not None and info.started_at is not None
            assert info.deadline - info.started_at == timedelta(seconds=60)
            lab.clock.advance(61)
            with pytest.raises(WorkflowTimedOut):
                await handle.result(timeout=10)
            assert (await handle.info()).attempts == 0


async def test_the_workflows_own_timeout_lets_it_clean_up_and_cancels_its_running_step(lab: Lab) -> None:
    begun, told = asyncio.Event(), asyncio.Event()
    bodies: list[str] = []

    @step
    async def slow() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.set()
            raise

    @step
    async def clean_up() -> None:
        bodies.append("clean up")

    @workflow
    async def flow() -> None:
        try:
            await slow()
        finally:
            await clean_up()

    async with lab.running(flow) as client:
        handle = await client.start(flow.using(timeout=600))
        await wait_for(begun)
        lab.clock.advance(601)
        with pytest.raises(WorkflowTimedOut):
            await handle.result(timeout=10)
        await wait_for(told)
        assert keys(await handle.journal()) == ["timeout", "clean_up"]
    assert bodies == ["clean up"]


async def test_a_sleep_of_nothing_needs_no_timer_and_many_short_ones_stay_in_memory(lab: Lab) -> None:
    @workflow
    async def flow() -> int:
        for _ in range(3):
            await asyncio.sleep(0)
            await asyncio.sleep(0.001)
        return 3

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        assert await handle.result(timeout=10) == 3
        assert keys(await handle.journal()) == ["sleep", "sleep#2", "sleep#3"]


async def test_a_worker_that_holds_nothing_has_no_executions_after_all_have_parked(lab: Lab) -> None:
    @workflow
    async def flow() -> None:
        await asyncio.sleep(3600)

    async with lab.client() as client, lab.working(flow) as worker:
        handles = [await client.start(flow) for _ in range(5)]
        for handle in handles:
            await lab.parked(handle)
        await holds_nothing(worker)

"""Cancelling workflows: at every point of their life, delivered once."""

from __future__ import annotations

import asyncio

import pytest

from onward import Signal, WorkflowCancelled, WorkflowNotFound, step, workflow
from tests.engine.support import Lab, keys, turns, wait_for

go = Signal("go", int)


async def test_a_workflow_that_never_began_is_cancelled_at_once_without_a_worker(lab: Lab) -> None:
    bodies: list[int] = []

    @workflow
    async def flow() -> None:
        bodies.append(1)

    async with lab.client() as client:
        handle = await client.start(flow)
        assert await handle.cancel()
        assert await handle.status() == "cancelled"
        with pytest.raises(WorkflowCancelled):
            await handle.result(timeout=10)
        assert not await handle.cancel()
        async with lab.working(flow):
            other = await client.start(flow)
            await other.result(timeout=10)
    assert len(bodies) == 1 or lab.mode.checks_replay


async def test_a_running_workflow_gets_cancelled_error_at_its_await_and_its_step_is_told(lab: Lab) -> None:
    begun, told = asyncio.Event(), asyncio.Event()

    @step
    async def slow() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.set()
            raise

    @workflow
    async def flow() -> None:
        await slow()

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await wait_for(begun)
        assert await handle.cancel()
        with pytest.raises(WorkflowCancelled):
            await handle.result(timeout=10)
        await wait_for(told)
        assert keys(await handle.journal()) == ["cancel"]


@pytest.mark.parametrize("kind", ["sleep", "signal"])
async def test_a_parked_workflow_is_woken_to_be_cancelled_and_may_clean_up(lab: Lab, kind: str) -> None:
    bodies: list[str] = []

    @step
    async def clean_up() -> None:
        bodies.append("clean up")

    @workflow
    async def flow() -> None:
        try:
            if kind == "sleep":
                await asyncio.sleep(3600)
            else:
                await go.wait()
        finally:
            await clean_up()

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await lab.parked(handle, on=kind)
        assert await handle.cancel()
        with pytest.raises(WorkflowCancelled):
            await handle.result(timeout=10)
        assert keys(await handle.journal()) == ["cancel", "clean_up"]
        assert (await handle.info()).cancel_requested_at is not None
    assert bodies == ["clean up"]


async def test_a_workflow_that_swallows_its_cancel_goes_on_and_says_so(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    @workflow
    async def flow() -> int:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass
        return await go.wait()

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await lab.parked(handle, on="sleep")
        await handle.cancel()
        await lab.parked(handle, on="go")
        await client.signal(handle, go, 5)
        assert await handle.result(timeout=10) == 5
        assert keys(await handle.journal()) == ["cancel", "signal:go"]
    assert "was told to stop (cancel) and caught that" in caplog.text


async def test_a_cancel_request_is_delivered_once_however_often_it_is_made(lab: Lab) -> None:
    @workflow
    async def flow() -> int:
        count = 0
        for _ in range(2):
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                count += 1
        return count

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await lab.parked(handle, on="sleep")
        assert await handle.cancel()
        await lab.parked(handle, on="sleep#2")
        assert await handle.cancel()
        lab.clock.advance(7200)
        assert await handle.result(timeout=10) == 1


async def test_a_workflow_that_backs_off_is_cancelled_without_waiting_for_its_back_off(lab: Lab) -> None:
    @step
    async def broken() -> None:
        raise OSError

    @workflow
    async def flow() -> None:
        await broken()

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await lab.backing_off(handle)
        assert await handle.cancel()
        with pytest.raises(WorkflowCancelled):
            await handle.result(timeout=10)


async def test_a_cancel_that_comes_while_an_attempt_fails_does_not_wait_for_the_back_off(lab: Lab) -> None:
    begun, finish = asyncio.Event(), asyncio.Event()

    @step
    async def broken() -> None:
        await begun.wait()
        raise OSError

    @step
    async def sibling() -> None:
        begun.set()
        await finish.wait()

    @workflow
    async def flow() -> None:
        await asyncio.gather(sibling(), broken())

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await wait_for(begun)
        await turns()  # the error has escaped; the attempt's end waits for the sibling
        assert await handle.cancel()
        finish.set()
        with pytest.raises(WorkflowCancelled):
            await handle.result(timeout=5)


async def test_a_completion_that_is_decided_wins_over_a_cancel(lab: Lab) -> None:
    @workflow
    async def flow() -> int:
        return 1

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await handle.result(timeout=10)
        assert not await handle.cancel()
        assert await handle.status() == "completed"


async def test_cancelling_an_unknown_workflow_is_a_typed_error(lab: Lab) -> None:
    async with lab.client() as client:
        with pytest.raises(WorkflowNotFound):
            await client.handle("nobody").cancel()


async def test_a_cancelled_workflow_can_be_retried_by_an_operator(lab: Lab) -> None:
    bodies: list[str] = []

    @step
    async def work() -> str:
        bodies.append("work")
        return "kept"

    @workflow
    async def flow() -> str:
        kept = await work()
        await go.wait()
        return kept

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await lab.parked(handle, on="go")
        await handle.cancel()
        await lab.in_status(handle, "cancelled")
        assert await handle.retry()
        await lab.parked(handle, on="go")
        await client.signal(handle, go, 1)
        assert await handle.result(timeout=10) == "kept"
        entries = await handle.journal()
    assert bodies == ["work"]
    assert [(entry.key, entry.struck) for entry in entries] == [("work", False), ("cancel", True), ("signal:go", False)]


async def test_on_cancel_wait_delays_the_cancellation_until_the_body_has_ended(lab: Lab) -> None:
    begun, finish = asyncio.Event(), asyncio.Event()

    @step(on_cancel="wait")
    async def charge() -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await finish.wait()
        return "charged after all"

    @workflow
    async def flow() -> None:
        await charge()

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await wait_for(begun)
        await handle.cancel()

        async def is_delivered() -> bool:
            return keys(await handle.journal()) == ["cancel"]

        await lab.until(is_delivered)
        assert await handle.status() == "running"
        finish.set()
        with pytest.raises(WorkflowCancelled):
            await handle.result(timeout=10)
        assert [entry.result for entry in await handle.journal()] == [None, "charged after all"]

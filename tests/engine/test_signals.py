"""Signals: kept until they are wanted, in order, each delivered once."""

from __future__ import annotations

import asyncio

import pytest

from onward import CodecError, Signal, WorkflowAlreadyEnded, WorkflowNotFound, step, workflow
from tests.engine.support import Lab, keys, wait_for

approved = Signal("approved", bool)
numbers = Signal("number", int)


@workflow
async def take_three() -> list[int]:
    """Waits for three messages."""
    return [await numbers.wait() for _ in range(3)]


async def test_a_signal_wakes_the_workflow_that_waits_for_it(lab: Lab) -> None:
    @workflow
    async def flow() -> str:
        return "yes" if await approved.wait() else "no"

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        info = await lab.parked(handle, on="approved")
        assert info.status == "waiting"
        assert info.state == "waiting for signal approved"
        assert info.next_run_at is None
        await client.signal(handle, approved, True)
        assert await handle.result(timeout=10) == "yes"
        [entry] = await handle.journal()
    assert (entry.key, entry.kind, entry.result) == ("signal:approved", "signal", True)


async def test_signals_before_during_and_after_the_wait_come_in_the_order_of_sending(lab: Lab) -> None:
    async with lab.client() as client:
        handle = await client.start(take_three)
        await client.signal(handle, numbers, 1)
        async with lab.working(take_three):
            await lab.parked(handle, on="number")
            await client.signal(handle, numbers, 2)
            await client.signal(handle.id, numbers, 3)
            assert await handle.result(timeout=10) == [1, 2, 3]


async def test_all_signals_sent_before_the_workflow_began_are_delivered_once_each(lab: Lab) -> None:
    async with lab.client() as client:
        handle = await client.start(take_three)
        for n in (1, 2, 3):
            await client.signal(handle, numbers, n)
        async with lab.working(take_three):
            assert await handle.result(timeout=10) == [1, 2, 3]
        assert keys(await handle.journal()) == ["signal:number", "signal:number#2", "signal:number#3"]


async def test_a_signal_that_arrives_while_a_step_runs_is_kept_for_the_wait(lab: Lab) -> None:
    begun, finish = asyncio.Event(), asyncio.Event()

    @step
    async def slow() -> int:
        begun.set()
        await finish.wait()
        return 40

    @workflow
    async def flow() -> int:
        return await slow() + await numbers.wait()

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await wait_for(begun)
        await client.signal(handle, numbers, 2)
        finish.set()
        assert await handle.result(timeout=10) == 42
        assert keys(await handle.journal()) == ["slow", "signal:number"]


async def test_a_signal_reaches_a_workflow_that_is_held_because_a_step_runs(lab: Lab) -> None:
    begun, finish = asyncio.Event(), asyncio.Event()

    @step
    async def slow() -> int:
        begun.set()
        await finish.wait()
        return 40

    @step
    async def end_it() -> None:
        finish.set()

    @workflow
    async def flow() -> int:
        async def on_signal() -> int:
            got = await numbers.wait()
            await end_it()
            return got

        return sum(await asyncio.gather(slow(), on_signal()))

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await wait_for(begun)
        await client.signal(handle, numbers, 2)
        assert await handle.result(timeout=10) == 42


async def test_a_wait_with_a_timeout_ends_and_the_next_signal_goes_to_the_next_wait(lab: Lab) -> None:
    @workflow
    async def flow() -> list[object]:
        results: list[object] = []
        try:
            results.append(await numbers.wait(timeout=60))
        except TimeoutError:
            results.append("timeout")
        results.append(await numbers.wait(timeout=3600))
        return results

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        info = await lab.parked(handle, on="number")
        assert info.status == "waiting"
        assert info.next_run_at is not None
        lab.clock.advance(61)
        await lab.parked(handle, on="signal:number#2")
        await client.signal(handle, numbers, 7)
        assert await handle.result(timeout=10) == ["timeout", 7]


async def test_two_waits_for_one_signal_are_served_in_the_order_of_waiting(lab: Lab) -> None:
    @workflow
    async def flow() -> list[int]:
        return list(await asyncio.gather(numbers.wait(), numbers.wait()))

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await lab.parked(handle, on="number")
        await client.signal(handle, numbers, 1)
        await client.signal(handle, numbers, 2)
        assert await handle.result(timeout=10) == [1, 2]


async def test_signals_of_other_names_do_not_disturb(lab: Lab) -> None:
    @workflow
    async def flow() -> bool:
        return await approved.wait()

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await client.signal(handle, numbers, 1)
        await client.signal(handle, approved, True)
        assert await handle.result(timeout=10) is True


async def test_a_signal_to_a_workflow_that_has_ended_or_never_was_is_a_typed_error(lab: Lab) -> None:
    @workflow
    async def flow() -> None:
        return

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await handle.result(timeout=10)
        with pytest.raises(WorkflowAlreadyEnded, match="completed"):
            await client.signal(handle, numbers, 1)
        with pytest.raises(WorkflowNotFound, match="nobody"):
            await client.signal("nobody", numbers, 1)


async def test_a_signal_of_another_type_than_its_hint_is_refused_before_it_is_sent(lab: Lab) -> None:
    async with lab.running(take_three) as client:
        handle = await client.start(take_three)
        with pytest.raises(CodecError):
            await client.signal(handle, numbers, "one")  # type: ignore[misc]
        for n in (1, 2, 3):
            await client.signal(handle, numbers, n)
        assert await handle.result(timeout=10) == [1, 2, 3]


async def test_many_signals_at_once_are_all_delivered_in_order(lab: Lab) -> None:
    @workflow
    async def flow() -> list[int]:
        return [await numbers.wait() for _ in range(50)]

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await asyncio.gather(*(client.signal(handle, numbers, n) for n in range(50)))
        assert await handle.result(timeout=10) == list(range(50))


async def test_a_signal_is_not_delivered_to_an_attempt_that_is_backing_off(lab: Lab) -> None:
    bodies: list[int] = []

    @step
    async def flaky() -> None:
        bodies.append(1)
        if len(bodies) == 1:
            raise OSError

    @workflow
    async def flow() -> int:
        await flaky()
        return await numbers.wait()

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        info = await lab.backing_off(handle)
        await client.signal(handle, numbers, 9)
        assert (await lab.info(handle)).next_run_at == info.next_run_at
        lab.clock.advance(120)
        assert await handle.result(timeout=10) == 9

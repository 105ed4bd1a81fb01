"""Cancelled awaits of steps: abandoned at once, or held until the body has really ended; and races with the journal."""

from __future__ import annotations

import asyncio
import threading

from onward import Retry, current_step, start, step, workflow
from tests.engine.support import Lab, keys, wait_for


async def test_an_abandoned_step_leaves_no_entry_and_its_body_is_told(lab: Lab) -> None:
    begun, told = threading.Event(), threading.Event()

    @step
    def slow() -> str:
        begun.set()
        if current_step().wait_cancelled(10):
            told.set()
        return "too late"

    @step
    async def refund() -> str:
        return "refunded"

    @workflow
    async def flow() -> str:
        try:
            async with asyncio.timeout(60):
                return await slow()
        except TimeoutError:
            return await refund()

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await wait_for(begun)
        lab.clock.advance(61)
        assert await handle.result(timeout=10) == "refunded"
        await wait_for(told)
        assert keys(await handle.journal()) == ["timeout", "refund"]


async def test_with_on_cancel_wait_compensation_begins_after_the_bodys_real_end(lab: Lab) -> None:
    begun, order = threading.Event(), list[str]()

    @step(on_cancel="wait")
    def charge() -> str:
        begun.set()
        current_step().wait_cancelled(10)
        order.append("charged")
        return "charged"

    @step
    async def refund() -> str:
        order.append("refund")
        return "refunded"

    @workflow
    async def flow() -> str:
        try:
            async with asyncio.timeout(60):
                return await charge()
        except TimeoutError:
            return await refund()

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await wait_for(begun)
        lab.clock.advance(61)
        assert await handle.result(timeout=10) == "refunded"
        entries = await handle.journal()
    assert order == ["charged", "refund"]
    assert [(entry.key, entry.result) for entry in entries] == [
        ("timeout", None),
        ("charge", "charged"),
        ("refund", "refunded"),
    ]


async def test_a_body_that_was_cancelled_is_never_tried_again_whatever_it_raises(lab: Lab) -> None:
    tries: list[int] = []
    begun = asyncio.Event()

    @step(on_cancel="wait", retry=Retry(tries=5, delay=0.001))
    async def charge() -> None:
        tries.append(1)
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise RuntimeError("cleanup failed") from None

    @workflow
    async def flow() -> str:
        try:
            async with asyncio.timeout(60):
                await charge()
        except TimeoutError:
            return "over"
        return ""

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await wait_for(begun)
        lab.clock.advance(61)
        assert await handle.result(timeout=10) == "over"
        assert keys(await handle.journal()) == ["timeout", "charge"]
    assert tries == [1]


async def test_a_step_that_is_cancelled_between_two_tries_is_not_tried_again(lab: Lab) -> None:
    tries: list[int] = []

    @step(retry=Retry(tries=5, delay=3600, jitter=0))
    async def flaky() -> None:
        tries.append(1)
        raise OSError

    @workflow
    async def flow() -> str:
        try:
            async with asyncio.timeout(60):
                await flaky()
        except TimeoutError:
            await asyncio.sleep(7200)
            return "over"
        return ""

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await lab.parked(handle, on="retry")
        lab.clock.advance(61)
        await lab.parked(handle, on="sleep")
        lab.clock.advance(7200)
        assert await handle.result(timeout=10) == "over"
    assert tries == [1]


async def test_a_result_that_comes_while_its_cancel_waits_for_a_commit_is_dropped(lab: Lab) -> None:
    both = asyncio.Event()

    @step
    async def first() -> None:
        await both.wait()

    @step
    async def other() -> str:
        await both.wait()
        return "late"

    @step
    async def last() -> str:
        return "done"

    @workflow
    async def flow() -> str:
        async def follow() -> str:
            await first()
            after = asyncio.create_task(last())
            await asyncio.sleep(0)  # the next step is called before the other one is cancelled
            task.cancel()
            return await after

        following = asyncio.create_task(follow())
        await asyncio.sleep(0)
        task = asyncio.create_task(other())
        return await following

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await lab.in_status(handle, "running")
        both.set()
        assert await handle.result(timeout=5) == "done"
        assert keys(await handle.journal()) == ["first", "last"]


async def test_a_start_that_is_cancelled_while_its_commit_is_on_its_way_hurts_nobody(lab: Lab) -> None:
    both = asyncio.Event()

    @workflow
    async def child() -> None:
        return

    @step
    async def first() -> None:
        await both.wait()

    @step
    async def second() -> None:
        await both.wait()

    @step
    async def last() -> str:
        return "done"

    @workflow
    async def flow() -> str:
        async def begin() -> None:
            await first()
            await start(child)

        beginning = asyncio.create_task(begin())
        await asyncio.sleep(0)
        await second()
        beginning.cancel()
        return await last()

    async with lab.running(flow, child) as client:
        handle = await client.start(flow)
        await lab.in_status(handle, "running")
        both.set()
        assert await handle.result(timeout=5) == "done"
        assert keys(await handle.journal()) == ["first", "second", "last"]

"""A cancel or timeout entry cancels the root; a cancelled step is abandoned at once, or waited for."""

from __future__ import annotations

import asyncio

import pytest

from onward._engine.replay.commands import (
    Cancelled,
    Raised,
)
from onward.definitions import step, workflow
from tests.unit.replay.driver import Run, same


@step
def double(x: int) -> int:
    return 2 * x


@step
def fails(x: int = 0) -> int:
    raise ValueError(f"no {x}")


@workflow
async def three(n: int) -> int:
    total = 0
    for i in range(n):
        total += await double(i)
    return total


def test_a_cancel_entry_cancels_the_root_which_ends_cancelled() -> None:
    run = Run(three, 1)
    run.feed("cancel", "cancel")
    assert run.ending == Cancelled(timed_out=False)
    assert same(run, run.again())


def test_a_timeout_entry_ends_it_as_timed_out() -> None:
    run = Run(three, 1)
    run.feed("timeout", "timeout")
    assert run.ending == Cancelled(timed_out=True)


def test_cleanup_after_a_cancel_is_durable_and_ends_cancelled() -> None:
    @workflow
    async def cleans() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await double(5)

    run = Run(cleans)
    run.feed("cancel", "cancel")
    assert run.ending is None
    run.work()
    assert run.ending == Cancelled(timed_out=False)
    assert run.notes == []


def test_a_swallowed_cancel_goes_on_and_is_noted_at_the_end() -> None:
    @workflow
    async def stubborn() -> int:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            pass
        return await double(4)

    run = Run(stubborn)
    run.feed("cancel", "cancel")
    assert run.notes == []
    assert run.work().result == 8
    [note] = run.notes
    assert "told to stop (cancel)" in note


def test_a_cancelled_error_without_a_cancel_entry_is_raised() -> None:
    @workflow
    async def cancels_itself() -> None:
        task = asyncio.create_task(asyncio.sleep(1000))
        task.cancel()
        await task

    run = Run(cancels_itself)
    assert isinstance(run.ending, Raised)
    assert isinstance(run.error, asyncio.CancelledError)


def test_cancelling_an_abandoned_step_says_so_and_ends_the_await_at_once() -> None:
    @workflow
    async def impatient() -> str:
        try:
            async with asyncio.timeout(5):
                await double(1)
        except TimeoutError:
            return "late"
        return "in time"

    run = Run(impatient)
    run.fire()
    assert run.result == "late"

    @workflow
    async def goes_on() -> int:
        try:
            async with asyncio.timeout(5):
                await double(1)
        except TimeoutError:
            pass
        return await double(2)

    run = Run(goes_on)
    run.fire()
    assert run.issued() == ["double", "~double", "double#2"]
    assert run.again().issued() == ["double#2"], "an abandoned step whose cancellation is history is not begun again"
    run.step("double#2", 4)
    assert run.result == 4


@step(on_cancel="wait")
def charge(x: int) -> int:
    return x


@pytest.mark.parametrize("failed", [False, True])
def test_a_step_that_waits_holds_the_cancellation_until_its_entry(failed: bool) -> None:
    @workflow
    async def patient() -> str:
        try:
            async with asyncio.timeout(5):
                await charge(1)
        except TimeoutError:
            return "late, and ended"
        return "in time"

    run = Run(patient)
    run.fire()
    assert run.ending is None
    assert run.issued() == ["charge", "~charge waits"]
    assert run.again().issued() == ["charge", "~charge waits"]
    run.step("charge", 1, error=ValueError("x") if failed else None)
    assert run.result == "late, and ended"
    assert same(run, run.again())


def test_a_held_cancellation_whose_entry_is_history_is_not_asked_for_again() -> None:
    @workflow
    async def goes_on() -> int:
        try:
            async with asyncio.timeout(5):
                await charge(1)
        except TimeoutError:
            pass
        return await double(2)

    run = Run(goes_on)
    run.fire()
    run.step("charge", 1)
    assert run.again().issued() == ["double"]
    run.close()


def test_a_second_cancellation_of_a_step_that_waits_asks_no_second_time() -> None:
    @workflow
    async def patient() -> None:
        async with asyncio.timeout(5):
            await charge(1)

    run = Run(patient)
    run.fire()
    run.feed("cancel", "cancel")
    assert run.issued() == ["charge", "~charge waits"]
    run.step("charge", 1)
    assert run.ending == Cancelled(timed_out=False)


def test_a_step_called_and_cancelled_between_two_entries_is_never_asked_for() -> None:
    @workflow
    async def brief() -> int:
        task = asyncio.create_task(double(1))
        await asyncio.sleep(0)
        task.cancel()
        return await double(2)

    run = Run(brief)
    assert run.issued() == ["double#2"]

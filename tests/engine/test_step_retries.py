"""Tries of a step: short waits in memory, long ones parked, and what is never tried again."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import timedelta

import pytest

from onward import (
    CodecError,
    Fail,
    Retry,
    RetryLater,
    StepFailed,
    StepTimedOut,
    WorkflowFailed,
    current_step,
    step,
    workflow,
)
from tests.engine.support import Lab, holds_nothing, keys, turns, wait_for

QUICK = 0.001


async def test_a_short_retry_is_tried_again_at_once_and_recorded_once(lab: Lab) -> None:
    tries: list[int] = []

    @step(retry=Retry(tries=3, delay=QUICK))
    async def flaky() -> str:
        tries.append(current_step().try_number)
        if len(tries) < 3:
            raise OSError("not yet")
        return "ok"

    @workflow
    async def flow() -> str:
        return await flaky()

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        assert await handle.result(timeout=10) == "ok"
        [entry] = await handle.journal()
        assert (await handle.info()).attempts == 0
    assert tries == [1, 2, 3]
    assert (entry.tries, entry.result) == (3, "ok")


async def test_after_its_last_try_the_steps_error_reaches_the_workflow(lab: Lab) -> None:
    tries: list[int] = []

    @step(retry=Retry(tries=2, delay=QUICK))
    async def broken() -> None:
        tries.append(current_step().try_number)
        raise OSError(f"try {len(tries)}")

    @workflow
    async def flow() -> str:
        try:
            await broken()
        except StepFailed as error:
            return error.message
        return ""

    async with lab.running(flow) as client:
        assert await (await client.start(flow)).result(timeout=10) == "try 2"
    assert tries == [1, 2]


async def test_a_long_retry_parks_and_its_count_survives_another_worker(lab: Lab) -> None:
    tries: list[int] = []

    @step(retry=Retry(tries=3, delay=timedelta(hours=1), jitter=0))
    async def flaky() -> str:
        tries.append(current_step().try_number)
        if len(tries) < 3:
            raise OSError("not yet")
        return "ok"

    @workflow
    async def flow() -> str:
        return await flaky()

    async with lab.client() as client:
        async with lab.working(flow) as worker:
            handle = await client.start(flow)
            info = await lab.parked(handle, on="retry")
            assert info.waiting_for[0].until is not None
            assert 3590 < (info.waiting_for[0].until - lab.clock.now()).total_seconds() <= 3600
            await holds_nothing(worker)
            if lab.mode.store == "sqlite":
                assert lab.sql("SELECT key, tries FROM onward_step_retries") == [("flaky", 1)]
        async with lab.working(flow):
            lab.clock.advance(3600)

            async def waits_for_the_third() -> bool:
                return len(tries) == 2 and bool((await lab.info(handle)).waiting_for)

            await lab.until(waits_for_the_third)
        async with lab.working(flow):
            lab.clock.advance(7200)
            assert await handle.result(timeout=10) == "ok"
        [entry] = await handle.journal()
        if lab.mode.store == "sqlite":
            assert lab.sql("SELECT key FROM onward_step_retries") == []
    assert tries == [1, 2, 3]
    assert entry.tries == 3


async def test_a_try_is_not_repeated_before_its_time_when_something_else_wakes_the_workflow(lab: Lab) -> None:
    tries: list[int] = []

    @step(retry=Retry(tries=2, delay=timedelta(hours=1), jitter=0))
    async def flaky() -> str:
        tries.append(current_step().try_number)
        if len(tries) < 2:
            raise OSError("not yet")
        return "ok"

    @workflow
    async def flow() -> str:
        task = asyncio.create_task(flaky())
        await asyncio.sleep(60)
        return await task

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await lab.parked(handle, on="retry")
        lab.clock.advance(60)

        async def has_slept() -> bool:
            info = await lab.info(handle)
            return bool(info.waiting_for) and all(wait.kind != "timer" for wait in info.waiting_for)

        await lab.until(has_slept)
        assert tries == [1]
        lab.clock.advance(3600)
        assert await handle.result(timeout=10) == "ok"
    assert tries == [1, 2]


async def test_only_errors_that_the_policy_wants_are_tried_again(lab: Lab) -> None:
    tries: list[str] = []

    @step(retry=Retry(tries=5, delay=QUICK, retry_on=OSError, give_up_on=FileNotFoundError))  # type: ignore[arg-type]
    async def read(what: str) -> None:
        tries.append(what)
        raise {"busy": OSError, "gone": FileNotFoundError, "bug": KeyError}[what](what)

    @workflow
    async def flow() -> list[str]:
        names = []
        for what in ("busy", "gone", "bug"):
            try:
                await read(what)
            except StepFailed as error:
                names.append(error.type_name)
        return names

    async with lab.running(flow) as client:
        assert await (await client.start(flow)).result(timeout=10) == ["OSError", "FileNotFoundError", "KeyError"]
    assert tries == ["busy"] * 5 + ["gone", "bug"]


async def test_retry_later_after_a_while_spends_no_try(lab: Lab) -> None:
    tries: list[int] = []

    @step
    async def limited() -> str:
        tries.append(current_step().try_number)
        if len(tries) < 4:
            raise RetryLater(after=600)
        return "ok"

    @workflow
    async def flow() -> str:
        return await limited()

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        for count in (1, 2, 3):

            async def waits(count: int = count) -> bool:
                return len(tries) == count and bool((await lab.info(handle)).waiting_for)

            await lab.until(waits)
            lab.clock.advance(600)
        assert await handle.result(timeout=10) == "ok"
        info = await handle.info()
    assert tries == [1, 1, 1, 1]
    assert info.attempts == 0


async def test_retry_later_until_a_moment_waits_for_that_moment(lab: Lab) -> None:
    opens_at = lab.clock.now() + timedelta(days=2)
    tries: list[int] = []

    @step
    def shop() -> str:
        tries.append(current_step().try_number)
        if lab.clock.now() < opens_at:
            raise RetryLater(until=opens_at)
        return "open"

    @workflow
    async def flow() -> str:
        return await shop()

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        info = await lab.parked(handle, on="retry")
        assert info.next_run_at is not None
        assert abs((info.next_run_at - opens_at).total_seconds()) < 0.001
        lab.clock.advance(timedelta(days=2))
        assert await handle.result(timeout=10) == "open"
    assert tries == [1, 1]


async def test_retry_later_puts_off_its_own_step_and_no_other(lab: Lab) -> None:
    @step
    async def limited() -> str:
        if (lab.clock.now() - begun).total_seconds() < 600:
            raise RetryLater(after=600)
        return "late"

    @step
    async def quick(n: int) -> int:
        return n

    @workflow
    async def flow() -> list[object]:
        async def others() -> int:
            return await quick(1) + await quick(2)

        return list(await asyncio.gather(limited(), others()))

    begun = lab.clock.now()
    async with lab.running(flow) as client:
        handle = await client.start(flow)

        async def others_are_recorded() -> bool:
            info = await lab.info(handle)
            return bool(info.waiting_for) and len(await lab.store.journal(handle.id)) == 2

        await lab.until(others_are_recorded)
        lab.clock.advance(601)
        assert await handle.result(timeout=10) == ["late", 3]


async def test_a_put_off_step_keeps_its_time_when_the_worker_stops_while_another_step_runs(lab: Lab) -> None:
    tries: list[int] = []
    begun, go = asyncio.Event(), asyncio.Event()

    @step(retry=Retry(tries=2, delay=timedelta(hours=1), jitter=0))
    async def flaky() -> str:
        tries.append(current_step().try_number)
        if len(tries) == 1:
            raise OSError("not yet")
        return "ok"

    @step
    async def slow() -> str:
        begun.set()
        await go.wait()
        return "slow"

    @step
    async def last() -> str:
        return "last"

    @workflow
    async def flow() -> list[str]:
        async def two() -> str:
            return await slow() + await last()  # the second is to begin when the worker gives the workflow back

        return list(await asyncio.gather(flaky(), two()))

    async with lab.client() as client:
        async with lab.working(flow) as worker:
            handle = await client.start(flow)
            await wait_for(begun)
            await turns()
            worker.stop()
            go.set()
        async with lab.working(flow):
            await lab.parked(handle, on="retry")
            assert tries == [1]
            lab.clock.advance(3600)
            assert await handle.result(timeout=10) == ["ok", "slowlast"]
    assert tries == [1, 2]


async def test_each_attempt_of_a_workflow_gives_a_failing_step_all_its_tries_again(lab: Lab) -> None:
    tries: list[int] = []

    @step(retry=Retry(tries=2, delay=timedelta(hours=1), jitter=0))
    async def broken() -> None:
        tries.append(current_step().try_number)
        raise OSError("still")

    @workflow(max_attempts=2)
    async def flow() -> None:
        await broken()

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await lab.parked(handle, on="retry")
        lab.clock.advance(3600)
        await lab.next_attempt(handle, 1)
        await lab.parked(handle, on="retry")
        lab.clock.advance(3600)
        with pytest.raises(WorkflowFailed):
            await handle.result(timeout=10)
    assert tries == [1, 2, 1, 2]


async def test_fail_in_a_step_ends_tries_and_attempts(lab: Lab) -> None:
    tries: list[int] = []

    @step(retry=5)
    async def charge() -> None:
        tries.append(1)
        raise Fail("the card is stolen")

    @workflow
    async def flow() -> None:
        await charge()

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        with pytest.raises(WorkflowFailed, match="the card is stolen") as caught:
            await handle.result(timeout=10)
        assert (await handle.info()).status == "failed"
    assert caught.value.type_name == "Fail"
    assert tries == [1]


async def test_fail_in_a_step_can_be_handled_by_the_workflow(lab: Lab) -> None:
    @step
    async def charge() -> None:
        raise Fail("stolen")

    @workflow
    async def flow() -> str:
        try:
            await charge()
        except Fail as error:
            return f"handled: {error}"
        return ""

    async with lab.running(flow) as client:
        assert await (await client.start(flow)).result(timeout=10) == "handled: stolen"


async def test_a_result_that_json_cannot_carry_fails_the_workflow_at_once_and_names_the_step(lab: Lab) -> None:
    tries: list[int] = []

    @step(retry=5)
    async def charge() -> object:
        tries.append(1)
        return object()

    @workflow
    async def flow() -> None:
        await charge()

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        with pytest.raises(WorkflowFailed, match="charge") as caught:
            await handle.result(timeout=10)
    assert caught.value.type_name == CodecError.__name__
    assert tries == [1]


async def test_an_async_step_that_runs_too_long_is_cancelled_and_tried_again(lab: Lab) -> None:
    tries: list[int] = []
    cancelled: list[int] = []

    @step(timeout=0.02, retry=Retry(tries=2, delay=QUICK))
    async def slow() -> None:
        tries.append(current_step().try_number)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(1)
            raise

    @workflow
    async def flow() -> str:
        try:
            await slow()
        except StepTimedOut as error:
            assert isinstance(error, TimeoutError)
            return error.message
        return ""

    async with lab.running(flow) as client:
        assert "0.02 s" in await (await client.start(flow)).result(timeout=10)
    assert tries == [1, 2]
    assert cancelled == [1, 1]


async def test_a_plain_step_that_runs_too_long_is_given_up_and_told_so(lab: Lab) -> None:
    told: list[bool] = []
    is_over = threading.Event()

    @step(timeout=0.02)
    def slow() -> str:
        told.append(current_step().wait_cancelled(10))
        is_over.set()
        return "dropped"

    @workflow
    async def flow() -> str:
        try:
            return await slow()
        except StepTimedOut as error:
            return error.type_name

    async with lab.running(flow) as client:
        assert await (await client.start(flow)).result(timeout=10) == "StepTimeout"
        await wait_for(is_over)
    assert told == [True]


async def test_a_timeout_error_of_the_body_itself_is_an_ordinary_error(lab: Lab) -> None:
    @step(timeout=30)
    async def ask() -> None:
        raise TimeoutError("the server did not answer")

    @workflow
    async def flow() -> str:
        try:
            await ask()
        except StepTimedOut:
            return "taken for the step's own limit"
        except StepFailed as error:
            return error.type_name
        return ""

    async with lab.running(flow) as client:
        assert await (await client.start(flow)).result(timeout=10) == "TimeoutError"


async def test_a_step_never_starts_a_retry_early(lab: Lab) -> None:
    at: list[float] = []

    @step(retry=Retry(tries=2, delay=0.015, jitter=0))
    async def flaky() -> None:
        at.append(time.monotonic())
        if len(at) == 1:
            raise OSError

    @workflow
    async def flow() -> None:
        await flaky()

    async with lab.running(flow) as client:
        await (await client.start(flow)).result(timeout=10)
    assert at[1] - at[0] >= 0.0149


async def test_the_body_of_an_unwanted_try_never_ends_the_worker(lab: Lab) -> None:
    @step
    async def leave() -> None:
        raise SystemExit(3)

    @step
    def stop() -> None:
        raise StopIteration

    @workflow
    async def flow() -> list[str]:
        names = []
        for call in (leave, stop):
            try:
                await call()
            except StepFailed as error:
                names.append(error.type_name)
        return names

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        assert await handle.result(timeout=10) == ["SystemExit", "RuntimeError"]
        assert keys(await handle.journal()) == ["leave", "stop"]

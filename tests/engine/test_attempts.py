"""Errors that leave a workflow function: attempts, back-off, tentative errors, striking out, siblings, the operator's retry."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from onward import Fail, Retry, StepFailed, WorkflowFailed, WorkflowStuck, current, now, step, workflow
from tests.engine.support import Lab, keys, turns, wait_for


async def test_an_escaping_error_is_one_attempt_with_a_back_off_and_the_last_one_fails_the_workflow(lab: Lab) -> None:
    attempts: list[int] = []

    @workflow(max_attempts=3)
    async def flow() -> None:
        attempts.append(current().attempt)
        raise ValueError("a bug")

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        for count, minutes in ((1, 2), (2, 4)):
            info = await lab.backing_off(handle, count)
            assert info.next_run_at is not None
            assert info.error is not None
            assert info.error.message == "a bug"
            assert info.state.startswith("backing off until")
            backoff = (info.next_run_at - info.updated_at).total_seconds()
            assert backoff == pytest.approx(60 * minutes, abs=0.01)
            lab.clock.advance(60 * minutes)
        with pytest.raises(WorkflowFailed, match="a bug") as caught:
            await handle.result(timeout=10)
        info = await handle.info()
        assert (info.status, info.attempts) == ("failed", 3)
    assert caught.value.type_name == "ValueError"
    assert "raise ValueError" in caught.value.traceback
    assert attempts[0] == 1
    assert attempts[-1] == 3


async def test_the_definitions_back_off_and_the_starts_max_attempts_decide(lab: Lab) -> None:
    @workflow(backoff=Retry(delay=10, factor=3, jitter=0))
    async def flow() -> None:
        raise ValueError

    async with lab.running(flow) as client:
        handle = await client.start(flow.using(max_attempts=3))
        for count, seconds in ((1, 10), (2, 30)):
            info = await lab.backing_off(handle, count)
            assert info.next_run_at is not None
            assert (info.next_run_at - info.updated_at).total_seconds() == pytest.approx(seconds, abs=0.01)
            lab.clock.advance(seconds)
        with pytest.raises(WorkflowFailed):
            await handle.result(timeout=10)


async def test_a_step_whose_error_ended_the_attempt_runs_again_in_the_next(lab: Lab) -> None:
    bodies: list[str] = []

    @step
    async def first() -> int:
        bodies.append("first")
        return 1

    @step
    async def second() -> int:
        bodies.append("second")
        if bodies.count("second") < 3:
            raise OSError("the vendor is down")
        return 2

    @workflow
    async def flow() -> int:
        return await first() + await second()

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await lab.next_attempt(handle, 1)
        await lab.next_attempt(handle, 2)
        assert await handle.result(timeout=10) == 3
        assert [(entry.key, entry.error) for entry in await handle.journal()] == [("first", None), ("second", None)]
    assert bodies == ["first", "second", "second", "second"]


async def test_a_newly_recorded_step_gives_the_workflow_all_its_attempts_again(lab: Lab) -> None:
    failures = {"a": 2, "b": 2}

    @step
    async def work(name: str) -> str:
        if failures[name] > 0:
            failures[name] -= 1
            raise OSError(name)
        return name

    @workflow(max_attempts=3)
    async def flow() -> str:
        return await work("a") + await work("b")

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await lab.next_attempt(handle, 1)
        await lab.next_attempt(handle, 2)
        await lab.next_attempt(handle, 1)
        await lab.next_attempt(handle, 2)
        assert await handle.result(timeout=10) == "ab"


async def test_a_recorded_error_that_escapes_later_is_struck_out_and_its_step_runs_again(lab: Lab) -> None:
    bodies: list[str] = []

    @step
    async def vendor() -> str:
        bodies.append("vendor")
        if bodies.count("vendor") == 1:
            raise OSError("down")
        return "up"

    @step
    async def slow() -> str:
        bodies.append("slow")
        return "slow"

    @workflow
    async def flow() -> list[str]:
        task = asyncio.create_task(vendor())
        await asyncio.sleep(60)
        first = await slow()
        return [first, await task]

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await lab.parked(handle, on="sleep")
        lab.clock.advance(60)
        await lab.next_attempt(handle, 1)
        assert await handle.result(timeout=10) == ["slow", "up"]
        entries = await handle.journal()
    assert bodies == ["vendor", "slow", "vendor"]
    assert [(entry.key, entry.struck) for entry in entries] == [
        ("vendor", True),
        ("sleep", False),
        ("slow", False),
        ("vendor", False),
    ]


async def test_errors_that_are_recorded_and_struck_out_again_and_again_use_up_the_attempts(lab: Lab) -> None:
    bodies: list[str] = []

    @step
    async def broken(name: str) -> None:
        bodies.append(name)
        raise OSError(name)

    @workflow(max_attempts=3)
    async def flow() -> None:
        errors = await asyncio.gather(broken("a"), broken("b"), return_exceptions=True)
        raise ExceptionGroup("both", [error for error in errors if isinstance(error, Exception)])

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await lab.next_attempt(handle, 1)
        await lab.next_attempt(handle, 2)
        with pytest.raises(WorkflowFailed, match="both"):
            await handle.result(timeout=10)
    assert sorted(bodies) == ["a", "a", "a", "b", "b", "b"]


async def test_an_error_that_cleanup_depends_on_fails_the_workflow_at_once(lab: Lab) -> None:
    bodies: list[str] = []

    @step
    async def charge() -> None:
        bodies.append("charge")
        raise OSError("down")

    @step
    async def refund() -> None:
        bodies.append("refund")

    @workflow
    async def flow() -> None:
        try:
            await charge()
        except StepFailed:
            await refund()
            raise

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        with pytest.raises(WorkflowFailed, match="down"):
            await handle.result(timeout=10)
        assert keys(await handle.journal()) == ["charge", "refund"]
        assert bodies == ["charge", "refund"]
        assert (await handle.info()).attempts == 1


async def test_an_operators_retry_truncates_before_the_error_that_forced_the_failure(lab: Lab) -> None:
    bodies: list[str] = []

    @step
    async def prepare() -> None:
        bodies.append("prepare")

    @step
    async def charge() -> str:
        bodies.append("charge")
        if bodies.count("charge") == 1:
            raise OSError("down")
        return "charged"

    @step
    async def refund() -> None:
        bodies.append("refund")

    @workflow
    async def flow() -> str:
        await prepare()
        try:
            return await charge()
        except StepFailed:
            await refund()
            raise

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await lab.in_status(handle, "failed")
        assert await handle.retry()
        assert await handle.result(timeout=10) == "charged"
        entries = await handle.journal()
        assert not await handle.retry()
    assert bodies == ["prepare", "charge", "refund", "charge"]
    assert [(entry.seq, entry.key, entry.struck) for entry in entries] == [
        (1, "prepare", False),
        (2, "charge", True),
        (3, "refund", True),
        (4, "charge", False),
    ]


async def test_an_operators_retry_of_a_workflow_that_backs_off_runs_it_now(lab: Lab) -> None:
    bodies: list[str] = []

    @step
    async def flaky() -> str:
        bodies.append("flaky")
        if len(bodies) == 1:
            raise OSError
        return "ok"

    @workflow
    async def flow() -> str:
        return await flaky()

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await lab.backing_off(handle)
        assert await handle.retry()
        assert await handle.result(timeout=10) == "ok"


async def test_siblings_in_flight_when_an_error_escapes_are_recorded_and_do_not_run_again(lab: Lab) -> None:
    bodies: list[str] = []
    begun, go = asyncio.Event(), asyncio.Event()

    @step
    async def sibling() -> str:
        bodies.append("sibling")
        begun.set()
        await go.wait()
        return "done"

    @step
    async def broken() -> str:
        bodies.append("broken")
        await begun.wait()
        if bodies.count("broken") == 1:
            raise OSError
        return "mended"

    @workflow
    async def flow() -> list[str]:
        return list(await asyncio.gather(sibling(), broken()))

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await wait_for(begun)
        await turns()
        go.set()
        await lab.next_attempt(handle, 1)
        assert await handle.result(timeout=10) == ["done", "mended"]
        assert keys(await handle.journal()) == ["sibling", "broken"]
    assert sorted(bodies) == ["broken", "broken", "sibling"]


async def test_siblings_in_flight_when_the_last_attempt_fails_are_recorded_too(lab: Lab) -> None:
    bodies: list[str] = []
    begun, go = asyncio.Event(), asyncio.Event()

    @step
    async def sibling() -> str:
        bodies.append("sibling")
        begun.set()
        await go.wait()
        return "done"

    @step
    async def broken() -> str:
        bodies.append("broken")
        await begun.wait()
        if bodies.count("broken") == 1:
            raise OSError
        return "mended"

    @workflow(max_attempts=1)
    async def flow() -> list[str]:
        return list(await asyncio.gather(sibling(), broken()))

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await wait_for(begun)
        await turns()
        go.set()
        with pytest.raises(WorkflowFailed):
            await handle.result(timeout=10)
        assert keys(await handle.journal()) == ["sibling"]
        assert await handle.retry()
        assert await handle.result(timeout=10) == ["done", "mended"]
    assert sorted(bodies) == ["broken", "broken", "sibling"]


async def test_fail_in_a_workflow_fails_it_at_once(lab: Lab) -> None:
    attempts: list[int] = []

    @workflow
    async def flow() -> None:
        attempts.append(1)
        raise Fail("no such customer")

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        with pytest.raises(WorkflowFailed, match="no such customer"):
            await handle.result(timeout=10)
        assert (await handle.info()).attempts == 1
    assert attempts == [1] or lab.mode.checks_replay


class NoStock(Exception):
    """An error with data."""


async def test_a_workflows_listed_error_comes_back_as_itself(lab: Lab) -> None:
    @workflow(raises=NoStock, max_attempts=1)
    async def flow() -> None:
        raise NoStock("tea", 3)

    async with lab.running(flow) as client:
        with pytest.raises(NoStock) as caught:
            await (await client.start(flow)).result(timeout=10)
    assert caught.value.args == ("tea", 3)


async def test_the_back_off_moves_pending_timers_so_that_no_timeout_is_eaten_by_it(lab: Lab) -> None:
    tries: list[int] = []

    @step
    async def flaky() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise OSError
        return "ok"

    @workflow
    async def flow() -> str:
        async with asyncio.timeout(60):
            return await flaky()

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        for count, minutes in ((1, 2), (2, 4)):
            await lab.backing_off(handle, count)
            lab.clock.advance(60 * minutes)
        assert await handle.result(timeout=10) == "ok"
        entries = await handle.journal()
    assert [(entry.key, entry.kind) for entry in entries] == [
        ("attempt", "attempt"),
        ("attempt", "attempt"),
        ("flaky", "step"),
    ]
    assert [entry.result for entry in entries[:2]] == [120_000_000, 240_000_000]


async def test_a_bug_that_is_mended_by_a_deploy_has_eaten_no_timeout(lab: Lab) -> None:
    @step
    async def work(n: int) -> int:
        return n

    @workflow(name="flow")
    async def broken() -> int:
        async with asyncio.timeout(60):
            await work(1)
            raise KeyError("a bug")

    @workflow(name="flow")
    async def mended() -> int:
        async with asyncio.timeout(60):
            return await work(1) + await work(2)

    async with lab.client() as client:
        handle = await client.start(mended)
        async with lab.working(broken):
            for count, minutes in ((1, 2), (2, 4)):
                await lab.backing_off(handle, count)
                lab.clock.advance(60 * minutes)
            await lab.backing_off(handle, 3)
        lab.clock.advance(8 * 60)
        async with lab.working(mended):
            assert await handle.result(timeout=5) == 3


async def test_an_attempt_without_pending_timers_writes_no_attempt_entry(lab: Lab) -> None:
    @step
    async def work() -> None:
        return

    @workflow(max_attempts=2)
    async def flow() -> None:
        await work()
        raise OSError

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await lab.next_attempt(handle, 1)
        await lab.in_status(handle, "failed")
        assert keys(await handle.journal()) == ["work"]


async def test_the_worker_logs_the_error_of_each_failed_attempt_and_of_the_last_one(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    @workflow(max_attempts=2, backoff=Retry(delay=0.01))
    async def flow() -> None:
        raise ValueError("card\ndeclined")

    async with lab.running(flow) as client:
        with pytest.raises(WorkflowFailed):
            await (await client.start(flow.using(id="f"))).result(timeout=10)
    said = [
        (record.levelname, record.getMessage())
        for record in caplog.records
        if "failed in attempt" in record.getMessage()
    ]
    assert said == [
        ("WARNING", "workflow f failed in attempt 1 of 2 and is tried again in 0 s: ValueError: card declined"),
        ("ERROR", "workflow f failed in attempt 2 of 2 and is not tried again: ValueError: card declined"),
    ]


async def test_a_result_that_is_a_call_not_awaited_is_refused_as_that(lab: Lab) -> None:
    @step
    async def work() -> int:
        return 1

    @workflow
    async def flow():  # type: ignore[no-untyped-def]  # as it is written in haste
        return [work()]

    async with lab.running(flow) as client:
        with pytest.raises(WorkflowFailed, match="<call of 'work'> was not awaited; write `await` before the call"):
            await (await client.start(flow)).result(timeout=10)


async def test_a_deadlocked_workflow_ends_with_an_error_that_names_the_line(lab: Lab) -> None:
    @workflow(max_attempts=1)
    async def flow() -> None:
        await asyncio.Event().wait()  # nobody can ever set it

    async with lab.running(flow) as client:
        with pytest.raises(WorkflowFailed, match=r"test_attempts\.py:\d+") as caught:
            await (await client.start(flow)).result(timeout=10)
    assert caught.value.type_name == WorkflowStuck.__name__


async def test_workflow_time_is_that_of_the_last_entry(lab: Lab) -> None:
    @workflow
    async def flow() -> tuple[float, float]:
        begun = now()
        assert now() == begun
        await asyncio.sleep(3600)
        return begun.timestamp(), (now() - begun).total_seconds()

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        info = await lab.parked(handle)
        lab.clock.advance(timedelta(hours=2))
        begun, passed = await handle.result(timeout=10)
        assert info.started_at is not None
        assert begun == pytest.approx(info.started_at.timestamp(), abs=1e-5)
    assert 7199 < passed < 7210

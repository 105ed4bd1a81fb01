"""Time stands still while anything can run, and leaps over everything that is waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

import onward
from onward import Retry, WorkflowFailed, WorkflowTimedOut, step, workflow
from onward.testing import Environment
from tests.testing import flows

Make = Callable[..., Environment]
T0 = datetime(2030, 1, 1, tzinfo=UTC)


async def test_a_workflow_that_sleeps_for_three_days_returns_at_once(environment: Make) -> None:
    began = time.monotonic()
    async with environment(now=T0) as env:
        assert await env.run(flows.onboarding, "ada") == ["welcome to ada", "follow-up to ada"]
        assert env.now == T0 + timedelta(days=3)
        assert [call.at for call in env.calls(flows.send)] == [T0, T0 + timedelta(days=3)]
    assert time.monotonic() - began < 3600


async def test_now_in_a_workflow_is_the_time_that_has_been_leapt_to(environment: Make) -> None:
    async with environment(now=T0) as env:
        assert await env.run(flows.clock) == [T0, T0 + timedelta(hours=1), T0 + timedelta(days=1)]


async def test_the_time_begins_with_the_machines_and_in_whole_seconds() -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    async with Environment() as env:
        assert before <= env.now <= datetime.now(UTC)
        assert env.now.microsecond == 0


async def test_back_offs_of_steps_are_leapt_over_and_last_as_long_as_they_should(environment: Make) -> None:
    async with environment(now=T0) as env:
        env.stub(flows.charge, side_effect=[OSError("away"), OSError("still away"), "ok"])
        assert await env.run(flows.purchase, 5) == "ok; welcome to shop"
        assert [call.at - T0 for call in env.calls(flows.charge)] == [
            timedelta(0), timedelta(minutes=1), timedelta(minutes=3),
        ]  # fmt: skip


async def test_back_offs_of_workflows_and_delayed_starts_are_leapt_over(environment: Make) -> None:
    @workflow(max_attempts=3, backoff=Retry(delay=1200, jitter=0))
    async def failing() -> None:
        raise ValueError("no")

    async with environment(now=T0) as env:
        with pytest.raises(WorkflowFailed, match="ValueError: no"):
            await env.run(failing.using(delay=timedelta(days=1)))
        assert env.now == T0 + timedelta(days=1, hours=1)
        assert (await env.client.handle("failing-1").info()).attempts == 3


async def test_time_outs_of_waits_steps_and_workflows_pass(environment: Make) -> None:
    @workflow
    async def endless() -> None:
        while True:
            await onward.sleep(3600)

    async with environment(now=T0) as env:
        assert await env.run(flows.approval, 30) == "nobody answered"
        assert env.now == T0 + timedelta(days=30)
        with pytest.raises(WorkflowTimedOut):
            await env.run(endless.using(timeout=timedelta(days=2)))
        assert env.now == T0 + timedelta(days=32)


async def test_a_step_that_takes_long_is_timed_out_around_its_await(environment: Make) -> None:
    """The stub sleeps in the environment's time, so a time-out around it can pass; the step's own limit holds as well."""
    async with environment(now=T0) as env:
        with env.stub(flows.slow, returns=1, takes=5):
            assert await env.run(flows.patient, 1) == "got 1"
            assert env.now == T0 + timedelta(seconds=5)
        with env.stub(flows.slow, returns=1, takes=timedelta(hours=1)):
            assert await env.run(flows.patient, 1) == "timed out"
        assert env.now == T0 + timedelta(seconds=15)
        [entry] = await env.client.handle("patient-2").journal()
        assert entry.error is not None and entry.error.message == "ran longer than its timeout of 10 s"

        @step
        async def unlimited() -> int:
            return 1

        @workflow
        async def impatient() -> str:
            try:
                async with asyncio.timeout(60):
                    return f"got {await unlimited()}"
            except TimeoutError:
                return "timed out"

        env.stub(unlimited, returns=1, takes=timedelta(hours=1))
        assert await env.run(impatient) == "timed out"
        assert env.now == T0 + timedelta(seconds=75)


async def test_time_does_not_move_while_a_body_runs(environment: Make) -> None:
    release = asyncio.Event()
    seen: list[datetime] = []

    @step
    async def gated() -> None:
        await release.wait()

    @step
    async def stamp() -> None:
        seen.append(env.now)

    @workflow
    async def flow() -> None:
        async with asyncio.timeout(60):
            await gated()
        await stamp()

    async with environment(now=T0) as env:
        running = asyncio.create_task(env.run(flow))
        while not env.calls(gated):
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        release.set()
        await running
        assert seen == [T0]


async def test_time_moves_only_while_something_is_waited_for(environment: Make) -> None:
    async with environment(now=T0) as env:
        handle = await env.start(flows.onboarding, "ada")
        await env.settle()
        assert env.now == T0
        assert (await handle.info()).state == "sleeping until 2030-01-04 00:00:00 UTC"
        assert await handle.result() == ["welcome to ada", "follow-up to ada"]


async def test_advance_lets_everything_happen_that_is_due_on_the_way(environment: Make) -> None:
    async with environment(now=T0) as env:
        handle = await env.start(flows.onboarding, "ada")
        await env.advance(timedelta(days=2))
        assert (env.now, await handle.status()) == (T0 + timedelta(days=2), "pending")
        await env.advance(86_400 + 1)
        assert (env.now, await handle.status()) == (T0 + timedelta(days=3, seconds=1), "completed")
        assert env.calls(flows.send)[1].at == T0 + timedelta(days=3)
        await env.advance(0)


async def test_an_environment_without_workflows_has_a_time_too() -> None:
    async with Environment(now=T0) as env:
        await env.settle()
        await env.advance(60)
        assert env.now == T0 + timedelta(minutes=1)


async def test_result_with_a_timeout_lets_so_much_of_this_time_pass(environment: Make) -> None:
    async with environment(now=T0) as env:
        handle = await env.start(flows.onboarding, "ada")
        with pytest.raises(onward.ResultTimeout):
            await handle.result(timeout=timedelta(days=1))
        assert env.now == T0 + timedelta(days=1)
        assert len(await handle.result(timeout=timedelta(days=2))) == 2


async def test_several_results_can_be_waited_for_at_once(environment: Make) -> None:
    async with environment(now=T0) as env:
        handles = [await env.start(flows.onboarding, name) for name in ("ada", "bob", "eve")]
        assert len(await asyncio.gather(*(handle.result() for handle in handles))) == 3
        assert env.now == T0 + timedelta(days=3)
        assert [handle.id for handle in handles] == ["onboarding-1", "onboarding-2", "onboarding-3"]


async def test_a_parent_of_several_children_takes_no_time(environment: Make) -> None:
    async with environment(now=T0) as env:
        assert await env.run(flows.parent, 3) == [f"charged {number}; welcome to shop" for number in range(3)]
        assert env.now == T0


async def test_children_in_queues_of_their_own_are_run(environment: Make) -> None:
    @workflow(queue="mail")
    async def mailer() -> str:
        return "mailed"

    @workflow
    async def caller() -> list[str]:
        return [await mailer(), await mailer.using(queue="bulk")()]

    async with environment(workflows=[mailer, caller]) as env:
        assert await env.run(caller) == ["mailed", "mailed"]
        await env.kill()
        assert await env.run(caller.using(queue="elsewhere")) == ["mailed", "mailed"]


async def test_the_same_seed_gives_the_same_random_numbers_and_jitter(environment: Make) -> None:
    @workflow
    async def flow() -> list[object]:
        return [onward.random(), str(onward.uuid4())]

    @workflow(max_attempts=2, backoff=Retry(delay=100, jitter=1))
    async def failing() -> None:
        raise ValueError("no")

    async def backed_off(seed: int) -> timedelta:
        async with Environment(seed=seed, now=T0) as env:
            with pytest.raises(WorkflowFailed):
                await env.run(failing)
            return env.now - T0

    assert await backed_off(1) == await backed_off(1) != await backed_off(2)
    async with environment(seed=1) as env:
        first = [await env.run(flow), await env.run(flow)]
    assert first[0] != first[1]
    async with Environment(seed=1) as env:
        assert [await env.run(flow), await env.run(flow)] == first
    async with Environment(seed=2) as env:
        assert await env.run(flow) != first[0]

"""Workers, and clients, die where a test says; what is recorded stays, and another worker goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from onward import ConfigurationError, UsageError, WorkflowFailed, step, workflow
from onward.testing import Crashed, Environment
from tests.testing import flows

Make = Callable[..., Environment]
T0 = datetime(2030, 1, 1, tzinfo=UTC)


def keys(env: Environment) -> list[str]:
    """The keys of the bodies that began, in order."""
    return [call.key for call in env.calls()]


async def test_after_a_crash_before_the_body_it_runs_once(environment: Make) -> None:
    async with environment() as env:
        crash = env.crash_before(flows.charge)
        assert await env.run(flows.purchase, 5) == "charged 5; welcome to shop"
        assert (crash.happened, keys(env)) == (1, ["charge", "send"])


async def test_after_a_crash_between_body_and_record_the_body_runs_again_with_its_idempotency_key(
    environment: Make,
) -> None:
    async with environment() as env:
        crash = env.crash_during(flows.charge)
        assert await env.run(flows.purchase, 5) == "charged 5; welcome to shop"
        assert (crash.happened, keys(env)) == (1, ["charge", "charge", "send"])
        assert len({call.idempotency_key for call in env.calls(flows.charge)}) == 1


async def test_after_a_crash_after_the_record_the_body_does_not_run_again(environment: Make) -> None:
    async with environment() as env:
        crash = env.crash_after(flows.charge)
        assert await env.run(flows.purchase, 5) == "charged 5; welcome to shop"
        assert (crash.happened, keys(env)) == (1, ["charge", "send"])
        assert (await env.client.handle("purchase-1").info()).crashes == 0, "the step recorded later is progress"


async def test_a_crash_takes_no_time_and_does_not_start_a_sleep_anew(environment: Make) -> None:
    async with environment(now=T0) as env:
        env.crash_after("sleep")
        env.crash_during("send#2")
        await env.run(flows.onboarding, "ada")
        assert env.now == T0 + timedelta(days=3)
        assert keys(env) == ["send", "send#2", "send#2"]


async def test_a_crash_can_be_planned_for_the_nth_time_and_for_several_times(environment: Make) -> None:
    async with environment() as env:
        env.crash_during(flows.send, number=2)
        await env.run(flows.onboarding, "ada")
        assert keys(env) == ["send", "send#2", "send#2"]
        twice = env.crash_during("charge", times=2)
        await env.run(flows.purchase, 1)
        assert twice.happened == 2
        assert keys(env)[3:] == ["charge", "charge", "charge", "send"]


async def test_stubs_crash_like_bodies(environment: Make) -> None:
    async with environment() as env:
        stub = env.stub(flows.charge, side_effect=["lost", "kept"])
        env.crash_during(flows.charge)
        assert (await env.run(flows.purchase, 5)).startswith("kept")
        assert len(stub.calls) == 2


async def test_until_stops_at_the_crash_and_the_next_call_goes_on(environment: Make) -> None:
    async with environment() as env:
        crash = env.crash_during(flows.charge)
        handle = await env.start(flows.purchase, 5)
        await env.until(crash)
        info = await handle.info()
        assert (info.status, info.step, await handle.journal()) == ("running", None, [])
        assert keys(env) == ["charge"]
        assert await handle.result() == "charged 5; welcome to shop"


async def test_kill_is_a_crash_at_once(environment: Make) -> None:
    async with environment() as env:
        handle = await env.start(flows.onboarding, "ada")
        await env.settle()
        await env.kill()
        await env.kill()
        assert len(await handle.result()) == 2
        assert keys(env) == ["send", "send#2"]


async def test_no_line_of_a_waiting_body_runs_after_its_workers_death(environment: Make) -> None:
    """Neither its `except` nor its `finally`: a killed process has none. They run when the environment ends."""
    lines: list[str] = []

    @step
    async def body() -> int:
        lines.append("begins")
        if len(lines) > 1:
            return len(lines)
        try:
            await asyncio.Event().wait()
        finally:
            lines.append("ends")
        raise AssertionError

    @workflow
    async def flow() -> int:
        return await body()

    async with environment() as env:
        handle = await env.start(flow)
        while not lines:
            await asyncio.sleep(0)
        await env.kill()
        assert await handle.result() == 2
        assert lines == ["begins", "begins"]
    assert lines == ["begins", "begins", "ends"]


async def test_nothing_that_a_thread_returns_after_its_workers_death_is_recorded(environment: Make) -> None:
    release, begun = threading.Event(), threading.Semaphore(0)
    results = iter(["of the dead", "of the living"])

    @step
    def body() -> str:
        result = next(results)
        begun.release()
        if result == "of the dead":
            assert release.wait(30)
        return result

    @workflow
    async def flow() -> str:
        return await body()

    async with environment() as env:
        handle = await env.start(flow)
        assert await asyncio.to_thread(begun.acquire, True, 30)
        await env.kill()
        assert await handle.result() == "of the living"
        release.set()


async def test_a_body_can_be_the_death_of_its_worker_until_the_workflow_fails_alone(environment: Make) -> None:
    """A poison workflow: after four crashes, the last two alone, it is failed; its neighbour is not."""
    async with environment() as env:
        neighbour = await env.start(flows.onboarding, "ada")
        env.crash_during(flows.charge, times=4)
        with pytest.raises(WorkflowFailed, match="WorkflowCrashed"):
            await env.run(flows.purchase, 5)
        assert len(await neighbour.result()) == 2


async def test_worker_after_worker_dies_and_everything_is_finished_all_the_same(environment: Make) -> None:
    """Each dies a dozen and a half points after the one before it. Three of them: a fourth death without a recorded step in
    between would be the workflow's own."""
    async with environment() as env:
        crashes = env.crash_at("*@18", times=3)
        handles = [await env.start(flows.onboarding, name) for name in ("ada", "bob", "eve")]
        for handle, name in zip(handles, ("ada", "bob", "eve"), strict=True):
            assert await handle.result() == [f"welcome to {name}", f"follow-up to {name}"]
        while not crashes.is_over:
            await env.run(flows.purchase, 1)


async def test_a_stub_or_body_that_raises_crashed_is_the_death_of_its_worker_there_and_then(environment: Make) -> None:
    sent: list[str] = []

    @step
    def send_all(names: list[str]) -> int:
        for name in names:
            sent.append(name)
            if sent == ["a", "b"]:
                raise Crashed
        return len(names)

    @workflow
    async def flow() -> int:
        return await send_all(["a", "b", "c"])

    async with environment() as env:
        assert await env.run(flow) == 3
        assert sent == ["a", "b", "a", "b", "c"]
        env.stub(flows.charge, side_effect=[Crashed(), "ok"])
        assert (await env.run(flows.purchase, 5)).startswith("ok")
        env.stub(flows.charge, side_effect=lambda amount: env.kill())
        with pytest.raises(WorkflowFailed, match="to let the worker die in the middle of a body, raise Crashed"):
            await env.run(flows.purchase.using(max_attempts=1), 5)


@pytest.mark.parametrize(
    ("point", "is_there"),
    [("flush:before", False), ("write:before-commit", False), ("write:after-commit", True), ("flush:after", True)],
)
async def test_a_client_that_dies_in_a_start_has_started_it_or_not(
    environment: Make, point: str, is_there: bool
) -> None:
    """The same start again gives the one workflow, whatever the dead client lived to see."""
    async with environment() as env:
        env.crash_client_at(point)
        with pytest.raises(Crashed, match=f"crashed at {point}"):
            await env.start(flows.purchase.using(id="order-1"), 5)
        found = await env.client.list()
        assert [info.id for info in found] == (["order-1"] if is_there else [])
        handle = await env.start(flows.purchase.using(id="order-1"), 5)
        assert handle.created is not is_there
        assert await handle.result() == "charged 5; welcome to shop"
        assert keys(env) == ["charge", "send"]


@pytest.mark.parametrize("write", ["write", "claim"])
async def test_a_lost_reply_changes_nothing(environment: Make, write: str) -> None:
    async with environment() as env:
        lost = env.lose_reply(write, times=2)
        assert await env.run(flows.purchase, 5) == "charged 5; welcome to shop"
        assert lost.happened == 2
        assert keys(env) == ["charge", "send"]


async def test_a_restart_is_graceful_and_counts_as_nothing(environment: Make) -> None:
    async with environment() as env:
        handle = await env.start(flows.onboarding, "ada")
        await env.settle()
        await env.restart()
        assert len(await handle.result()) == 2
        assert (await handle.info()).crashes == 0


async def test_a_crash_that_never_happens_fails_the_test(environment: Make) -> None:
    with pytest.raises(
        UsageError, match=r"crash after send: 0 of 1 times; crash of the client at flush:after@2: 0 of 1"
    ):
        async with environment() as env:
            env.crash_client_at("flush:after@2")
            env.crash_after(flows.send)
            await env.start(flows.approval, 1)


async def test_the_error_of_the_test_itself_is_what_is_seen(environment: Make) -> None:
    with pytest.raises(ZeroDivisionError):
        async with environment() as env:
            env.crash_after(flows.send)
            _ = 1 / 0


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (lambda env: env.crash_at("flush:befor"), r"there is no crash point 'flush:befor'; there are body:before, "),
        (lambda env: env.crash_at("flush:before@x"), "after the @ stands the number of the passing"),
        (lambda env: env.crash_at("flush:before@2", number=3), "leave number= away"),
        (lambda env: env.crash_at("*", number=0), "number must be a whole number of at least 1, not 0"),
        (lambda env: env.crash_after(flows.send, times=0), "times must be a whole number of at least 1, not 0"),
        (lambda env: env.crash_client_at("claim:before-commit"), "there is no crash point 'claim:before-commit'"),
        (lambda env: env.crash_after(flows.purchase), "'purchase' is a workflow; name one of its steps"),
        (lambda env: env.crash_before(5), "takes a step, a workflow, or a function"),
        (lambda env: env.lose_reply("body"), "there is no write 'body'"),
        (lambda env: env.crash_during(step(transactional=True)(lambda connection: 1)), "are one commit"),
    ],
)
async def test_a_plan_that_cannot_be_is_refused(plan: Callable[[Environment], object], says: str) -> None:
    async with Environment() as env:
        with pytest.raises(ConfigurationError, match=says):
            plan(env)

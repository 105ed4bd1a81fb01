"""`crash_everywhere`: whatever a crash changes is found, with the point to repeat it; and the report says what ran twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import onward
from onward import ConfigurationError, UsageError, WorkflowFailed, step, workflow
from onward.testing import Environment, OutcomeChanged
from tests.testing import flows

Make = Callable[..., Environment]


async def test_a_workflow_that_is_as_it_should_be_survives_every_crash(environment: Make) -> None:
    async with environment() as env:
        report = await env.crash_everywhere(flows.purchase, 5)
        assert report.value == "charged 5; welcome to shop"
        assert {"body:before", "body:after", "write:before-commit", "claim:after-commit"} <= set(report.points)
        assert set(report.repeated) == {"charge", "send"}
        assert [point.partition("@")[0] for point in report.repeated["charge"]] == [
            "body:after", "flush:before", "write:before-commit",
        ]  # fmt: skip
        assert env.calls() == []


async def test_a_scenario_sends_signals_and_decides_what_is_compared(environment: Make) -> None:
    async def scenario(env: Environment) -> tuple[str, list[str]]:
        handle = await env.start(flows.approval, None)
        await env.signal(handle, flows.approved, True)
        return await handle.result(), await env.run(flows.onboarding, "ada")

    async with environment() as env:
        env.stub(flows.send, returns="sent")
        report = await env.crash_everywhere(scenario)
        assert report.value == ("yes", ["sent", "sent"])


async def test_random_numbers_and_ids_are_the_same_in_each_run(environment: Make) -> None:
    @workflow
    async def flow() -> list[str]:
        return [str(onward.uuid4()), onward.current().id, await flows.send(str(onward.random())), str(onward.now())]

    async with environment() as env:
        await env.crash_everywhere(flow.bind())


async def test_a_failing_workflow_fails_alike(environment: Make) -> None:
    @workflow(max_attempts=2)
    async def flow() -> str:
        await flows.send("ada")
        raise ValueError("no")

    async with environment() as env:
        report = await env.crash_everywhere(flow)
        assert report.value is None


async def test_what_a_crash_changes_is_found_and_can_be_repeated(environment: Make) -> None:
    """A step that counts in memory is no step to be run again."""
    count = 0

    @step
    async def count_up() -> int:
        nonlocal count
        count += 1
        return count

    @workflow
    async def flow() -> int:
        return await count_up()

    async def scenario(env: Environment) -> int:
        nonlocal count
        count = 0
        return await env.run(flow)

    async with environment() as env:
        with pytest.raises(
            OutcomeChanged, match=r"a crash at body:after changes what comes out: it gave 2, undisturbed 1"
        ) as changed:
            await env.crash_everywhere(scenario)
    async with environment() as env:
        env.crash_at("*", number=changed.value.number)
        assert await scenario(env) == 2


async def test_an_outcome_beside_the_value_counts_too(environment: Make) -> None:
    """Here a child sees how often it ran; the parent does not tell."""
    tries: list[int] = []

    @step
    async def look() -> int:
        tries.append(1)
        return len(tries)

    @workflow
    async def child() -> int:
        return await look()

    @workflow
    async def parent() -> None:
        await child()

    async def scenario(env: Environment) -> None:
        tries.clear()
        await env.run(parent)

    async with environment(workflows=[child, parent]) as env:
        with pytest.raises(OutcomeChanged, match=r"workflow 'parent-1/child' is .*'result': '2'"):
            await env.crash_everywhere(scenario)


async def test_a_test_that_cannot_go_on_says_so_at_once(environment: Make) -> None:
    async with environment() as env:
        with pytest.raises(onward.testing.Deadlock):
            await env.crash_everywhere(flows.approval, None)
        with pytest.raises(UsageError, match="passed no crash point"):

            async def nothing(env: Environment) -> None: ...

            await env.crash_everywhere(nothing)


async def test_it_needs_databases_that_it_can_make() -> None:
    env = Environment(url="postgresql://localhost/nothing")
    with pytest.raises(ConfigurationError, match="in memory or SQLite, not postgresql"):
        await env.crash_everywhere(flows.purchase, 1)


async def test_errors_of_the_scenario_are_part_of_what_comes_out(environment: Make) -> None:
    @workflow(max_attempts=1)
    async def flow() -> None:
        raise ValueError("no")

    async def scenario(env: Environment) -> str:
        with pytest.raises(WorkflowFailed):
            await env.run(flow)
        raise LookupError("mine")

    async with environment() as env:
        assert (await env.crash_everywhere(scenario)).value is None

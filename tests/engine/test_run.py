"""`run`: start or resume in this process, errors at once, the workflow left pending."""

from __future__ import annotations

import asyncio
import sys

import pytest

import onward
from onward import Client, StepFailed, WorkflowFailed, WorkflowIdConflict
from tests.engine import flows
from tests.engine.support import Lab


@pytest.fixture(autouse=True)
def fresh() -> None:
    """Nothing has run, nothing is broken."""
    flows.bodies.clear()
    flows.broken.clear()


async def test_run_starts_works_and_returns_the_result_with_its_children(plain_lab: Lab) -> None:
    async with plain_lab.client() as client:
        assert await client.run(flows.pipeline, "a", "B") == "AbC"
    assert flows.bodies == ["a", "B", "c"]


async def test_run_raises_the_first_escaping_error_at_once_and_running_again_resumes(plain_lab: Lab) -> None:
    flows.broken.add("a")
    flow = flows.pipeline.using(id="p")
    async with plain_lab.client() as client:
        for _ in range(4):  # more often than the workflow has attempts
            with pytest.raises(StepFailed, match="a is down"):
                await client.run(flow, "a", "B")
            assert (await client.handle("p").info()).status == "pending"
        flows.broken.clear()
        assert await client.run(flow, "a", "B") == "AbC"
    assert flows.bodies == ["a"] * 5 + ["B", "c"]


async def test_run_raises_an_error_of_a_child_too_instead_of_waiting_for_its_back_off(plain_lab: Lab) -> None:
    flows.broken.add("c")
    flow = flows.pipeline.using(id="p", queue="special")
    async with plain_lab.client() as client:
        with pytest.raises(StepFailed, match="c is down"):
            await client.run(flow, "a", "B")
        flows.broken.clear()
        assert await client.run(flow, "a", "B") == "AbC"
    assert flows.bodies == ["a", "B", "c", "c"]


async def test_run_leaves_a_childs_last_error_to_its_parent(plain_lab: Lab) -> None:
    async with plain_lab.client() as client:
        assert await client.run(flows.careful) == "handled Fail"


async def test_run_goes_on_at_the_first_step_that_is_not_recorded(plain_lab: Lab) -> None:
    flows.broken.add("b")
    flow = flows.pipeline.using(id="p")
    async with plain_lab.client() as client:
        with pytest.raises(StepFailed):
            await client.run(onward.workflow(name="pipeline")(two_steps).using(id="p"), "a", "b")
        flows.broken.clear()
        assert await client.run(onward.workflow(name="pipeline")(two_steps).using(id="p"), "a", "b") == "AB"
        assert flow.options.id == "p"
    assert flows.bodies == ["a", "b", "b"]


async def two_steps(first: str, second: str) -> str:
    """A workflow function of this module."""
    return await flows.fetch(first) + await flows.fetch(second)


async def test_run_of_a_finished_workflow_returns_its_result_without_working(plain_lab: Lab) -> None:
    flow = flows.echo.using(id="e")
    async with plain_lab.client() as client:
        assert await client.run(flow, 3) == 3
        assert await client.run(flow, 3) == 3
        with pytest.raises(WorkflowIdConflict):
            await client.run(flow, 4)


async def test_run_waits_in_sleeps_and_put_off_steps(plain_lab: Lab) -> None:
    async with plain_lab.client() as client:
        assert await client.run(flows.patient) == "ok"
    assert flows.bodies == ["limited", "limited"]


async def test_run_of_a_workflow_that_a_live_worker_has_waits_for_that_worker(plain_lab: Lab) -> None:
    begun, finish = asyncio.Event(), asyncio.Event()
    bodies: list[int] = []

    @onward.step
    async def work() -> str:
        bodies.append(1)
        begun.set()
        await finish.wait()
        return "done"

    @onward.workflow
    async def flow() -> str:
        return await work()

    async with plain_lab.running(flow) as client:
        await client.start(flow.using(id="w"))
        await begun.wait()
        running = asyncio.create_task(client.run(flow.using(id="w")))
        await asyncio.sleep(0.02)
        assert not running.done()
        finish.set()
        assert await running == "done"
    assert bodies == [1]


async def test_run_takes_no_other_workflow_of_the_database(plain_lab: Lab) -> None:
    async with plain_lab.client() as client:
        other = await client.start(flows.echo, 1)
        assert await client.run(flows.echo, 2) == 2
        assert await other.status() == "pending"


async def test_run_fails_for_good_on_fail(plain_lab: Lab) -> None:
    async with plain_lab.client() as client:
        with pytest.raises(onward.Fail, match="no way"):
            await client.run(flows.hopeless.using(id="h"))
        with pytest.raises(WorkflowFailed, match="no way"):
            await client.run(flows.hopeless.using(id="h"))


def test_a_blocking_run_works_with_and_without_a_running_loop(sqlite_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONWARD_DATABASE_URL", sqlite_lab.url)
    assert onward.run(flows.echo, 1) == 1

    async def notebook() -> int:
        return int(onward.run(flows.echo.using(id="n"), 2))

    assert asyncio.run(notebook()) == 2
    with Client() as client:
        assert client.run(flows.pipeline, "a", "B") == "AbC"


def test_a_blocking_run_raises_an_exit_of_the_workflow_in_the_callers_thread(
    sqlite_lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    @onward.workflow
    async def leave() -> None:
        sys.exit(3)

    with Client(sqlite_lab.url) as client:
        with pytest.raises(SystemExit) as caught:
            client.run(leave)
        assert caught.value.code == 3
        assert client.run(flows.echo, 1) == 1  # its thread lives on


async def test_what_run_raises_it_does_not_log_as_well_and_a_replay_that_checks_repeats_no_warning(
    plain_lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    @onward.step
    async def forgotten() -> None: ...

    @onward.workflow
    async def careless() -> int:
        forgotten()  # type: ignore[unused-coroutine]  # the mistake that is reported
        return 1

    flows.broken.add("a")
    async with plain_lab.client() as client:
        with pytest.raises(StepFailed, match="a is down"):
            await client.run(flows.pipeline, "a", "B")
        assert [record for record in caplog.records if record.levelname in {"WARNING", "ERROR"}] == []
        assert await client.run(careless) == 1
    assert caplog.text.count("called but never awaited") == 1


async def test_run_works_on_a_nameless_memory_database(plain_lab: Lab) -> None:
    async with onward.AsyncClient("memory://") as client:
        assert await asyncio.wait_for(client.run(flows.echo, 5), 5) == 5

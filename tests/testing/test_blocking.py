"""The blocking face does what the asyncio one does, call by call."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from onward import UsageError, WorkflowFailed, WrongEventLoop
from onward.testing import BlockingEnvironment, Environment
from tests.testing import flows

T0 = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    return None if request.param == "memory" else f"sqlite:///{tmp_path}/onward.db"


def test_a_plain_test_runs_workflows(url: str | None) -> None:
    with Environment(url=url, now=T0) as env:
        stub = env.stub(flows.send, returns="sent")
        assert env.run(flows.onboarding, "ada") == ["sent", "sent"]
        assert env.now == T0 + timedelta(days=3)
        assert len(stub.calls) == len(env.calls(flows.send)) == 2


def test_handles_signals_and_time(url: str | None) -> None:
    with Environment(url=url, now=T0) as env:
        handle = env.start(flows.approval, 3)
        env.settle()
        assert handle.info().state.startswith("waiting for signal approved until")
        env.advance(timedelta(days=1))
        assert env.handle(handle.id, flows.approval).status() == "waiting"
        env.signal(handle, flows.approved, True)
        assert handle.result() == "yes"
        assert env.now == T0 + timedelta(days=1)


def test_crashes_restarts_and_kills(url: str | None) -> None:
    with Environment(url=url) as env:
        crash = env.crash_during(flows.charge)
        handle = env.start(flows.purchase, 5)
        env.until(crash)
        env.restart()
        assert handle.result() == "charged 5; welcome to shop"
        env.kill()
        env.crash_after(flows.send)
        env.run(flows.purchase, 6)
        with pytest.raises(WorkflowFailed, match="sold out"), env.stub(flows.charge, raises=ValueError("sold out")):
            env.run(flows.purchase.using(max_attempts=1), 7)


def test_crash_everywhere_takes_workflows_and_plain_scenarios(url: str | None) -> None:
    def scenario(env: BlockingEnvironment) -> str:
        handle = env.start(flows.approval, None)
        env.signal(handle, flows.approved, False)
        return handle.result()

    with Environment(url=url) as env:
        assert env.crash_everywhere(flows.purchase, 5).value == "charged 5; welcome to shop"
        report = env.crash_everywhere(scenario)
        assert report.value == "no"
        assert len(report.rounds) >= 8


def test_a_crash_that_never_happens_fails_the_test() -> None:
    with pytest.raises(UsageError, match="never happened"), Environment() as env:
        env.crash_after(flows.send)


async def test_it_refuses_to_block_a_running_loop() -> None:
    with pytest.raises(WrongEventLoop, match="async with Environment"), Environment() as env:
        env.run(flows.purchase, 5)


def test_both_faces_have_the_same_calls() -> None:
    """Each public call of one is a call of the other, with the same parameters; only the client is asyncio's alone."""

    def calls(cls: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(member).parameters)
            for name, member in inspect.getmembers(cls)
            if not name.startswith("_") and callable(member)
        }

    blocking, ours = calls(BlockingEnvironment), calls(Environment)
    assert blocking.pop("handle")  # the asyncio one has it on its client
    assert blocking == ours

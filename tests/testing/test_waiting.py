"""A test never hangs: what waits for ever is told, what runs for ever is told, and code that does not replay is told."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

import pytest

import onward
from onward import (
    ConfigurationError,
    NonDeterminismError,
    UsageError,
    WorkflowCancelled,
    WorkflowFailed,
    WorkflowNotFound,
    WrongEventLoop,
    step,
    workflow,
)
from onward._store.memory.store import MemoryStore
from onward.testing import Deadlock, Environment, OutOfPatience
from tests.testing import flows

Make = Callable[..., Environment]
T0 = datetime(2030, 1, 1, tzinfo=UTC)


async def test_signals_reach_a_workflow_that_has_parked_and_one_that_has_not(environment: Make) -> None:
    async with environment(now=T0) as env:
        early, late = await env.start(flows.approval, 30), await env.start(flows.approval, None)
        await env.signal(early, flows.approved, True)
        await env.settle()
        assert (await late.info()).state == "waiting for signal approved"
        await env.signal(late.id, flows.approved, False)
        assert [await early.result(), await late.result()] == ["yes", "no"]
        assert env.now == T0


async def test_a_signal_may_be_sent_by_another_task(environment: Make) -> None:
    async with environment() as env:
        handle = await env.start(flows.approval, None)

        async def approve() -> None:
            await env.settle()
            await env.signal(handle, flows.approved, True)

        assert (await asyncio.gather(handle.result(), approve()))[0] == "yes"


async def test_a_signal_that_nobody_sends_is_a_deadlock_that_names_it(environment: Make) -> None:
    async with environment() as env:
        with pytest.raises(Deadlock, match=r"approval-1 \(approval\) is waiting for signal approved(.|\n)*env\.signal"):
            await env.run(flows.approval, None)


async def test_what_the_environment_does_not_know_is_a_deadlock_that_says_how_to_add_it(environment: Make) -> None:
    @workflow
    async def stranger() -> None: ...

    @workflow
    async def caller() -> None:
        await stranger()

    async with environment() as env:
        with pytest.raises(Deadlock, match=r"caller-1/stranger is a 'stranger', which this environment does not know"):
            await env.run(caller)


async def test_a_hanging_step_is_named_when_patience_is_over(environment: Make) -> None:
    @step
    async def hang() -> None:
        await asyncio.Event().wait()

    @workflow
    async def flow() -> None:
        await hang()

    async with environment(patience=0.2) as env:
        with pytest.raises(OutOfPatience, match=r"for 0.2 s; running: step 'hang' of 'flow-1'\. Stub a step"):
            await env.run(flow)


async def test_another_workflow_that_hangs_does_not_keep_a_result_waiting(environment: Make) -> None:
    @step
    async def hang() -> None:
        await asyncio.Event().wait()

    @workflow
    async def hanging() -> None:
        await hang()

    async with environment() as env:
        await env.start(hanging)
        assert await env.run(flows.purchase, 5) == "charged 5; welcome to shop"


async def test_a_worker_that_a_bug_has_ended_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug in the worker")

    async with Environment() as env:
        monkeypatch.setattr(MemoryStore, "claim", broken)
        with pytest.raises(ZeroDivisionError, match="a bug in the worker"):
            await env.run(flows.purchase, 5)
        with pytest.raises(ConfigurationError, match="start_many takes bound workflows"):
            await env.client.start_many([flows.approval])  # type: ignore[arg-type]


async def test_the_outcome_is_raised_with_the_error_that_ended_it_as_the_cause(environment: Make) -> None:
    @workflow(max_attempts=1)
    async def flow() -> None:
        raise ValueError("no")

    async with environment() as env:
        with pytest.raises(WorkflowFailed, match="ValueError: no") as failed:
            await env.run(flow)
        assert isinstance(failed.value.__cause__, ValueError)
        assert failed.value.__cause__.__traceback__ is not None


async def test_a_cancelled_workflow_says_so(environment: Make) -> None:
    async with environment() as env:
        handle = await env.start(flows.approval, None)
        await env.settle()
        assert await handle.cancel()
        with pytest.raises(WorkflowCancelled):
            await handle.result()


async def test_a_workflow_that_does_other_things_on_replay_is_found(environment: Make) -> None:
    """Without any crash: every park is replayed and compared."""
    counter = itertools.count()

    @workflow
    async def fickle() -> None:
        if next(counter) % 2 == 0:
            await onward.sleep(60)
        else:
            await flows.send("somebody")

    async with environment() as env:
        with pytest.raises(
            NonDeterminismError, match="'fickle-1' does other things when it is replayed from its journal"
        ):
            await env.run(fickle)


async def test_the_comparing_replays_log_nothing(environment: Make, caplog: pytest.LogCaptureFixture) -> None:
    @workflow
    async def short() -> None:
        onward.log.warning("short")

    @workflow
    async def talkative() -> None:
        onward.log.warning("begins")
        await flows.send("ada")
        await onward.sleep(60)
        onward.log.warning("ends")

    async with environment() as env:
        await env.run(short)
        await env.run(talkative)
    said = [record.message for record in caplog.records if record.name == "onward.workflow"]
    assert said == ["short", "begins", "ends"]


async def test_code_that_does_not_fit_after_a_deploy_is_found_and_its_cure_works(environment: Make) -> None:
    @workflow(name="onboarding")
    async def broken(address: str) -> list[str]:
        await flows.charge(1)
        return []

    @workflow(name="onboarding")
    async def guarded(address: str) -> list[str]:
        if onward.patched("charge-first"):
            await flows.charge(1)
        first = await flows.send(address)
        await asyncio.sleep(timedelta(days=3).total_seconds())
        return [first, await flows.send(address, "other")]

    async with environment() as env:
        handle = await env.start(flows.onboarding, "ada")
        await env.settle()
        await env.restart(workflows=[broken])
        with pytest.raises(NonDeterminismError, match="the history has step 'send'"):
            await handle.result()
        await env.restart(workflows=[guarded])
        assert await handle.result() == ["welcome to ada", "other to ada"]
        assert await env.run(guarded, "bob") == ["welcome to bob", "other to bob"]
        assert len(env.calls(flows.charge)) == 1


async def test_two_workflows_of_one_name_are_refused_and_the_message_names_the_cure(environment: Make) -> None:
    @workflow(name="purchase")
    async def other() -> None: ...

    async with environment() as env:
        await env.run(flows.purchase, 5)
        with pytest.raises(ConfigurationError, match=r"another workflow named 'purchase' already.*env\.restart"):
            await env.start(other)


async def test_handles_by_id_and_the_client_bring_results_about_too(environment: Make) -> None:
    async with environment() as env:
        handle = await env.client.start(flows.onboarding.using(id="o-1"), "ada")
        assert len(await env.client.handle("o-1", flows.onboarding).result()) == 2
        assert handle.created
        assert await env.client.run(flows.purchase, 5) == "charged 5; welcome to shop"
        handles = await env.client.start_many(flows.approval.bind(day) for day in (1, 2))
        assert [await handle.result() for handle in handles] == ["nobody answered"] * 2
        assert [handle.id for handle in handles] == ["approval-1", "approval-2"]
        with pytest.raises(WorkflowNotFound):
            await env.client.handle("nobody").result()


async def test_an_environment_goes_on_with_the_file_of_another(tmp_path: object) -> None:
    url = f"sqlite:///{tmp_path}/onward.db"
    async with Environment(url=url, now=T0) as env:
        handle = await env.start(flows.onboarding, "ada")
        await env.advance(60)
    async with Environment(url=url) as env:
        with pytest.raises(UsageError, match="knows no workflow: start one, or give it"):
            await env.client.handle(handle.id).result()
    async with Environment(url=url, now=T0 + timedelta(days=1), workflows=[flows.onboarding]) as env:
        assert len(await env.client.handle(handle.id, flows.onboarding).result()) == 2
        assert env.now == T0 + timedelta(days=3)
        assert (await env.start(flows.onboarding, "bob")).id == "onboarding-2"


async def test_lifespan_and_codec_are_those_of_the_worker(environment: Make) -> None:
    entered: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        entered.append("in")
        yield
        entered.append("out")

    class Backwards:
        def encode(self, text: str) -> str:
            return f'"{text[::-1].encode().hex()}"'

        def decode(self, text: str) -> str:
            return bytes.fromhex(text.strip('"')).decode()[::-1]

    async with environment(lifespan=lifespan, codec=Backwards()) as env:
        assert await env.run(flows.purchase, 5) == "charged 5; welcome to shop"
        await env.kill()
        await env.settle()
    assert entered == ["in", "out"] * 2


async def test_wrong_uses_say_what_to_do(environment: Make) -> None:
    with pytest.raises(ConfigurationError, match="needs a timezone-aware datetime"):
        Environment(now=datetime(2030, 1, 1))  # noqa: DTZ001
    with pytest.raises(ConfigurationError, match="takes functions decorated with @workflow"):
        Environment(workflows=[flows.send])  # type: ignore[list-item]
    async with environment() as env:
        with pytest.raises(UsageError, match="knows no workflow"):
            await env.kill()
        with pytest.raises(ConfigurationError, match="not a workflow"):
            await env.run(flows.send, "ada")  # type: ignore[call-overload]
        with pytest.raises(WrongEventLoop, match="make it inside the test that uses it"):
            await asyncio.to_thread(asyncio.run, env.settle())
    with pytest.raises(UsageError, match="make a new one for each test"):
        await env.settle()


async def test_the_environment_is_not_for_workflow_code(environment: Make) -> None:
    @workflow(max_attempts=1)
    async def flow() -> None:
        await env.settle()

    async with environment() as env:
        with pytest.raises(WorkflowFailed, match=r"WrongEventLoop|UsageError"):
            await env.run(flow)

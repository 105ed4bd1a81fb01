"""What workflow code calls beside asyncio: deterministic inside, ordinary or refused outside."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random as stdlib_random
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from onward import context
from onward._engine.stepinfo import StepInfo, entered
from onward.context import current, current_step, log, now, patched, progress, random, sleep, start, uuid4
from onward.definitions import step, workflow
from onward.errors import CodecError, NotInWorkflow, UsageError
from tests.unit.replay.driver import Run


@step
def tick() -> None: ...


@workflow
async def draws() -> list[Any]:
    out: list[Any] = [str(uuid4()), random()]
    await tick()
    return [*out, str(uuid4()), random()]


def test_uuids_and_random_numbers_are_the_same_on_every_replay_and_differ_by_position() -> None:
    stdlib_random.seed(1)
    run = Run(draws).work()
    stdlib_random.seed(2)
    assert run.again().result == run.result
    assert len(set(run.result)) == 4
    assert 0 <= run.result[1] < 1


def test_uuids_and_random_numbers_differ_by_seed_and_run_and_not_by_id() -> None:
    base = Run(draws).work().result
    assert not set(base) & set(Run(draws, seed="ff" * 16).work().result)
    assert not set(base) & set(Run(draws, run=1).work().result)
    assert base == Run(draws, workflow_id="another").work().result


def test_the_first_random_numbers_of_a_seed_never_change() -> None:
    """Recorded workflows depend on these values; a change of the derivation breaks them."""
    assert Run(draws).work().result == GOLDEN


GOLDEN: list[Any] = [
    "29572142-890b-4cea-88d8-3ed86f07eef2",
    0.13066553793068847,
    "ca859714-2b37-4c7a-a76e-7fff6908c405",
    0.2697612005658605,
]


def test_outside_of_workflows_time_and_randomness_are_the_ordinary_ones() -> None:
    assert abs((now() - datetime.now(UTC)).total_seconds()) < 5
    assert uuid4() != uuid4()
    assert uuid4().version == 4
    stdlib_random.seed(5)
    first = random()
    stdlib_random.seed(5)
    assert first == stdlib_random.random()
    asyncio.run(sleep(0.001))


OUTSIDE: dict[str, Callable[[], Any]] = {
    "current": current,
    "progress": lambda: progress(1),
    "patched": lambda: patched("x"),
    "start": lambda: start(draws),
    "wait": lambda: context.Signal("s", bool).wait(),
}


@pytest.mark.parametrize("name", sorted(OUTSIDE))
def test_outside_of_workflows_durable_calls_are_refused_with_the_cure(name: str) -> None:
    with pytest.raises(NotInWorkflow, match=r"outside a workflow; (call it in|start it with|only a workflow)"):
        OUTSIDE[name]()


def test_a_real_loop_is_outside_of_workflows() -> None:
    async def main() -> None:
        with pytest.raises(NotInWorkflow):
            current()

    asyncio.run(main())


def test_current_tells_id_type_attempt_tags_and_whether_it_replays() -> None:
    seen: list[context.CurrentWorkflow] = []

    @workflow(name="typed")
    async def looks() -> None:
        seen.append(current())
        await tick()
        seen.append(current())

    run = Run(looks, attempt=3, tags={"a": "b"}, run=2)
    run.step("tick")
    info = seen[0]
    assert (info.id, info.type, info.attempt, info.run, info.tags) == ("w1", "typed", 3, 2, {"a": "b"})
    assert [item.replaying for item in seen] == [False, False]
    seen.clear()
    run.again()
    assert [item.replaying for item in seen] == [True, True]


def test_the_log_is_silent_while_replaying_and_names_the_workflow(caplog: pytest.LogCaptureFixture) -> None:
    @workflow
    async def logs() -> None:
        log.info("before %s", 1)
        await tick()
        log.info("after", extra={"own": 5})
        await asyncio.sleep(1)
        log.info("end")

    with caplog.at_level(logging.INFO, "onward.workflow"):
        run = Run(logs)
        run.step("tick")
        assert [r.getMessage() for r in caplog.records] == ["before 1", "after"]
        record = caplog.records[1]
        assert record.name == "onward.workflow"
        assert record.filename == "test_context.py"
        assert (record.__dict__["workflow_id"], record.__dict__["attempt"], record.__dict__["own"]) == ("w1", 1, 5)
        caplog.clear()
        again = run.again()
        assert caplog.records == []
        again.fire()
        assert [r.getMessage() for r in caplog.records] == ["end"]
        caplog.clear()
        log.info("outside")
        assert [r.getMessage() for r in caplog.records] == ["outside"]
    run.close()


def test_progress_refuses_what_json_cannot_carry() -> None:
    @workflow
    async def shows() -> None:
        progress(float("nan"))

    assert isinstance(Run(shows).error, CodecError)


def test_current_step_is_refused_outside_of_a_body_and_in_workflow_code() -> None:
    with pytest.raises(UsageError, match="belongs into a step's body"):
        current_step()

    @workflow
    async def looks() -> None:
        current_step()

    def inside() -> Any:
        entered(_Try(_info()))
        return Run(looks).error

    assert isinstance(contextvars.copy_context().run(inside), UsageError)


class _Try:
    def __init__(self, info: StepInfo) -> None:
        self.info = info


def _info(**options: Any) -> StepInfo:
    return StepInfo(workflow_id="w1", key="charge", idempotency_key="w1/charge", try_number=2, **options)


def test_current_step_gives_the_try_that_was_entered_also_in_a_thread() -> None:
    info = _info()
    seen: list[Any] = []

    def body() -> None:
        entered(_Try(info))
        mine = current_step()
        mine.heartbeat({"done": 3})
        seen.append((mine.idempotency_key, mine.try_number, mine.cancelled))
        info.cancel()
        seen.append(mine.cancelled)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [("w1/charge", 2, False), True]
    assert info.details == {"done": 3}
    assert info.wait_cancelled(0)
    assert "charge" in repr(info)
    with pytest.raises(UsageError):
        current_step()


def test_a_body_may_block_until_it_is_cancelled() -> None:
    info = _info()
    assert not info.wait_cancelled(0)
    assert not info.cancelled
    info.cancel()
    assert info.wait_cancelled()

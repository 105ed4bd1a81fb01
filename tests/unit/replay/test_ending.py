"""The end fixes the outcome and reports what is left; patch markers and progress come out as commands."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from onward._engine.replay.commands import (
    Raised,
    Record,
    Returned,
    RunStep,
    SetProgress,
)
from onward._store.records import Entry
from onward.context import patched, progress
from onward.definitions import step, workflow
from onward.errors import UsageError, WorkflowStuck
from tests.unit.replay.driver import BEGAN, Run, same


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


def test_what_is_left_when_the_root_ends_is_closed_with_one_note_and_its_commands_are_dropped() -> None:
    closed = []

    async def background(x: int) -> None:
        try:
            await double(x)
        finally:
            closed.append(x)

    @workflow
    async def hasty() -> str:
        tasks = [asyncio.create_task(background(x)) for x in range(3)]
        await asyncio.sleep(0)
        del tasks
        return "done"

    run = Run(hasty)
    assert run.result == "done"
    assert run.taken == []
    assert closed == [0, 1, 2]
    [note] = run.notes
    assert "3 of its tasks were unfinished" in note
    assert "test_ending.py:" in note


def test_a_step_that_was_never_awaited_is_reported_at_the_end() -> None:
    @workflow
    async def forgets() -> int:
        double(1)  # type: ignore[unused-coroutine]  # the mistake under test
        return await double(2)

    run = Run(forgets).work()
    [note] = run.notes
    assert "never awaited, so never run: double." in note
    assert run.issued() == ["double#2"]


def test_a_task_whose_error_nobody_saw_is_reported_at_the_end() -> None:
    async def breaks() -> None:
        raise KeyError("lost")

    @workflow
    async def main() -> None:
        task = asyncio.create_task(breaks(), name="worker")
        await double(1)
        del task

    run = Run(main).work()
    [note] = run.notes
    assert "worker failed and nobody awaited it: KeyError('lost')" in note


def test_an_entry_of_a_sibling_that_ended_after_an_escape_is_accepted_on_replay() -> None:
    @workflow
    async def fan() -> None:
        background = asyncio.create_task(double(1))
        await asyncio.sleep(1)
        await asyncio.gather(background, breaks())

    async def breaks() -> None:
        raise LookupError("bug")

    run = Run(fan)
    run.fire()
    assert isinstance(run.ending, Raised)
    run.history.append(Entry(2, "double", "step", BEGAN + 2_000_000, result="2"))
    run.history.append(Entry(3, "attempt", "attempt", BEGAN + 3_000_000, result="60000000"))
    again = run.again()
    assert isinstance(again.error, LookupError)
    assert again.core.last_seq == 3


def test_patched_is_true_at_the_frontier_and_makes_one_marker() -> None:
    answers = []

    @workflow
    async def new() -> None:
        answers.append(patched("p"))
        answers.append(patched("p"))
        await double(1)
        answers.append(patched("p"))

    run = Run(new)
    record, command = run.taken
    assert isinstance(record, Record)
    assert (record.after, record.entry) == (0, Entry(1, "patch:p", "patch", BEGAN))
    assert isinstance(command, RunStep)
    assert command.after == 1
    assert run.core.last_seq == 1
    run.work()
    assert answers == [True] * 3
    answers.clear()
    assert same(run, run.again())
    assert answers == [True] * 3


def test_patched_is_false_where_older_code_went_on_and_keeps_that_answer() -> None:
    @workflow(name="loop")
    async def old() -> int:
        return await double(1) + await double(2)

    @workflow(name="loop")
    async def new() -> int:
        total = 0
        for x in (1, 2):
            total += await double(x) + (100 if patched("p") else 0)
        return total

    @workflow(name="loop")
    async def newer() -> int:
        total = 0
        for x in (1, 2):
            total += (100 if patched("p") else 0) + await double(x)
        return total

    run = Run(old)
    run.step("double", 2)
    again = run.again(newer)
    assert again.work().result == 6, "one id, one answer: the first call was in the history"
    assert run.again(new).issued()[-1:] == ["double#2"]


def test_patched_is_true_on_replay_wherever_its_marker_is() -> None:
    @workflow
    async def new() -> list[bool]:
        await double(1)
        answer = patched("late")
        await double(2)
        return [answer, patched("late")]

    run = Run(new).work()
    assert run.result == [True, True]
    assert [entry.kind for entry in run.history] == ["step", "patch", "step"]
    for cut in range(4):
        part = Run(new, history=run.history[:cut]).work()
        assert part.result == [True, True]


def test_unvisited_patch_markers_are_never_an_error() -> None:
    @workflow(name="w")
    async def guarded() -> int:
        patched("a")
        value = await double(1)
        patched("b")
        return value

    @workflow(name="w")
    async def cleaned() -> int:
        return await double(1)

    run = Run(guarded).work()
    assert [entry.kind for entry in run.history] == ["patch", "step", "patch"]
    assert run.again(cleaned).result == 2


def test_a_marker_gets_a_number_above_struck_out_entries() -> None:
    @workflow
    async def main() -> None:
        patched("p")
        await double(1)

    run = Run(main, seq_floor=9)
    assert isinstance(run.taken[0], Record)
    assert run.taken[0].entry.seq == 10


def test_only_the_latest_progress_is_shown_and_none_that_was_committed_before() -> None:
    @workflow
    async def shows() -> None:
        progress("a")
        progress({"at": 1})
        await double(1)
        progress([2])
        await double(2)

    run = Run(shows)
    assert [c for c in run.taken if isinstance(c, SetProgress)] == [SetProgress(0, '{"at":1}')]
    run.step("double", 2)
    assert run.taken[-2] == SetProgress(1, "[2]")
    run.step("double#2", 4)
    assert [c for c in run.again().taken if isinstance(c, SetProgress)] == []


def test_an_execution_that_nothing_can_wake_is_ended_as_stuck_with_its_line() -> None:
    @workflow
    async def waits_for_nothing() -> None:
        await asyncio.Event().wait()

    run = Run(waits_for_nothing)
    run.core.stuck("waits for nothing that can come")
    assert isinstance(run.error, WorkflowStuck)
    assert "test_ending.py:" in run.error.location


def test_replay_may_be_called_once_and_deliver_between_replay_and_close() -> None:
    run = Run(three, 1, replays=False)
    with pytest.raises(UsageError):
        run.core.deliver(Entry(1, "double", "step", BEGAN, result="2"))
    run.core.replay([])
    with pytest.raises(UsageError):
        run.core.replay([])
    run.close()
    run.close()
    with pytest.raises(UsageError):
        run.core.deliver(Entry(1, "double", "step", BEGAN, result="2"))


def test_gather_task_group_wait_and_as_completed_work_over_step_calls() -> None:
    @workflow
    async def many() -> list[Any]:
        gathered: list[Any] = list(await asyncio.gather(double(1), double(2), fails(), return_exceptions=True))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(double(x)) for x in (3, 4)]
        done, _ = await asyncio.wait([asyncio.create_task(double(x)) for x in (5, 6)])
        completed = [await item for item in asyncio.as_completed([double(7), double(8)])]
        waited = await asyncio.wait_for(double(9), 60)
        return [
            type(gathered.pop()).__name__,
            gathered,
            [task.result() for task in tasks],
            sorted(task.result() for task in done),
            sorted(completed),
            waited,
        ]

    run = Run(many).work()
    assert run.result == ["StepFailed", [2, 4], [6, 8], [10, 12], [14, 16], 18]
    assert same(run, run.again())


def test_a_call_may_be_awaited_once() -> None:
    @workflow
    async def twice() -> None:
        call = double(1)
        await call
        await call

    run = Run(twice).work()
    assert isinstance(run.error, RuntimeError)
    assert "awaited already" in str(run.error)


def test_the_end_is_fixed_when_the_root_ends() -> None:
    run = Run(three, 0)
    assert run.ending == Returned("0")
    assert run.keys == []


def test_nothing_runs_after_the_root_has_ended() -> None:
    ran: list[str] = []

    async def late() -> None:
        ran.append("late")

    @workflow
    async def main() -> None:
        asyncio.create_task(late())  # noqa: RUF006  # left over on purpose

    Run(main)
    assert ran == []

"""Code and history disagree: the error names key, both sides, the line, and what may have changed."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

from onward._engine.replay.commands import Raised
from onward._store.records import Entry
from onward.context import Signal
from onward.definitions import step, workflow
from onward.errors import NonDeterminismError
from tests.unit.replay.driver import BEGAN, Run


@step
def charge(amount: int) -> int:
    return amount


@step
def refund(amount: int) -> int:
    return amount


@step(check_args=False)
def lenient(amount: int) -> int:
    return amount


@workflow(name="pay")
async def first() -> int:
    return await charge(1) + await refund(2)


def _diverges(run: Run, definition: Any, **options: Any) -> NonDeterminismError:
    with pytest.raises(NonDeterminismError) as caught:
        run.again(definition, **options)
    return caught.value


def _line_of(text: str) -> str:
    with open(__file__, encoding="utf-8") as source:
        return f"{__file__}:{next(n for n, line in enumerate(source, 1) if text in line and 'in line' not in line)}"


def test_another_step_than_the_recorded_one() -> None:
    @workflow(name="pay")
    async def changed() -> int:
        return await refund(1)  # other step

    error = _diverges(Run(first).work(), changed)
    assert error.key == "charge"
    assert error.seq == 1
    assert error.recorded == "step 'charge' with {\"amount\":1}"
    assert "did not call it; it waits for step 'refund'" in str(error)
    assert error.location == _line_of("# other step")
    assert error.location in str(error)
    assert "onward.patched" in str(error)


def test_other_arguments_than_the_recorded_ones() -> None:
    @workflow(name="pay")
    async def changed() -> int:
        return await charge(100)  # other arguments

    error = _diverges(Run(first).work(), changed)
    assert error.recorded == "step 'charge' with {\"amount\":1}"
    assert error.called == "step 'charge' with {\"amount\":100}"
    assert error.location == _line_of("# other arguments")


def test_the_line_is_found_inside_tasks_and_nested_calls() -> None:
    async def inner(amount: int) -> int:
        return await charge(amount)  # nested

    @workflow(name="pay")
    async def changed() -> int:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(1))
            group.create_task(inner(100))
        return 0

    assert _diverges(Run(first).work(), changed).location == _line_of("# nested")


def test_arguments_are_not_compared_with_check_args_off_nor_where_one_side_has_no_digest() -> None:
    @workflow(name="w")
    async def old() -> int:
        return await lenient(1)

    @workflow(name="w")
    async def new() -> int:
        return await lenient(2)

    assert Run(old).work().again(new).result == 1

    run = Run(first).work()
    stripped = [Entry(e.seq, e.key, e.kind, e.finished_at, e.result) for e in run.history]
    assert Run(first, history=stripped).result == 3

    @step
    def handle(thing: object) -> int:
        return 1

    @workflow
    async def opaque() -> int:
        return await handle(object())

    run = Run(opaque).work()
    assert run.taken[0].digest is None  # type: ignore[union-attr]  # a RunStep
    run.history[0] = Entry(1, "handle", "step", BEGAN, "1", digest="0" * 16)
    assert run.again().result == 1


def test_another_kind_under_the_same_key() -> None:
    @step(name="sleep")
    def doze() -> None: ...

    @workflow(name="w")
    async def old() -> None:
        await doze()

    @workflow(name="w")
    async def new() -> None:
        await asyncio.sleep(1)

    error = _diverges(Run(old).work(), new)
    assert "the history has step 'sleep'" in str(error)
    assert "the code called timer 'sleep'" in str(error)


@pytest.mark.parametrize("end", ["returns", "raises"])
def test_history_is_left_when_the_workflow_function_ends(end: str) -> None:
    @workflow(name="pay")
    async def shorter() -> int:
        value = await charge(1)
        if end == "raises":
            raise KeyError("new bug")
        return value

    error = _diverges(Run(first).work(), shorter)
    assert error.key == "refund"
    assert ("ended (returned)" if end == "returns" else "ended (raised KeyError('new bug'))") in str(error)


def test_an_error_that_escapes_at_the_same_place_again_is_no_divergence() -> None:
    @workflow
    async def buggy() -> None:
        await charge(1)
        raise KeyError("bug")

    run = Run(buggy).work()
    run.history.append(Entry(2, "attempt", "attempt", BEGAN, result="1000"))
    assert isinstance(run.again().ending, Raised)


def test_an_entry_of_any_kind_that_nothing_waits_for() -> None:
    kinds: list[Any] = ["step", "timer", "signal", "child", "start"]
    for kind in kinds:
        run = Run(first)
        with pytest.raises(NonDeterminismError, match=f"the history has {kind} 'x' at entry 1"):
            run.feed(kind, "x")
        run.close()


def test_a_step_called_but_not_awaited_was_not_called() -> None:
    @workflow(name="pay")
    async def changed() -> int:
        call = charge(1)
        value = await refund(2)
        return await call + value

    with pytest.raises(NonDeterminismError, match="step 'charge'"):
        Run(first).work().again(changed)


def test_a_differing_python_and_code_version_are_named() -> None:
    @workflow(name="pay")
    async def changed() -> int:
        return await refund(1)

    run = Run(first).work()
    error = _diverges(run, changed, recorded_version="1/3.5", recorded_code_version="abc", code_version="def")
    assert "it began under Python 3.5" in str(error)
    assert "under code version 'abc', this is 'def'" in str(error)
    here = f"1/{sys.version_info.major}.{sys.version_info.minor}"
    error = _diverges(run, changed, recorded_version=here, recorded_code_version="abc", code_version="abc")
    assert "it began" not in str(error)


def test_changes_after_the_recorded_point_are_free() -> None:
    @workflow(name="pay")
    async def longer() -> int:
        value = await charge(1)
        await Signal("ok", bool).wait()
        return value

    run = Run(first)
    run.step("charge", 1)
    assert run.again(longer).keys == ["signal:ok"]

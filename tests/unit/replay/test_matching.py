"""Entries settle what is outstanding, commands come out in order, and the end is what the workflow function made of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from onward._engine.replay.commands import (
    Raised,
    RunStep,
)
from onward._engine.replay.matching import Execution
from onward.definitions import step, workflow
from onward.errors import CodecError, Fail, StepFailed
from tests.unit.replay.driver import BEGAN, SEED, Run


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


def test_a_workflow_issues_its_first_step_before_any_entry() -> None:
    run = Run(three, 3)
    [command] = run.commands
    assert isinstance(command, RunStep)
    assert (command.key, command.after, command.args, command.spec.name) == ("double", 0, (0,), "double")
    assert run.ending is None
    run.close()


def test_step_keys_are_the_name_and_its_number_in_call_order() -> None:
    run = Run(three, 3).work()
    assert run.issued() == ["double", "double#2", "double#3"]
    assert run.result == 6


def test_a_command_carries_the_seq_of_the_last_entry_delivered_when_it_was_issued() -> None:
    run = Run(three, 3).work()
    assert [c.after for c in run.taken] == [0, 1, 2]


@pytest.mark.parametrize("cut", range(4))
def test_replay_of_any_prefix_gives_the_commands_that_have_no_entry_yet(cut: int) -> None:
    run = Run(three, 3).work()
    part = Run(three, 3, history=run.history[:cut])
    assert part.issued() == ["double", "double#2", "double#3"][cut : cut + 1]
    assert part.core.last_seq == cut
    assert part.work().result == 6


def test_the_key_is_taken_at_the_call_and_the_command_issued_at_the_await() -> None:
    @workflow
    async def late() -> list[int]:
        first, second = double(1), double(2)
        return [await second, await first]

    run = Run(late)
    assert run.issued() == ["double#2"]
    assert run.work().result == [4, 2]


def test_an_explicit_key_replaces_the_name_and_does_not_count_it() -> None:
    @workflow
    async def keyed() -> int:
        return await double.using(key="mine")(1) + await double(2)

    assert Run(keyed).work().issued() == ["mine", "double"]


def test_a_step_named_like_a_timer_shares_its_numbers() -> None:
    @step(name="sleep")
    def doze() -> None: ...

    @workflow
    async def both() -> None:
        await doze()
        await asyncio.sleep(1)

    run = Run(both)
    run.step("sleep")
    assert run.keys == ["sleep#2"]
    assert run.work().result is None


def test_arguments_are_frozen_at_the_call() -> None:
    @step
    def total(xs: list[int]) -> int:
        return sum(xs)

    @workflow
    async def mutates() -> int:
        xs = [1, 2]
        call = total(xs)
        xs.append(3)
        return await call

    run = Run(mutates)
    [command] = run.commands
    assert isinstance(command, RunStep)
    assert command.args == ([1, 2],)
    assert run.work().result == 3


@dataclass
class Point:
    x: int


def test_the_workflow_gets_the_decoded_result() -> None:
    @step
    def point() -> Point:
        return Point(1)

    @workflow
    async def typed() -> str:
        value = await point()
        return type(value).__name__

    run = Run(typed)
    run.step("point", {"x": 1})
    assert run.result == "Point"


def test_a_recorded_result_that_no_longer_fits_its_hint_is_a_codec_error_at_the_await() -> None:
    run = Run(three, 1)
    run.step("double", "text")
    assert isinstance(run.error, CodecError)


def test_a_step_error_arrives_as_step_failed_live_and_on_replay() -> None:
    @workflow
    async def catches() -> str:
        try:
            await fails(7)
        except ValueError:
            return "ValueError"
        except StepFailed as error:
            return f"{error.type_name}: {error.message} ({error.key})"
        return "nothing"

    run = Run(catches).work()
    assert run.result == "ValueError: no 7 (fails)"
    assert run.again().result == run.result


class Declined(Exception):
    """Listed in raises=."""


def test_an_error_named_in_raises_comes_back_as_itself() -> None:
    @step(raises=(Declined,))
    def charge() -> None:
        raise Declined("no funds")

    @workflow
    async def catches() -> str:
        try:
            await charge()
        except Declined as error:
            return str(error)
        return "nothing"

    assert Run(catches).work().result == "no funds"


def test_a_listed_stop_iteration_still_settles_the_await() -> None:
    @step(raises=(StopIteration,))
    def stops() -> None:
        raise StopIteration("x")

    @workflow
    async def waits() -> None:
        await stops()

    assert isinstance(Run(waits).work().error, RuntimeError)


def test_an_escaping_error_ends_it_as_raised_with_the_seqs_of_the_recorded_errors_in_it() -> None:
    @workflow
    async def escapes() -> None:
        await double(1)
        await fails()

    run = Run(escapes).work()
    assert isinstance(run.ending, Raised)
    assert run.ending.recorded == (2,)
    assert isinstance(run.error, StepFailed)


def test_recorded_errors_are_found_through_causes_contexts_and_groups_but_not_where_only_handled() -> None:
    @workflow
    async def wraps() -> None:
        try:
            await fails(1)
        except StepFailed:
            pass
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(fails(2))
        except* StepFailed as caught:
            group_error: BaseException = caught
            try:
                raise KeyError("context")
            except KeyError:
                raise RuntimeError("cause") from group_error

    run = Run(wraps).work()
    assert isinstance(run.ending, Raised)
    assert run.ending.recorded == (2,)


def test_an_error_of_the_code_itself_is_in_no_entry() -> None:
    @workflow
    async def broken() -> None:
        try:
            await fails()
        except StepFailed:
            pass
        raise LookupError("bug")

    run = Run(broken).work()
    assert isinstance(run.ending, Raised)
    assert run.ending.recorded == ()


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError()])
def test_base_exceptions_from_workflow_code_are_escaping_errors(error: BaseException) -> None:
    @workflow
    async def leaves() -> None:
        await double(1)
        raise error

    run = Run(leaves).work()
    assert isinstance(run.ending, Raised)
    assert run.error is error


def test_system_exit_in_a_task_ends_the_execution_at_once() -> None:
    async def leaves() -> None:
        raise SystemExit(4)

    @workflow
    async def main() -> None:
        task = asyncio.create_task(leaves())
        await double(1)
        await task

    run = Run(main)
    assert isinstance(run.ending, Raised)
    assert run.error.code == 4
    assert run.issued() == []


def test_a_result_that_json_cannot_carry_is_an_escaping_codec_error() -> None:
    @workflow
    async def bad() -> float:
        return float("nan")

    run = Run(bad)
    assert isinstance(run.ending, Raised)
    assert isinstance(run.error, CodecError)


def test_arguments_that_do_not_fit_the_function_end_it_as_raised() -> None:
    for payload in ('{"n":"x"}', '{"m":1}', "nonsense"):
        core = Execution(three.spec, payload, workflow_id="w", seed=SEED, started_at=BEGAN)
        core.replay([])
        assert isinstance(core.ending, Raised)
        core.close()


def test_fail_in_a_step_arrives_as_fail() -> None:
    @step
    def ends() -> None:
        raise Fail("enough")

    @workflow
    async def main() -> None:
        await ends()

    assert isinstance(Run(main).work().error, Fail)

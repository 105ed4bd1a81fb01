"""Scripts run the same on blocking and on async connections, and hear of the errors of their statements."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from onward._store.scripts import Aside, Rows, Script, T, run, run_async

Execute = Callable[[str, Mapping[str, object]], Rows]


def blocking(script: Script[T], execute: Execute) -> T:
    return run(script, execute)


def asynchronous(script: Script[T], execute: Execute) -> T:
    async def awaited(sql: str, parameters: Mapping[str, object]) -> Rows:
        await asyncio.sleep(0)
        return execute(sql, parameters)

    return asyncio.run(run_async(script, awaited))


ways = pytest.mark.parametrize("carry_out", [blocking, asynchronous])


@ways
def test_a_script_is_sent_the_rows_of_each_statement_and_returns_its_result(carry_out: Any) -> None:
    def inner() -> Script[int]:
        [[number]] = yield "two", {"n": 2}
        return int(number)

    def script() -> Script[list[int]]:
        [[first]] = yield "one", {"n": 1}
        return [first, (yield from inner())]

    seen: list[str] = []

    def execute(sql: str, parameters: Mapping[str, object]) -> Rows:
        seen.append(sql)
        return [[parameters["n"]]]

    assert carry_out(script(), execute) == [1, 2]
    assert seen == ["one", "two"]


@ways
def test_a_call_aside_gives_rows_and_its_errors_as_a_statement_does(carry_out: Any) -> None:
    def fail() -> Rows:
        raise ValueError("no")

    def script() -> Script[tuple[int, str]]:
        [[number]] = yield Aside(lambda: [[7]]), {}
        try:
            yield Aside(fail), {}
        except ValueError as error:
            return number, str(error)
        return number, ""

    assert carry_out(script(), lambda sql, parameters: []) == (7, "no")


@pytest.mark.parametrize(("carry_out", "is_here"), [(blocking, True), (asynchronous, False)])
def test_a_call_aside_is_made_in_place_but_never_on_a_loop(carry_out: Any, is_here: bool) -> None:
    def script() -> Script[bool]:
        [[thread]] = yield Aside(lambda: [[threading.get_ident()]]), {}
        return bool(thread == threading.get_ident())

    assert carry_out(script(), lambda sql, parameters: []) is is_here


@ways
def test_a_script_without_statements_just_returns(carry_out: Any) -> None:
    def script() -> Script[str]:
        yield from ()
        return "done"

    assert carry_out(script(), lambda sql, parameters: []) == "done"


@ways
def test_an_error_is_raised_where_the_statement_was_yielded_and_may_be_followed_by_others(carry_out: Any) -> None:
    def script() -> Script[None]:
        try:
            yield "write", {}
        except ValueError:
            yield "undo", {}
            raise

    seen: list[str] = []

    def execute(sql: str, parameters: Mapping[str, object]) -> Rows:
        seen.append(sql)
        if sql == "write":
            raise ValueError("no")
        return []

    with pytest.raises(ValueError, match="no"):
        carry_out(script(), execute)
    assert seen == ["write", "undo"]


@ways
def test_an_error_that_the_script_does_not_expect_ends_it(carry_out: Any) -> None:
    def script() -> Script[None]:
        yield "write", {}
        yield "never", {}

    def execute(sql: str, parameters: Mapping[str, object]) -> Rows:
        assert sql == "write"
        raise KeyError(sql)

    with pytest.raises(KeyError):
        carry_out(script(), execute)

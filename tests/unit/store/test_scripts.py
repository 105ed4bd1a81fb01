"""Scripts run the same on blocking and on async connections, and hear of the errors of their statements."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from onward._store.scripts import Rows, Script, T, run, run_async

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

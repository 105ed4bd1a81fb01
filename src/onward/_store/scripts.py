"""Writes as generators of statements, so that one text serves every connection, blocking or async.

A script yields a statement with its parameters, is sent the rows that came back, and returns its result. It never sees the
connection. The stores write scripts for what may also happen in a caller's transaction (`_store/within/`); `run` and
`run_async` carry them out. An error of a statement is raised where the script yielded it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")

Rows: TypeAlias = Sequence[Sequence[Any]]
"""What a statement returned; empty where it returns nothing."""


@dataclass(frozen=True, slots=True)
class Aside:
    """In the place of a statement: a blocking call beside the connection, which gives rows too. It never stops a loop."""

    call: Callable[[], Rows]


Statement: TypeAlias = tuple[str | Aside, Mapping[str, object]]
"""SQL and its parameters by name; of those that the text numbers ($1), in that order."""
Script: TypeAlias = Generator[Statement, Rows, T]


def run(script: Script[T], execute: Callable[[str, Mapping[str, object]], Rows]) -> T:
    """Carry out a script on a blocking connection and return its result."""
    try:
        sql, parameters = next(script)
        while True:
            try:
                rows = sql.call() if isinstance(sql, Aside) else execute(sql, parameters)
            except BaseException as error:  # the script decides what remains of what it has written
                sql, parameters = script.throw(error)
            else:
                sql, parameters = script.send(rows)
    except StopIteration as end:
        result: T = end.value
        return result


async def run_async(script: Script[T], execute: Callable[[str, Mapping[str, object]], Awaitable[Rows]]) -> T:
    """Carry out a script on an async connection and return its result."""
    try:
        sql, parameters = next(script)
        while True:
            try:
                rows = await (asyncio.to_thread(sql.call) if isinstance(sql, Aside) else execute(sql, parameters))
            except BaseException as error:  # as above; a cancellation too
                sql, parameters = script.throw(error)
            else:
                sql, parameters = script.send(rows)
    except StopIteration as end:
        result: T = end.value
        return result

"""The module that the tests of the command line give to `onward worker`, `start` and `run`: one workflow for each state."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date
from pathlib import Path

from onward import Fail, Retry, Signal, StepFailed, progress, step, workflow

approved = Signal("approved", bool)


@asynccontextmanager
async def lifespan() -> AsyncIterator[None]:
    """Leaves a trace of its entering and leaving in the working directory."""
    note("lifespan.txt", "in ")
    yield
    note("lifespan.txt", "out ")


def note(file: str, text: str) -> None:
    """Append to a file in the working directory, for the test to see."""
    with Path(file).open("a") as trace:
        trace.write(text)


def block() -> None:
    """Take very long and let nothing else run."""
    time.sleep(60)


@step
def greet(name: str) -> str:
    """Say hello."""
    return f"hello {name}"


@step
def refuse(why: str) -> None:
    """Fail, with a message of two lines."""
    raise ValueError(f"{why}\nreally")


@step(retry=Retry(tries=3, delay=3600))
def call_service() -> int:
    """Fail, and be tried again in an hour."""
    raise RuntimeError("service down")


@workflow
async def hello(name: str, times: int = 1) -> list[str]:
    """Completes."""
    return [await greet(name) for _ in range(times)]


@workflow
async def dated(day: date, *others: date) -> str:
    """Completes; its arguments are no plain JSON."""
    return max(day, *others).isoformat()


@workflow(name="named-otherwise")
async def renamed() -> None:
    """Completes; its type name is not its variable's."""


class Group:
    """Holds a workflow."""

    @workflow
    @staticmethod
    async def inside() -> str:
        """Completes."""
        return "inside"


@workflow(max_attempts=1)
async def failing(why: str) -> None:
    """Fails, after a handled error."""
    try:
        await refuse("handled")
    except StepFailed:
        await greet("cleanup")
    raise Fail(why)


@workflow
async def unlucky(why: str) -> None:
    """Backs off: an error left it."""
    await greet("x")
    await refuse(why)


@workflow
async def retrying() -> int:
    """Backs off: one step is tried again later."""
    return await call_service()


@workflow
async def sleeper() -> None:
    """Sleeps."""
    await greet("x")
    await asyncio.sleep(3 * 86400)


@workflow
async def waiter() -> bool:
    """Waits for a signal, with a time-out."""
    return await approved.wait(timeout=3600)


@workflow
async def parent() -> bool:
    """Waits for a child."""
    progress({"done": 1})
    await hello("child")
    return await waiter()


@step
async def announce_and_take(seconds: float) -> str:
    """Say that it began (the file `began`), then take a while."""
    note("began", "yes")
    await asyncio.sleep(seconds)
    return "taken"


@workflow
async def taking(seconds: float) -> str:
    """Holds a worker for a while."""
    return await announce_and_take(seconds)


@step
async def announce_and_block() -> None:
    """Say that it began, then block the event loop."""
    note("began", "yes")
    block()


@workflow
async def blocking() -> None:
    """Blocks the worker's event loop."""
    await announce_and_block()

"""The workflows that the benchmarks run: the same work as the peers' scripts do."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

from onward import Signal, sleep_until, step, workflow

go_on = Signal("go_on", bool)


@step
async def add(value: int) -> int:
    """A step that costs nothing itself."""
    return value + 1


@step
def add_in_thread(value: int) -> int:
    """The same as `def`: it runs in the thread pool."""
    return value + 1


@step
async def keep(text: str) -> str:
    """A step whose argument and result are as large as the payload."""
    return text


@step
async def stay(seconds: float) -> float:
    """A step that takes long and does nothing."""
    await asyncio.sleep(seconds)
    return seconds


@step
async def first_new(start_file: str) -> float:
    """The first step after a resume: tells when it ran."""
    return time.time()


@workflow
async def noop(value: int) -> int:
    """No step at all: what a plain job queue does."""
    return value


@workflow
async def three(value: int) -> int:
    """Three steps in sequence."""
    for _ in range(3):
        value = await add(value)
    return value


@workflow
async def three_in_threads(value: int) -> int:
    """Three `def` steps in sequence."""
    for _ in range(3):
        value = await add_in_thread(value)
    return value


@workflow
async def carry(text: str) -> str:
    """One step; payload, the step's argument, its result and the workflow's are equally large."""
    return await keep(text)


@workflow
async def staying(seconds: float) -> float:
    """Stays in memory, in a step."""
    return await stay(seconds)


@workflow
async def one(value: int) -> int:
    """One step."""
    return await add(value)


@workflow
async def long(steps: int) -> int:
    """Many steps in sequence."""
    value = 0
    for _ in range(steps):
        value = await add(value)
    return value


@workflow
async def parent(children: int) -> int:
    """Many children at once, one step each."""
    return len(await asyncio.gather(*(one(number) for number in range(children))))


@workflow
async def resume(steps: int, mark: str) -> float:
    """Many recorded steps, then a wait; after the wake one new step."""
    value = 0
    for _ in range(steps):
        value = await add(value)
    await go_on.wait()
    return await first_new(mark)


@workflow
async def sleeper(due: float) -> float:
    """Sleep until an instant; the result is how late it woke, in seconds."""
    await sleep_until(datetime.fromtimestamp(due, UTC))
    return await clock() - due


@step
async def clock() -> float:
    """The time, recorded."""
    return time.time()

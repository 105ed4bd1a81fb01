"""The workflows that the benchmarks run: the same work as the peers' scripts do."""

from __future__ import annotations

import asyncio
import time

from onward import Signal, step, workflow

go_on = Signal("go_on", bool)


@step
async def add(value: int) -> int:
    """A step that costs nothing itself."""
    return value + 1


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
    await asyncio.sleep(max(0.0, due - await clock()))
    return await clock() - due


@step
async def clock() -> float:
    """The time, recorded."""
    return time.time()

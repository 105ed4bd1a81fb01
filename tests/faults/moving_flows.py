"""The workflows of test_copy.py: one in each state in which it may be moved. Bodies write a line into a file when they begin."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from onward import Retry, Signal, current_step, start, step, workflow

PLACE = Path(os.environ.get("MOVING_PLACE", "."))
go_on, second = Signal("go_on", str), Signal("second", int)


def note() -> int:
    """Write a line; how many this step has by now."""
    info = current_step()
    line = f"{info.workflow_id} {info.key}"
    with (PLACE / "bodies").open("a") as file:
        file.write(line + "\n")
    return (PLACE / "bodies").read_text().splitlines().count(line)


@step
def quick(value: int) -> int:
    note()
    return value + 1


@step
async def gated(value: int) -> int:
    """Runs until the test opens the gate."""
    note()
    while not (PLACE / "gate").exists():
        await asyncio.sleep(0.02)
    return value * 10


@step(retry=Retry(tries=3, delay=3600, jitter=0))
def shaky(value: int) -> int:
    """Its first try fails; the wait for the second one is parked."""
    if note() == 1:
        raise ValueError("not yet")
    return value * 100


@workflow
async def finished(value: int) -> int:
    return await quick(value)


@workflow
async def sleeping(value: int) -> int:
    value = await quick(value)
    await asyncio.sleep(8)
    return await quick(value)


@workflow
async def waiting() -> str:
    await quick(1)
    word = await go_on.wait()
    return f"{word} {await second.wait()}"


@workflow
async def running(value: int) -> int:
    return await gated(await quick(value))


@workflow(max_attempts=3, backoff=Retry(delay=3600, jitter=0))
async def backing_off(value: int) -> int:
    value = await quick(value)
    if note_attempt() == 1:
        raise ValueError("the first attempt fails")
    return await quick(value)


def note_attempt() -> int:
    """How often `backing_off` has come to this line."""
    with (PLACE / "attempts").open("a") as file:
        file.write("x")
    return len((PLACE / "attempts").read_text())


@workflow
async def retrying(value: int) -> int:
    return await shaky(await quick(value))


@workflow
async def parent(value: int) -> str:
    other = await start(finished, value)
    word = await child(value)
    return f"{word} {await other.result()}"


@workflow
async def child(value: int) -> str:
    await quick(value)
    return await go_on.wait()

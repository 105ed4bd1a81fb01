"""The workflows of the golden histories. Never change one: add another, since their journals are recorded (record.py)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import onward
from onward import Retry, Signal, StepFailed, Workflow, patched, start, step, workflow

approved = Signal("approved", bool)
note = Signal("note", str)


class Declined(Exception):
    """Comes back as itself."""


@dataclass(frozen=True)
class Order:
    """A value with a structure."""

    id: int
    lines: tuple[str, ...]


@step
async def add(one: int, two: int) -> int:
    return one + two


@step
async def order(number: int, *, tags: set[str]) -> Order:
    return Order(number, tuple(sorted(tags)))


@step
def say(text: str) -> str:
    return text.upper()


@step(raises=[Declined])
async def charge(amount: int) -> int:
    if amount > 100:
        raise Declined("too much", amount)
    if amount < 0:
        raise ValueError("negative")
    return amount


@workflow
async def sequence(value: int) -> list[Any]:
    """Steps one after the other, with structured arguments and results."""
    first = await add(value, two=1)
    second = await order(first, tags={"b", "a", "c"})
    return [second.id, list(second.lines), await say(f"order {second.id}")]


@workflow
async def gathered(count: int) -> int:
    """Calls of one step side by side, then one that depends on all."""
    return await add(sum(await asyncio.gather(*[add(number, number) for number in range(count)])), 0)


@workflow
async def grouped(count: int) -> list[int]:
    """A TaskGroup, and tasks taken as they are completed."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(add(number, 100)) for number in range(count)]
    more = [asyncio.create_task(add(task.result(), 1)) for task in tasks]
    found = [await done for done in asyncio.as_completed(more)]
    done, _ = await asyncio.wait([asyncio.create_task(add(number, 2)) for number in sorted(found)])
    return [await add(task.result(), 0) for task in sorted(done, key=lambda task: task.result())]


@workflow
async def aborted() -> list[str]:
    """One member of a TaskGroup fails; the others clean up with steps, in the order of a set of tasks."""
    said: list[str] = []

    async def member(name: str) -> None:
        try:
            await note.wait()
        finally:
            said.append(await say(name))

    async def failing() -> None:
        await charge(-1)

    try:
        async with asyncio.TaskGroup() as group:
            for name in ("one", "two", "three", "four"):
                group.create_task(member(name))
            group.create_task(failing())
    except* StepFailed:
        said.append(await say("over"))
    return said


@workflow
async def timed_out() -> str:
    """A timeout that fires, a sleep, and a timeout that does not fire."""
    try:
        async with asyncio.timeout(0.03):
            await approved.wait()
    except TimeoutError:
        await asyncio.sleep(0.03)
    try:
        await note.wait(timeout=timedelta(seconds=0.03))
    except TimeoutError:
        pass
    async with asyncio.timeout(60):
        return await say("late")


@workflow
async def signalled() -> list[Any]:
    """Signals sent before they are waited for, in turn with steps."""
    found: list[Any] = [await approved.wait(timeout=60)]
    found.append(await say("approved"))
    found += await asyncio.gather(note.wait(), note.wait())
    return found


@workflow
async def small(value: int) -> int:
    """A child."""
    if value < 0:
        raise onward.Fail("negative")
    return await add(value, 1)


@workflow
async def family() -> list[Any]:
    """Children awaited, started and failing."""
    first = await small(1)
    handle = await start(small, 2)
    found: list[Any] = [first, await handle.result(), handle.id.rpartition("/")[2]]
    try:
        await small(-1)
    except onward.WorkflowFailed as error:
        found.append(error.type_name)
    return found


@workflow
async def handled() -> list[str]:
    """Errors of steps, listed and not, caught and compensated."""
    found = []
    for amount in (50, 500, -5):
        try:
            found.append(str(await charge(amount)))
        except Declined as error:
            found.append(await say(f"declined {error.args[1]}"))
        except StepFailed as error:
            found.append(await say(error.type_name))
    return found


@workflow
async def with_patches() -> list[Any]:
    """Markers before, between and after steps."""
    found: list[Any] = [patched("first"), await say("a"), patched("second"), patched("first")]
    if found[2]:
        found.append(await say("new"))
    return [*found, patched("last")]


@workflow
async def stopped() -> None:
    """Cancelled in a wait; its cleanup runs steps."""
    try:
        await asyncio.gather(approved.wait(), asyncio.sleep(3600))
    finally:
        await say("cleaned up")


@workflow
async def random_numbers() -> list[Any]:
    """Time and randomness, in digests of arguments."""
    found = []
    for _ in range(3):
        found.append(await say(f"{onward.now().isoformat()} {onward.uuid4()} {onward.random()!r}"))
    return found


@workflow(max_attempts=2, backoff=Retry(tries=2, delay=0.05, jitter=0))
async def failed() -> None:
    """An error that escapes twice, timers pending: an `attempt` entry moves them."""
    sleeper = asyncio.create_task(asyncio.sleep(60))
    await say("before")
    await charge(-1)
    await sleeper


@workflow
async def overdue() -> None:
    """Its own deadline passes."""
    await say("before")
    await approved.wait()


@workflow
async def wait_for_in_gather() -> list[int]:
    """The documented difference: on 3.11 `wait_for` makes a task of its own, so that `two` calls its step first."""

    async def slow() -> int:
        return await add(1, 1)

    async def one() -> int:
        return await asyncio.wait_for(slow(), 60)

    async def two() -> int:
        return await add(2, 2)

    return list(await asyncio.gather(one(), two()))


FLOWS: dict[str, Workflow[..., Any]] = {
    flow.name: flow
    for flow in (
        sequence, gathered, grouped, aborted, timed_out, signalled, family, handled, with_patches, stopped, random_numbers,
        failed, overdue, wait_for_in_gather,
    )
}  # fmt: skip

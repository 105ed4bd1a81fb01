"""Workflows at module level, for what looks at the module of a workflow's function (`run`) or goes to other processes."""

from __future__ import annotations

import asyncio

from onward import Fail, RetryLater, WorkflowFailed, step, workflow

bodies: list[str] = []
"""What ran, in order; each test clears it."""
broken: set[str] = set()
"""Names of steps that fail."""


@step
async def fetch(name: str) -> str:
    """A step that fails while its name is in `broken`."""
    bodies.append(name)
    if name in broken:
        raise OSError(f"{name} is down")
    return name.upper()


@step
def fetch_in_thread(name: str) -> str:
    """The same in a thread."""
    bodies.append(name)
    return name.lower()


@workflow
async def child(name: str) -> str:
    """Found by `run` because it stands in the same module."""
    return await fetch(name)


@workflow(max_attempts=2)
async def pipeline(first: str, second: str) -> str:
    """Two steps, a short sleep and a child."""
    got = await fetch(first) + await fetch_in_thread(second)
    await asyncio.sleep(0.001)
    return got + await child("c")


@workflow
async def hopeless() -> None:
    """Fails for good."""
    raise Fail("no way")


@workflow
async def careful() -> str:
    """Handles the failure of its child, which has a queue of its own."""
    try:
        await hopeless.using(queue="elsewhere")()
    except WorkflowFailed as error:
        return f"handled {error.type_name}"
    return ""


@step
async def limited() -> str:
    """Waits for a moment first."""
    bodies.append("limited")
    if len(bodies) == 1:
        raise RetryLater(after=0.03)
    return "ok"


@workflow
async def patient() -> str:
    """Waits in parks."""
    await asyncio.sleep(0.03)
    return await limited()


@workflow
async def echo(n: int) -> int:
    """The plainest one."""
    return n

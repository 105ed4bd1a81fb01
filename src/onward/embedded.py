"""Working on one workflow inside the calling process: what `client.run` and `onward.run` do.

A worker limited to that workflow and the children it starts lives as long as the call, within the `lifespan` of the function's
module if that has one. It replays everything it runs, so that non-deterministic code shows itself at once in development.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import Any, TypeVar

from onward._engine.specs import WorkflowSpec
from onward.definitions import Workflow
from onward.handle import AsyncHandle
from onward.worker import Worker

R = TypeVar("R")


async def run_here(url: str, spec: WorkflowSpec, handle: AsyncHandle[R]) -> R:
    """Work on a started workflow until it has ended, or until an error leaves it, which is raised and leaves it pending."""
    info = await handle.info()
    if info.status == "pending" and info.error is not None and not info.waiting_for:
        await handle.retry()  # it is backing off after an error: this call is the next attempt
    failed: asyncio.Future[R] = asyncio.get_running_loop().create_future()

    def escaped(workflow_id: str, error: BaseException) -> None:
        if workflow_id == handle.id and not failed.done():
            failed.set_exception(error)

    worker = Worker(
        url,
        workflows=_neighbours(spec),
        lifespan=inspect.unwrap(spec.fn).__globals__.get("lifespan"),
        checks_replay=True,
        grace=5.0,
        _only=(handle.id,),
        _on_error=escaped,
    )
    async with worker:
        result = asyncio.ensure_future(handle.result())
        try:
            await asyncio.wait([result, failed], return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not result.done():
                result.cancel()
                await asyncio.gather(result, return_exceptions=True)
    if failed.done():
        return failed.result()
    failed.cancel()
    return result.result()


def _neighbours(spec: WorkflowSpec) -> list[Workflow[..., Any]]:
    """The workflow and all others of its function's module."""
    found: dict[str, Workflow[..., Any]] = {spec.name: Workflow(spec)}
    for value in inspect.unwrap(spec.fn).__globals__.values():
        if isinstance(value, Workflow):
            found.setdefault(value.spec.name, value)
    return list(found.values())

"""Working on one workflow inside the calling process: what `client.run` and `onward.run` do.

A worker limited to that workflow and the children it starts lives as long as the call, within the `lifespan` of the function's
module if that has one. It replays everything it runs, so that non-deterministic code shows itself at once in development.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import Any, TypeVar

from onward._engine.specs import WorkflowSpec
from onward._store.operations import RetryOp
from onward._store.records import WorkflowRow
from onward.codec import Codec
from onward.definitions import Workflow
from onward.handle import AsyncHandle
from onward.worker import Worker

R = TypeVar("R")


async def run_here(url: str, spec: WorkflowSpec, handle: AsyncHandle[R], codec: Codec | None) -> R:
    """Work on a started workflow until it has ended, or until an error leaves it, which is raised and leaves it pending."""
    info = await handle.info()
    tree = await _unfinished(handle)
    failed: asyncio.Future[R] = asyncio.get_running_loop().create_future()

    def escaped(workflow_id: str, error: BaseException, is_final: bool) -> None:
        # A child's last error goes to its parent; an earlier one would mean a back-off of minutes, here as in the parent.
        if (workflow_id == handle.id or not is_final) and not failed.done():
            failed.set_exception(error)

    worker = Worker(
        url,
        queues=dict.fromkeys((info.queue, *(row.queue for row in tree))),
        workflows=neighbours(spec),
        lifespan=inspect.unwrap(spec.fn).__globals__.get("lifespan"),
        checks_replay=True,
        grace=5.0,
        codec=codec,
        _only=(handle.id, *(row.id for row in tree)),
        _on_error=escaped,
    )
    async with worker:
        result = asyncio.ensure_future(handle.result())
        try:
            await asyncio.wait([result, failed], return_when=asyncio.FIRST_COMPLETED)
        finally:
            result.cancel()
            await asyncio.gather(result, return_exceptions=True)
    if failed.done():
        return failed.result()
    failed.cancel()
    return result.result()


async def _unfinished(handle: AsyncHandle[R]) -> list[WorkflowRow]:
    """The children below this workflow that a former call has left. This call is the next attempt of whatever backs off."""
    connection = await handle._connection()
    found: list[WorkflowRow] = []
    rows = [await connection.row(handle.id)]
    while rows:
        row = rows.pop()
        if row.status == "pending" and row.error is not None and not row.waiting_for:
            await connection.control(RetryOp(row.id))
        children = [child for child in await connection.store.children(row.id) if child.finished_at is None]
        found += children
        rows += children
    return found


def neighbours(spec: WorkflowSpec) -> list[Workflow[..., Any]]:
    """The workflow and all others of its function's module."""
    found: dict[str, Workflow[..., Any]] = {spec.name: Workflow(spec)}
    for value in inspect.unwrap(spec.fn).__globals__.values():
        if isinstance(value, Workflow):
            found.setdefault(value.spec.name, value)
    return list(found.values())

"""Waiting for outcomes: one reader for all the `result()` calls of a client, woken by the store's hints."""

from __future__ import annotations

import asyncio

from onward._store.base import Store
from onward._store.records import WorkflowRow
from onward._store.transfer import MOVING
from onward.errors import OnwardError, StoreError

POLL_S = 1.0
"""The slow poll under the hints."""
LINGER_S = 2.0
"""How long the subscription is kept after the last waiter: the next one often comes soon."""
SPACING_S = 1e-5
"""Pause after a look for each workflow waited for: thousands of waiters must not read the table at every commit."""


class OutcomeWatcher:
    """Resolves futures when workflows become final. Runs a task only while somebody waits."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: dict[str, list[asyncio.Future[WorkflowRow]]] = {}
        self._hint = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def wait(self, workflow_id: str) -> WorkflowRow:
        """The final row of this workflow, as soon as it is final."""
        future: asyncio.Future[WorkflowRow] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(workflow_id, []).append(future)
        self._hint.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="onward-outcomes")
        try:
            return await future
        finally:
            self._forget(workflow_id, future)

    def _forget(self, workflow_id: str, future: asyncio.Future[WorkflowRow]) -> None:
        waiting = self._waiting.get(workflow_id)
        if waiting is not None and future in waiting:
            waiting.remove(future)
            if not waiting:
                del self._waiting[workflow_id]
        if not self._waiting:
            self._hint.set()

    async def close(self) -> None:
        """End the task; whoever still waits is cancelled."""
        for futures in self._waiting.values():
            for future in futures:
                future.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        unsubscribe = self._store.subscribe(self._hint.set)
        try:
            last_waited = loop.time()
            while self._waiting or loop.time() < last_waited + LINGER_S:
                self._hint.clear()
                if self._waiting:
                    last_waited = loop.time()
                    await self._look()
                    await asyncio.sleep(len(self._waiting) * SPACING_S)
                try:
                    async with asyncio.timeout(POLL_S):
                        await self._hint.wait()
                except TimeoutError:
                    await self._check_serving()
        finally:
            unsubscribe()
            self._task = None

    async def _check_serving(self) -> None:
        """Where the workflows have moved, nothing ends here any more."""
        try:
            await self._store.check_serving()
        except MOVING as error:
            self._fail(error)
        except StoreError:
            return  # the next look says more

    def _fail(self, error: OnwardError) -> None:
        for futures in self._waiting.values():
            for future in futures:
                if not future.done():
                    future.set_exception(error)

    async def _look(self) -> None:
        try:
            rows = await self._store.outcomes(list(self._waiting))
        except StoreError as error:
            if not error.is_passing:
                self._fail(error)
            return
        for row in rows:
            for future in self._waiting.get(row.id, ()):
                if not future.done():
                    future.set_result(row)

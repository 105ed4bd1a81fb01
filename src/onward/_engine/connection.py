"""What a client uses on one event loop: an open store, a committer that gathers concurrent calls into one transaction, and
the reader behind `result()`. Made by the clients; never shared between loops.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Self

import msgspec

from onward._engine.committer import Call, Committer
from onward._engine.watching import OutcomeWatcher
from onward._store.base import Clock, Store
from onward._store.coded import coded
from onward._store.opening import open_store
from onward._store.operations import APPLIED, AlreadyFinal, CancelOp, NotFound, Op, Outcome, RetryOp
from onward._store.records import JournalRow, WorkflowRow
from onward.codec import Codec
from onward.errors import ConfigurationError, OnwardError, WorkflowNotFound

SHARE = 1_000
"""Operations of one call that are queued in one turn of the loop."""
PATIENCE_S = 10.0
"""How long a client call is tried again while the database is busy or away, before it raises."""


class Connection:
    """What a client uses on one event loop.

    Args:
        url: the database.
        migrate: create or upgrade the schema when it opens; if False, a missing file or schema is a SchemaError.
        codec: what payloads are stored with, if anything.
        clock: the time of a database that has none of its own (tests move it).
        probe: passed by the store at its commits (the testing kit's).
        wrap_store: gives the store to use (the testing kit's).
    """

    def __init__(
        self,
        url: str,
        *,
        migrate: bool = True,
        codec: Codec | None = None,
        clock: Clock | None = None,
        probe: Callable[[str], None] | None = None,
        wrap_store: Callable[[Store], Store] | None = None,
    ) -> None:
        self.url = url
        self._migrate = migrate
        store = open_store(url, clock) if probe is None else open_store(url, clock, probe=probe)
        self.store: Store = coded(store, codec)
        if wrap_store is not None:
            self.store = wrap_store(self.store)
        self.loop = asyncio.get_running_loop()
        self.committer = Committer(self.store, patience_s=PATIENCE_S)
        self._watcher = OutcomeWatcher(self.store)
        self._calls: set[Call | _ManyCalls] = set()
        self._opening: asyncio.Task[None] | None = None
        self._is_closed = False

    @property
    def has_failed(self) -> bool:
        """Whether it could not be opened: it is of no use any more, and holds nothing."""
        opening = self._opening
        return opening is not None and opening.done() and (opening.cancelled() or opening.exception() is not None)

    async def opened(self) -> Self:
        """Open once, however many callers come first."""
        if self._opening is None:
            # In a context of its own: this client's tasks outlive whatever its first caller happens to run in.
            context = contextvars.Context()
            self._opening = self.loop.create_task(self._open(), name="onward-open", context=context)
        await asyncio.shield(self._opening)
        return self

    async def _open(self) -> None:
        await self.store.open(migrate=self._migrate)
        self.committer.start()
        self.committer.task.add_done_callback(self._committer_ended)

    def _committer_ended(self, task: asyncio.Task[None]) -> None:
        """No call may wait for a committer that a bug has ended."""
        error = None if task.cancelled() else task.exception()
        for call in self._calls:
            if error is not None and not call.future.done():
                call.future.set_exception(error)

    async def close(self) -> None:
        """Write what is queued and close everything."""
        self._is_closed = True
        await self._watcher.close()
        opening = self._opening
        if opening is not None and opening.done() and not opening.cancelled() and opening.exception() is None:
            await self.committer.stop()
        await self.store.close()

    async def write(self, op: Op) -> Outcome:
        """Commit one operation, together with those of other callers."""
        self.store.check_caller()
        call = Call(self.loop)
        self._calls.add(call)
        self.committer.submit(op, call)
        try:
            return await call.future
        finally:
            self._calls.discard(call)

    async def write_many(self, ops: Iterable[Op], count: int) -> Sequence[Outcome]:
        """Commit `count` operations that do not depend on each other: where one is refused, all others are written before its
        error is raised. The first ones are on their way to the database while the later ones are still being made."""
        self.store.check_caller()
        left = iter(ops)
        if count == 0:
            return []
        if count == 1:
            return [await self.write(next(left))]
        calls = _ManyCalls(self.loop, count)
        submit, one = self.committer.submit, calls.one
        self._calls.add(calls)
        try:
            for start in range(0, count, SHARE):
                if start:
                    await asyncio.sleep(0)
                    if self._is_closed:
                        raise ConfigurationError("this client was closed during a call; a part of it may be written")
                for index, op in enumerate(itertools.islice(left, SHARE), start):
                    submit(op, one(index))
            await calls.future
        finally:
            self._calls.discard(calls)
        return calls.outcomes

    async def control(self, op: CancelOp | RetryOp) -> bool:
        """A cancel or retry; False if the workflow had ended."""
        outcome = await self.write(op)
        if isinstance(outcome, NotFound):
            raise WorkflowNotFound(op.workflow_id, self.store.url)
        return not isinstance(outcome, AlreadyFinal)

    async def row(self, workflow_id: str) -> WorkflowRow:
        """One workflow's row, or WorkflowNotFound."""
        row = await self.store.get(workflow_id)
        if row is None:
            raise WorkflowNotFound(workflow_id, self.store.url)
        return row

    async def journal(self, workflow_id: str) -> list[JournalRow]:
        """One workflow's journal."""
        return await self.store.journal(workflow_id)

    async def outcome(self, workflow_id: str, timeout_s: float | None) -> WorkflowRow | None:
        """The final row, or None if `timeout_s` passed first."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._watcher.wait(workflow_id)
        except TimeoutError:
            return None


class _ManyCalls:
    """The operations of one call: their outcomes, and a future that is done when all are known."""

    __slots__ = ("_error", "_error_index", "_left_count", "future", "outcomes")

    def __init__(self, loop: asyncio.AbstractEventLoop, count: int) -> None:
        self.future: asyncio.Future[None] = loop.create_future()
        self.outcomes: list[Outcome] = [APPLIED] * count
        self._left_count = count
        self._error: OnwardError | None = None
        self._error_index = count

    def one(self, index: int) -> _OneOfMany:
        """The owner of one of the operations."""
        return _OneOfMany(self, index)

    def refused(self, index: int, error: OnwardError) -> None:
        """Of several errors, the first operation's counts."""
        if index < self._error_index:
            self._error_index, self._error = index, error
        self.answered()

    def answered(self) -> None:
        """One more is settled or refused."""
        self._left_count -= 1
        if self._left_count or self.future.done():
            return
        if self._error is None:
            self.future.set_result(None)
        else:
            self.future.set_exception(self._error)


class _OneOfMany(msgspec.Struct, gc=False):
    """See committer.Owner: each operation stands for itself, so that a poisonous one is refused alone."""

    calls: _ManyCalls
    index: int
    is_dropped: bool = False

    def settled(self, op: Op, outcome: Outcome) -> None:
        """Keep the outcome."""
        self.calls.outcomes[self.index] = outcome
        self.calls.answered()

    def refused(self, op: Op, error: OnwardError) -> None:
        """Keep the error."""
        self.calls.refused(self.index, error)

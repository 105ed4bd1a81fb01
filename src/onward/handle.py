"""Handles: one workflow as its caller sees it. `AsyncHandle` does the work, `Handle` is its blocking face.

Made by the clients; a handle holds an id, never a copy of state: each call asks the database.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from onward._codec.undecodable import Undecodable
from onward._engine import failures
from onward._engine.specs import WorkflowSpec
from onward._store.operations import CancelOp, RetryOp, Started
from onward._store.records import Status, WorkflowRow
from onward._store.within.base import CallerConnection
from onward.errors import NotCommitted, ResultTimeout, WorkflowNotFound
from onward.history import export_text
from onward.info import JournalEntry, WorkflowInfo
from onward.retry import Duration, seconds

if TYPE_CHECKING:
    from onward._engine.connection import Connection
    from onward._transactions import CallersTransactions

R = TypeVar("R")


class AsyncHandle(Generic[R]):
    """One workflow, for asyncio code. Get one from `AsyncClient.start` or `AsyncClient.handle`.

    Attributes:
        id: the workflow's id.
        created: whether the `start` that gave this handle made the workflow; False where it existed before.
    """

    __slots__ = ("__weakref__", "_connection", "_is_within", "_transactions", "created", "id", "spec")

    def __init__(
        self,
        connection: Callable[[], Awaitable[Connection]],
        transactions: CallersTransactions,
        started: Started,
        spec: WorkflowSpec | None,
        *,
        is_within: bool = False,
    ) -> None:
        self._connection = connection
        self._transactions = transactions
        self._is_within = is_within
        """It was started in a caller's transaction, and has not been seen committed."""
        self.spec = spec
        self.id = started.id
        self.created = started.created

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id!r}>"

    async def result(self, *, timeout: Duration | None = None) -> R:
        """Wait until the workflow ends, and return what its function returned.

        Args:
            timeout: seconds or timedelta to wait; None (the default) waits for ever. It leaves the workflow alone.

        Raises:
            WorkflowFailed: it failed; WorkflowCancelled: it was cancelled; WorkflowTimedOut: its own deadline passed;
            or a class that its definition lists in `raises=`.
            ResultTimeout: `timeout` passed first. WorkflowNotFound: there is no such workflow.
            NotCommitted: the transaction in which it was started (`tx=`) is not committed.
            CodecError: its result cannot be decoded here.
        """
        row = await self._final_row(None if timeout is None else seconds(timeout, "result(timeout=)"))
        if row.status == "completed":
            result: R = self._decode(row.result or "null")
            return result
        raises = self.spec.raises if self.spec is not None else ()
        raise failures.rebuild_workflow(row.error or failures.note("Unknown", "no error was recorded"), self.id, raises)

    async def _final_row(self, timeout_s: float | None) -> WorkflowRow:
        connection = await self._connection()
        row = await self._row(connection)
        if row.finished_at is not None:
            return row
        final = await connection.outcome(self.id, timeout_s)
        if final is None:
            raise ResultTimeout(self.id, timeout_s or 0)
        return final

    async def _row(self, connection: Connection) -> WorkflowRow:
        try:
            row = await connection.row(self.id)
        except WorkflowNotFound:
            if self._is_within:
                raise NotCommitted(self.id) from None
            raise
        self._is_within = False
        return row

    async def _check_committed(self, connection: Connection) -> None:
        """Before a write: on SQLite it would wait for the very transaction that it depends on."""
        if self._is_within:
            await self._row(connection)

    async def _control(self, op: CancelOp | RetryOp) -> bool:
        connection = await self._connection()
        await self._check_committed(connection)
        return await connection.control(op)

    def _decode(self, text: str) -> Any:
        if isinstance(text, Undecodable):
            raise text.error()
        if self.spec is None:
            return msgspec.json.decode(text)
        return self.spec.result.decode(text)

    async def status(self) -> Status:
        """The status now: pending, running, waiting, completed, failed or cancelled."""
        return (await self._row(await self._connection())).status

    async def info(self) -> WorkflowInfo:
        """All that is known of the workflow, in one consistent read."""
        return WorkflowInfo.of(await self._row(await self._connection()))

    async def journal(self) -> list[JournalEntry]:
        """Its recorded entries in order, struck-out ones included."""
        connection = await self._connection()
        await self._row(connection)
        return [JournalEntry.of(row) for row in await connection.journal(self.id)]

    async def export(self) -> str:
        """Its history as a JSON document, for `onward.testing.replay`: arguments, journal, and the seed of its random
        numbers. Keep it as you would keep what the workflow was given and got. Raises CodecError where this client's codec
        cannot read a payload."""
        connection = await self._connection()
        row = await self._row(connection)
        journal = await connection.journal(self.id)
        return export_text(row, journal, await connection.store.seed(self.id) or "")

    async def cancel(self, *, tx: CallerConnection | None = None) -> bool:
        """Ask the workflow to end. One that never ran is cancelled at once; a running one gets CancelledError at its
        present await and may clean up. Returns False if it had ended already.

        Args:
            tx: your own open connection, whose transaction the request becomes part of: made once you commit, never if you
                roll back. See `AsyncClient.start`.
        """
        if tx is not None:
            return await self._transactions.cancel_async(tx, self.id)
        return await self._control(CancelOp(self.id))

    async def retry(self) -> bool:
        """Run a failed or cancelled workflow again from where its history does not yet force that end; the entries after
        that are struck out, on record. One that is backing off runs now. Returns False if it has completed."""
        return await self._control(RetryOp(self.id))


class Handle(Generic[R]):
    """One workflow, for blocking code. Get one from `Client.start` or `Client.handle`.

    Attributes:
        id: the workflow's id.
        created: whether the `start` that gave this handle made the workflow; False where it existed before.
    """

    __slots__ = ("__weakref__", "_call", "_inner", "created", "id")

    def __init__(self, inner: AsyncHandle[R], call: Callable[[Callable[[], Coroutine[Any, Any, Any]]], Any]) -> None:
        self._inner = inner
        self._call = call
        self.id = inner.id
        self.created = inner.created

    def __repr__(self) -> str:
        return f"<Handle {self.id!r}>"

    async def _check_committed(self, connection: Connection) -> None:
        await self._inner._check_committed(connection)

    def result(self, *, timeout: Duration | None = None) -> R:
        """Block until the workflow ends, and return its result; see `AsyncHandle.result`."""
        result: R = self._call(lambda: self._inner.result(timeout=timeout))
        return result

    def status(self) -> Status:
        """The status now; see `AsyncHandle.status`."""
        status: Status = self._call(self._inner.status)
        return status

    def info(self) -> WorkflowInfo:
        """All that is known of the workflow; see `AsyncHandle.info`."""
        info: WorkflowInfo = self._call(self._inner.info)
        return info

    def journal(self) -> list[JournalEntry]:
        """Its recorded entries in order; see `AsyncHandle.journal`."""
        entries: list[JournalEntry] = self._call(self._inner.journal)
        return entries

    def export(self) -> str:
        """Its history as a JSON document; see `AsyncHandle.export`."""
        return str(self._call(self._inner.export))

    def cancel(self, *, tx: CallerConnection | None = None) -> bool:
        """Ask the workflow to end; see `AsyncHandle.cancel`."""
        if tx is not None:
            return self._inner._transactions.cancel(tx, self.id)
        return bool(self._call(self._inner.cancel))

    def retry(self) -> bool:
        """Run a failed or cancelled workflow again; see `AsyncHandle.retry`."""
        return bool(self._call(self._inner.retry))


__all__ = ["AsyncHandle", "Handle"]

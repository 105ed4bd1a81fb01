"""A client's writes in the transactions of its callers (`tx=`), on the caller's own thread or loop.

Made by the clients, used by them and by their handles. It keeps no connection of its own: the statements come from the store of
the client's URL, which is not open, and are carried out by an adapter of the caller's driver (`_store/within/`). So it works
while the caller holds the database's only writer, and after a fork.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast
from weakref import WeakKeyDictionary

from onward._requests import refuse_in_workflow
from onward._store.base import Clock
from onward._store.coded import coded
from onward._store.opening import open_store
from onward._store.operations import AlreadyFinal, CancelOp, NotFound, Outcome
from onward._store.scripts import run, run_async
from onward._store.within.base import CallerConnection, CallerOp, WritesWithin
from onward._store.within.kinds import async_caller, blocking_caller
from onward.codec import Codec
from onward.errors import ConfigurationError, WorkflowNotFound

_turns: WeakKeyDictionary[object, asyncio.Lock] = WeakKeyDictionary()
"""Calls that share an async connection (`gather`) write one after the other: their savepoints must not cross."""


class CallersTransactions:
    """Writes for one client.

    Args:
        url: the client's database.
        codec: what its payloads are stored with, if anything.
        clock: the time of a database that has none of its own (tests move it).
    """

    def __init__(self, url: str, *, codec: Codec | None = None, clock: Clock | None = None) -> None:
        self._url = url
        self._codec = codec
        self._clock = clock
        self._unopened: WritesWithin | None = None

    @property
    def database(self) -> str:
        """The client's database, for messages."""
        return self._store().url

    def write(self, tx: CallerConnection, ops: Sequence[CallerOp]) -> list[Outcome]:
        """Write in the transaction of a blocking connection, on this thread: all of `ops`, or none if one is refused."""
        refuse_in_workflow()
        store, caller = self._store(), blocking_caller(tx)
        return run(store.write_within(ops, caller), caller.execute)

    async def write_async(self, tx: CallerConnection, ops: Sequence[CallerOp]) -> list[Outcome]:
        """Write in the transaction of an async connection, on this loop: all of `ops`, or none if one is refused."""
        refuse_in_workflow()
        store, caller = self._store(), await async_caller(tx)
        async with _turns.setdefault(caller.connection, asyncio.Lock()):
            return await run_async(store.write_within(ops, caller), caller.execute)

    def cancel(self, tx: CallerConnection, workflow_id: str) -> bool:
        """Ask a workflow to end; False if it had ended already."""
        return self._is_asked(workflow_id, self.write(tx, [CancelOp(workflow_id)]))

    async def cancel_async(self, tx: CallerConnection, workflow_id: str) -> bool:
        """As `cancel`."""
        return self._is_asked(workflow_id, await self.write_async(tx, [CancelOp(workflow_id)]))

    def _is_asked(self, workflow_id: str, outcomes: list[Outcome]) -> bool:
        if isinstance(outcomes[0], NotFound):
            raise WorkflowNotFound(workflow_id, self.database)
        return not isinstance(outcomes[0], AlreadyFinal)

    def forget_store(self) -> None:
        """In a forked child: its locks may have been held by a thread of the parent."""
        self._unopened = None

    def _store(self) -> WritesWithin:
        if self._unopened is None:
            store = coded(open_store(self._url, self._clock), self._codec)
            if not hasattr(store, "write_within"):
                raise ConfigurationError(
                    f"{store.url} cannot write in a caller's transaction: tx= works with SQLite files and PostgreSQL"
                )
            self._unopened = cast("WritesWithin", store)
        return self._unopened

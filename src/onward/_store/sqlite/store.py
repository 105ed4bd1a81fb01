"""The Store on one SQLite file. Only wiring: each duty is a function in its own file, run on the writer or on a reader.

One writer thread holds every write of this store object, in the order of the calls; two readers serve the rest. All of them
begin with the first call. A forked child must drop the object without closing it and open a new one.
"""

from __future__ import annotations

import asyncio
import contextvars
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar, cast

from onward._store.base import Clock
from onward._store.diagnosis import Diagnosis, Removal
from onward._store.operations import APPLIED, LEASE_LOST, Fence, JournalOp, Op, Outcome
from onward._store.pruning import PruneBatch, PruneRequest
from onward._store.records import Claimed, ClaimRequest, Inbox, Loaded
from onward._store.scripts import Script
from onward._store.sqlite import claims, diagnosis, flush, mailbox, migrations, pruning, removal
from onward._store.sqlite.connection import absolute, check_file_system, check_place, check_version, connect
from onward._store.sqlite.database import Database, Probe
from onward._store.sqlite.journal import apply_batch
from onward._store.sqlite.leases import SqliteLeases
from onward._store.sqlite.migrations import check_exists, ensure_schema, url_of
from onward._store.sqlite.reads import SqliteReads
from onward._store.sqlite.steps import StepConnection, refuse_inside_step, run_step
from onward._store.sqlite.threads import JobThreads
from onward._store.sqlite.transfer import SqliteTransfer, check_serving
from onward._store.sqlite.within import write_within
from onward._store.within.base import Caller, CallerOp

T = TypeVar("T")
READERS = 2


class SqliteStore(SqliteReads):
    """See base.Store."""

    def __init__(self, path: str | Path, *, clock: Clock | None = None, probe: Probe | None = None) -> None:
        self._database = Database(absolute(path), clock=clock, probe=probe)
        self.url = url_of(self._database)
        self.now_us = self._database.now_us  # asked several times for each step
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ends: set[Callable[[], None]] = set()
        self._create_file = False
        name = self._database.name
        self._writer = JobThreads(
            "onward-writer", name, 1, lambda: self._database.connect_writer(create=self._create_file)
        )
        self._flushes = flush.Flushes(self._database, self._writer)
        self._readers = JobThreads("onward-reader", name, READERS, lambda: connect(self._database.path, read_only=True))

    # --- life ---

    async def open(self, *, migrate: bool = True) -> None:
        """Connect and check the schema. With `migrate=False` a missing file is an error and stays missing."""
        check_version()
        path = self._database.path
        check_place(path, create=migrate)
        check_file_system(path)
        if not migrate:
            check_exists(self._database)
        self._loop = asyncio.get_running_loop()
        self._create_file = migrate
        try:
            if not migrate:  # a file that is not ours is left exactly as it is, its journal mode included
                await self._readers.call(lambda conn: ensure_schema(conn, self._database, migrate=False))
            await self._writer.call(lambda conn: ensure_schema(conn, self._database, migrate=migrate))
        except BaseException:
            await self.close()
            raise
        self._create_file = False

    async def close(self) -> None:
        """Close every connection and thread; idempotent."""
        for end in list(self._ends):
            end()
        await self._writer.close()
        await self._readers.close()

    def check_caller(self) -> None:
        """A transactional body holds this file's only writer."""
        refuse_inside_step(self._database.path)

    async def _write(self, job: Callable[[sqlite3.Connection], T]) -> T:
        refuse_inside_step(self._database.path)
        return await self._writer.call(job)

    # --- writes and what workers read ---

    async def write(self, batch: Sequence[Op], *, retry: bool = False) -> list[Outcome]:
        """Apply the operations in one transaction."""
        if not batch:
            return []
        refuse_inside_step(self._database.path)
        plain = None if retry else flush.prepare(batch)
        if plain is not None and await self._flushes.write(plain):
            return [APPLIED] * len(batch)

        def apply(conn: sqlite3.Connection, now: int) -> list[Outcome]:
            outcomes = apply_batch(conn, batch, retry=retry, now=now)
            if LEASE_LOST in outcomes:
                check_serving(conn, self._database)
            return outcomes

        is_news = any(type(op) is not JournalOp for op in batch)
        return await self._write(lambda conn: self._database.transaction(conn, "write", apply, is_news=is_news))

    async def run_transaction(
        self,
        fence: Fence,
        body: Callable[[sqlite3.Connection], T],
        finish: Callable[[T], JournalOp],
        *,
        limit_s: float = 5.0,
        context: contextvars.Context | None = None,
    ) -> T:
        """Run `body(connection)` and record `finish(its result)` in one transaction; SQLite only.

        Both run on the writer thread, `body` in `context` (default: a copy of the caller's). The execution's earlier entries
        must be committed, and its next ones wait: `finish` numbers the entry.
        Raises LeaseLost (nothing ran, or all was rolled back), TransactionTimedOut, StoreError before or at the commit
        (after OutcomeUnknown look into the journal: the entry is there exactly if the body's writes are), and whatever the
        body raised, as it is.
        """
        chosen = context if context is not None else contextvars.copy_context()

        def job(_: sqlite3.Connection) -> tuple[T, None] | tuple[None, sqlite3.Error]:
            try:
                return run_step(self._database, fence, body, finish, limit_s, chosen), None
            except sqlite3.Error as error:
                return None, error  # the body's own: an error that escapes a job counts as the store's

        result, error = await self._write(job)
        if error is not None:
            raise error
        return cast(T, result)

    def write_within(self, ops: Sequence[CallerOp], caller: Caller) -> Script[list[Outcome]]:
        """See within.base.WritesWithin."""
        if not isinstance(caller.connection, StepConnection):
            refuse_inside_step(self._database.path)
        return write_within(self._database, ops, caller)

    async def claim(self, request: ClaimRequest) -> list[Claimed]:
        """Take due rows."""
        return await self._write(lambda conn: claims.claim(conn, self._database, request))

    async def reconcile(self, worker_id: str, held: Sequence[tuple[str, int]]) -> list[str]:
        """Release what this worker has and does not hold."""
        return await self._write(lambda conn: claims.reconcile(conn, self._database, worker_id, held))

    async def adopt_diverged(self, code_version: str) -> int:
        """Make rows due that this code version has not tried yet."""
        return await self._write(lambda conn: claims.adopt_diverged(conn, self._database, code_version))

    async def prune(self, request: PruneRequest) -> PruneBatch:
        """Delete a part of what is old."""
        step = await self._readers.call(lambda conn: pruning.look(conn, request))
        if isinstance(step, PruneBatch):
            return step

        def carry_out(conn: sqlite3.Connection, now: int) -> PruneBatch:
            return pruning.carry_out(conn, step, request)

        return await self._write(lambda conn: self._database.transaction(conn, "prune", carry_out, is_news=False))

    async def load(self, workflow_ids: Sequence[str]) -> list[Loaded]:
        """Histories, mail and retry states."""
        return await self._readers.call(lambda conn: claims.load(conn, workflow_ids))

    async def signals(self, worker_id: str) -> dict[str, int]:
        """`signals` of this worker's running rows."""
        return await self._readers.call(lambda conn: mailbox.read_signals(conn, worker_id))

    async def mail(self, wanted: Sequence[tuple[str, int]]) -> list[Inbox]:
        """Newer mail of held workflows."""
        return await self._readers.call(lambda conn: mailbox.read_mail(conn, wanted))

    async def next_due(
        self,
        queues: Sequence[str],
        types: Sequence[str],
        code_version: str,
        only: Sequence[str] | None = None,
        *,
        alone: bool | None = False,
    ) -> int | None:
        """The earliest time at which a row is claimable."""
        return await self._readers.call(
            lambda conn: claims.next_due(conn, self._database, queues, types, code_version, only, alone=alone)
        )

    def subscribe(self, notify: Callable[[], None]) -> Callable[[], None]:
        """Call `notify` on this loop soon after a commit of any process."""
        unsubscribe = self._database.shared.hub.subscribe(self._loop or asyncio.get_running_loop(), notify)
        self._ends.add(unsubscribe)

        def end() -> None:
            self._ends.discard(unsubscribe)
            unsubscribe()

        return end

    async def check_serving(self) -> None:
        """Whether the workflows are here."""
        await self._readers.call(lambda conn: check_serving(conn, self._database))

    def transfer(self) -> SqliteTransfer:
        """This file as a side of a move."""
        return SqliteTransfer(self._database)

    def leases(self) -> SqliteLeases:
        """The lease thread's connection, opened by its first call."""
        return SqliteLeases(self._database)

    # --- for operators ---

    async def diagnose(self, *, thorough: bool = False) -> Diagnosis:
        """Look at the file."""
        return await asyncio.to_thread(diagnosis.diagnose, self._database, thorough=thorough)

    def schema_sql(self) -> str:
        """The statements that make the schema."""
        return migrations.schema_sql()

    def roles_sql(self) -> str:
        """A file has no roles: the operating system says who may read it."""
        return ""

    async def drop_schema(self, *, force: bool = False) -> Removal:
        """Remove Onward's tables and lock files from the file."""
        return await asyncio.to_thread(removal.drop_schema, self._database, force=force)

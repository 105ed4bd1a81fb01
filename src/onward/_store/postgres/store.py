"""The Store on a schema of a PostgreSQL database. Only wiring: each duty is a function in its own file, run on a session.

A worker's connections: the committer's, the claims', one that tells and hears notifications, two for reads, and the lease
thread's own; transactional steps and prunings open theirs. All begin with the first call that needs them, and again after a
loss. A forked child must drop the object without closing it and open a new one.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from onward._store.base import Clock
from onward._store.diagnosis import Diagnosis, Removal
from onward._store.operations import Fence, JournalOp, Op, Outcome
from onward._store.postgres import claims, diagnosis, mailbox, pruning, removal
from onward._store.postgres.address import parse_address
from onward._store.postgres.database import Database
from onward._store.postgres.floors import Floors
from onward._store.postgres.hub import Hub
from onward._store.postgres.journal import write
from onward._store.postgres.leases import PostgresLeases
from onward._store.postgres.listener import Listener
from onward._store.postgres.migrations import ensure_schema, schema_sql
from onward._store.postgres.pool import SessionPool
from onward._store.postgres.reads import PostgresReads
from onward._store.postgres.roles import roles_sql
from onward._store.postgres.session import Session
from onward._store.postgres.statements import as_json
from onward._store.postgres.steps import LIMIT_S, StepRunner
from onward._store.postgres.transfer import PostgresTransfer, check_serving
from onward._store.postgres.within import CallersWrites
from onward._store.pruning import PruneBatch, PruneRequest
from onward._store.records import Claimed, ClaimRequest, Inbox, Loaded
from onward._store.scripts import Script
from onward._store.within.base import Caller, CallerOp

T = TypeVar("T")
READERS = 2
NEWSLESS = frozenset({JournalOp})
"""Operations that make nothing due and end nothing."""


class PostgresStore(PostgresReads):
    """See base.Store."""

    transaction_limit_s = LIMIT_S
    """How long a transactional body may take where its step names no time-out."""

    def __init__(self, url: str, *, clock: Clock | None = None, probe: Callable[[str], None] | None = None) -> None:
        self._database = Database(parse_address(url), clock=clock, probe=probe)
        self.url = self._database.name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ends: set[Callable[[], None]] = set()
        self._committer = Session(self._database)
        self._claims = Session(self._database)
        self._pruner = Session(self._database)
        self._readers = SessionPool(self._database, READERS)
        self._listener = Listener(self._database)
        self._hub = Hub(self._database, self._listener.session)
        self._steps = StepRunner(self._database)
        self._floors = Floors(self._hub.heard)
        self._callers = CallersWrites(self._database)

    # --- life ---

    async def open(self, *, migrate: bool = True) -> None:
        """Connect and check the schema: migrate it if allowed, else raise SchemaError."""
        self._loop = asyncio.get_running_loop()
        try:
            await ensure_schema(self._database, migrate=migrate)
            async with self._readers.session() as session:
                self._database.observe((await session.run([self._database.sql["read_clock"].bind()]))[0])
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close every connection and thread; idempotent."""
        for end in list(self._ends):
            end()
        await self._floors.close()
        await self._hub.close()
        await self._listener.close()
        await self._committer.close()
        await self._claims.close()
        await self._pruner.close()
        await self._readers.close()
        await self._steps.close()

    def now_us(self) -> int:
        """The server's clock, from below, never falling."""
        return self._database.now_us()

    def check_caller(self) -> None:
        """Nobody holds the only writer: a body's transaction locks its own rows only."""

    # --- writes and what workers read ---

    async def write(self, batch: Sequence[Op], *, retry: bool = False) -> list[Outcome]:
        """Apply the operations, in one transaction where nobody else is in the way."""
        if not batch:
            return []
        probe = self._database.probe
        probe("write:before-commit")
        outcomes = await write(self._committer, self._database, batch, retry=retry)
        probe("write:after-commit")
        self._hub.publish(is_news=any(type(op) not in NEWSLESS for op in batch))
        return outcomes

    async def run_transaction(
        self,
        fence: Fence,
        body: Callable[[Any], Any],
        finish: Callable[[Any], JournalOp],
        *,
        limit_s: float = LIMIT_S,
        context: contextvars.Context | None = None,
        is_async: bool = False,
    ) -> Any:
        """Run `body(connection)` and record `finish(its result)` in one transaction; see steps.py."""
        result = await self._steps.run(fence, body, finish, limit_s=limit_s, context=context, is_async=is_async)
        self._hub.publish()
        return result

    def write_within(self, ops: Sequence[CallerOp], caller: Caller) -> Script[list[Outcome]]:
        """See within.base.WritesWithin."""
        return self._callers.write(ops, caller)

    async def claim(self, request: ClaimRequest) -> list[Claimed]:
        """Take due rows."""
        probe = self._database.probe
        probe("claim:before-commit")
        claimed = await claims.claim(self._claims, self._readers, self._database, self._floors, request)
        probe("claim:after-commit")
        return claimed

    async def reconcile(self, worker_id: str, held: Sequence[tuple[str, int]]) -> list[str]:
        """Release what this worker has and does not hold."""
        probe = self._database.probe
        probe("reconcile:before-commit")
        released = await claims.reconcile(self._claims, self._database, worker_id, held)
        probe("reconcile:after-commit")
        self._hub.publish(is_news=bool(released))
        return released

    async def adopt_diverged(self, code_version: str) -> int:
        """Make rows due that this code version has not tried yet."""
        probe = self._database.probe
        probe("adopt:before-commit")
        count = await claims.adopt_diverged(self._claims, self._database, code_version)
        probe("adopt:after-commit")
        self._hub.publish(is_news=count > 0)
        return count

    async def prune(self, request: PruneRequest) -> PruneBatch:
        """Delete finished trees; see pruning.py."""
        return await pruning.prune(self._pruner, self._database, request)

    async def load(self, workflow_ids: Sequence[str]) -> list[Loaded]:
        """Histories, mail and retry states."""
        async with self._readers.session() as session:
            return await claims.load(session, self._database, workflow_ids)

    async def signals(self, worker_id: str) -> dict[str, int]:
        """`signals` of this worker's running rows."""
        return mailbox.decode_signals(await self._ask("read_signals", worker=worker_id))

    async def mail(self, wanted: Sequence[tuple[str, int]]) -> list[Inbox]:
        """Newer mail of held workflows."""
        return mailbox.decode_mail(await self._ask("read_mail", wanted=as_json(wanted)))

    async def _ask(self, name: str, **values: Any) -> bytes | None:
        calls, place = self._database.whole([self._database.sql[name].bind(**values)])
        async with self._readers.session() as session:
            return (await session.run(calls))[place][0]

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
        return await claims.next_due(
            self._claims, self._database, self._floors, queues, types, code_version, only, alone=alone
        )

    def subscribe(self, notify: Callable[[], None]) -> Callable[[], None]:
        """Call `notify` on this loop soon after a commit of any process."""
        unsubscribe = self._hub.subscribe(self._loop or asyncio.get_running_loop(), notify)
        self._listener.start(self._hub)
        self._ends.add(unsubscribe)

        def end() -> None:
            self._ends.discard(unsubscribe)
            unsubscribe()

        return end

    async def check_serving(self) -> None:
        """Whether the workflows are here."""
        async with self._readers.session() as session:
            await check_serving(session, self._database)

    def transfer(self) -> PostgresTransfer:
        """This schema as a side of a move."""
        return PostgresTransfer(self._database)

    def leases(self) -> PostgresLeases:
        """The lease thread's connection, opened by its first call."""
        return PostgresLeases(self._database)

    # --- upkeep ---

    async def diagnose(self, *, thorough: bool = False) -> Diagnosis:
        """Look at everything that could be wrong."""
        return await diagnosis.diagnose(self._database, thorough=thorough)

    def schema_sql(self) -> str:
        """The statements that make the schema in an empty database."""
        return schema_sql(self._database)

    def roles_sql(self) -> str:
        """Roles with as few rights as their work needs."""
        return roles_sql(self._database.address.schema, self._database.address.quoted_schema)

    async def drop_schema(self, *, force: bool = False) -> Removal:
        """Remove Onward's own tables, views and functions, and the schema if nothing else is in it."""
        return await removal.drop_schema(self._database, force=force)

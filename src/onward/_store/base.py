"""The protocols that a database has to fulfil to be a store; the contract that tests/conformance checks.

Who calls what: the committer calls `write`; the dispatcher `claim`, `load`, `mail`, `next_due`, `reconcile`; the lease
thread uses `Leases` on a connection of its own; people (client, handle, CLI, dashboard) use `Reads`. A store never decides
when to try again: it raises one of the four kinds of `StoreError`, and the callers decide.

Wake-up rule (all stores): whoever wakes a workflow inserts its mail and, unconditionally in the same transaction, sets
`signals = signals + 1`; a row that is `waiting`, or `pending` with `waiting_for` not null (asleep), becomes `pending` now.
Rows delayed or backing off are not pulled forward (a cancel or an operator's retry does).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from onward._store.operations import Op, Outcome
from onward._store.records import (
    Claimed,
    ClaimRequest,
    Filter,
    Inbox,
    JournalRow,
    Loaded,
    WorkerRow,
    WorkflowRow,
)


class Clock(Protocol):
    """Where the time of a database that has no clock of its own comes from."""

    def now_us(self) -> int:
        """Microseconds since 1970 UTC."""
        ...


class TransactionTimedOut(TimeoutError):
    """A transactional body held its transaction for longer than its limit; it was rolled back."""


class Reads(Protocol):
    """Reads for people: consistent within one call, never locking, never creating anything."""

    async def get(self, workflow_id: str) -> WorkflowRow | None:
        """One workflow, or None."""
        ...

    async def outcomes(self, workflow_ids: Sequence[str]) -> list[WorkflowRow]:
        """Those of these workflows that are final."""
        ...

    async def journal(self, workflow_id: str) -> list[JournalRow]:
        """All entries in seq order, struck-out ones included."""
        ...

    async def children(self, workflow_id: str) -> list[WorkflowRow]:
        """Direct children, oldest first."""
        ...

    async def counts(self) -> dict[str, int]:
        """Number of workflows by status."""
        ...

    async def workers(self) -> list[WorkerInfo]:
        """Every worker row, dead ones included, newest first."""
        ...

    async def list(self, filter: Filter) -> list[WorkflowRow]:
        """A page, newest first by (created_at, id). (Last here: below it, `list` means this method.)"""
        ...


class WorkerInfo(WorkerRow, frozen=True, kw_only=True):
    """A worker's row as people read it."""

    started_at: int
    expires_at: int
    is_dead: bool


class Leases(Protocol):
    """The lease thread's own connection; blocking calls. Used by one thread only."""

    def register(self, worker: WorkerRow, lease_us: int) -> None:
        """Insert the worker's row, its lease running from now, and take what proves this process alive (a lock file)."""
        ...

    def renew(self, worker_id: str, lease_us: int) -> bool:
        """Extend the lease by the database's clock. False: the row is dead or gone, and the worker must take a new id."""
        ...

    def retire(self, worker_id: str) -> None:
        """Remove the worker's row after a graceful stop and give up the proof of life. Its running rows, if any, stay for
        the sweep."""
        ...

    def bury(self, worker_id: str) -> int:
        """Find dead workers (never `worker_id` itself), mark each `dead` under its expiry or free-lock condition, and
        release their running rows and those whose worker is absent: `crashes` + 1, `pending` now, `worker` null, or
        `failed` where crashes reach the limit (4, of which the last two ran alone). Returns how many rows were released.
        """
        ...

    def close(self) -> None:
        """Close the connection; locks held as proof of life are given up."""
        ...


class Store(Reads, Protocol):
    """One database. Bound to the event loop that called `open`."""

    url: str
    """Absolute, for people; never with a password."""

    async def open(self, *, migrate: bool = True) -> None:
        """Connect and check the schema: migrate it if allowed, else raise `SchemaError`."""
        ...

    async def close(self) -> None:
        """Close every connection and thread; idempotent."""
        ...

    def now_us(self) -> int:
        """A lower bound of the database's clock, never falling."""
        ...

    def check_caller(self) -> None:
        """Raise InTransactionalStep where a write for this caller would wait for the caller's own transaction. A client
        asks before it queues a write: its committer, which calls `write`, runs in no caller's context."""
        ...

    async def write(self, batch: Sequence[Op], *, retry: bool = False) -> list[Outcome]:
        """Apply the operations in one transaction and return their outcomes, in order, after the commit.

        `retry`: an earlier write of these operations ended with `OutcomeUnknown`; lock the same rows, look what is there
        and write only what is missing. A journal entry with equal content counts as written; a row with the same epoch
        and no worker counts as parked, finished, failed or released.
        Raises StoreError: nothing was written (Transient, Conflict, Fatal), or perhaps all of it (OutcomeUnknown).
        """
        ...

    async def claim(self, request: ClaimRequest) -> list[Claimed]:
        """Atomically take up to `limit` due rows of one queue, best priority first, then by (next_run_at, id): `running`,
        `worker`, epoch + 1, `next_run_at`, `waiting_for` null; `started_at`, `version` and `code_version` are set by the
        first claim only, and so is `deadline` (its time + `timeout_us`), by the first one after an operator's retry anew.
        Rows locked by others are skipped, and so are those that `request.code_version` could not replay, until its
        back-off (`ReleaseOp.diverged_by`) ends. Nothing is claimed for a worker that is dead or not registered. After an
        unknown commit the rows come back through `reconcile`.
        """
        ...

    async def load(self, workflow_ids: Sequence[str]) -> list[Loaded]:
        """History, mail and retry states, by a statement begun after the claim has committed."""
        ...

    async def signals(self, worker_id: str) -> dict[str, int]:
        """`signals` of every running row of this worker."""
        ...

    async def mail(self, wanted: Sequence[tuple[str, int]]) -> list[Inbox]:
        """For each (workflow id, last mail id known): the row's epoch and signals, and its newer mail in order."""
        ...

    async def next_due(
        self,
        queues: Sequence[str],
        types: Sequence[str],
        code_version: str,
        only: Sequence[str] | None = None,
        *,
        alone: bool = False,
    ) -> int | None:
        """The earliest `next_run_at` among the rows that `claim` with the same `code_version`, `only` and `alone` could
        take, due or not; None if there is none. A row that is due, but held back from this code version after a
        divergence, counts with the end of that back-off: what is reported as due, `claim` gives."""
        ...

    async def reconcile(self, worker_id: str, held: Sequence[tuple[str, int]]) -> list[str]:
        """Release running rows of this worker that are not among the (id, epoch) it holds; returns their ids."""
        ...

    async def adopt_diverged(self, code_version: str) -> int:
        """Make pending rows that another code version could not replay due now; returns how many."""
        ...

    def subscribe(self, notify: Callable[[], None]) -> Callable[[], None]:
        """Call `notify` on the store's loop, coalesced, soon after anyone (any process) has committed; returns what ends
        the subscription. A hint only: callers also look by themselves from time to time."""
        ...

    def leases(self) -> Leases:
        """A new connection for the lease thread (opened lazily there)."""
        ...

"""The protocols that a database has to fulfil to be a store; the contract that tests/conformance checks.

Who calls what: the committer calls `write`; the dispatcher `claim`, `load`, `mail`, `next_due`, `reconcile`; the lease
thread uses `Leases` on a connection of its own; people (client, handle, CLI, dashboard) use `Reads`, operators `Upkeep`. A
store never decides when to try again: it raises one of the four kinds of `StoreError`, and the callers decide.

Wake-up rule (all stores): whoever wakes a workflow inserts its mail and, unconditionally in the same transaction, sets
`signals = signals + 1`; a row that is `waiting`, or `pending` with `waiting_for` not null (asleep), becomes `pending` now.
Rows delayed or backing off are not pulled forward (a cancel or an operator's retry does).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from onward._store.diagnosis import Diagnosis, Removal
from onward._store.operations import Op, Outcome
from onward._store.pruning import PruneBatch, PruneRequest
from onward._store.records import (
    Claimed,
    ClaimRequest,
    Filter,
    Inbox,
    JournalRow,
    Loaded,
    WorkerInfo,
    WorkerRow,
    WorkflowRow,
)
from onward._store.transfer import Key, Place, Position, Row, Table


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

    async def seed(self, workflow_id: str) -> str | None:
        """The seed of one workflow's random numbers, for an export of its history; None where there is no such workflow. It
        is secret: nothing shows it otherwise."""
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


class Upkeep(Protocol):
    """What operators do with a database (`onward doctor`, `onward migrate`). Each call works on a store that is not open, by
    connections of its own, and on a database in any state."""

    async def diagnose(self, *, thorough: bool = False) -> Diagnosis:
        """Look at everything that could be wrong; `work` is read from one snapshot. Creates, migrates and changes nothing,
        and no writer waits for it. What cannot be looked at is a finding; only a database that is not there raises
        ConfigurationError. `thorough`: also look at what may take minutes."""
        ...

    def schema_sql(self) -> str:
        """The statements that make the schema in an empty database, its record in the migrations table included."""
        ...

    def roles_sql(self) -> str:
        """A script of roles with as few rights as their work needs; empty where the database has no roles."""
        ...

    async def drop_schema(self, *, force: bool = False) -> Removal:
        """Remove Onward's own tables and views in one transaction, and what lies beside the database (lock files); nothing
        else, whatever its name. Where a worker is alive nothing is removed, unless `force`. Without a schema there is
        nothing to do. Raises SchemaError for a missing database, or a schema that a newer library made."""
        ...


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


class Transfer(Protocol):
    """One side of a move to another database (`onward copy`, `_engine/moving.py`), by connections of its own.

    From `fence_source` on, and on a target from `mark_target` to `open_target`, the database itself refuses every write of
    whomever, old libraries, callers' transactions and plain SQL included: StoreMoved, StoreImporting. Each method is one
    transaction, and doing it again changes nothing. All raise StoreError; a mark that is not there or is another copy's is a
    ConfigurationError.
    """

    async def look(self, *, counts: bool = True) -> Place:
        """The marks and what is there; changes nothing. Raises SchemaError unless the schema is exactly this library's."""
        ...

    async def mark_target(self, copy_id: str, source_url: str) -> None:
        """Take an empty database for a copy. Raises ConfigurationError where it is not empty, or already taken."""
        ...

    async def fence_source(self, copy_id: str, target_url: str) -> None:
        """End all work here: what runs becomes pending now, every execution's epoch rises, all later writes are refused. What is
        half deleted by a pruning is deleted. Waits a little for open transactions; TransientStoreError if they do not end."""
        ...

    async def read_rows(self, table: Table, after: Key, *, limit: int, size: int) -> list[Row]:
        """The rows behind a key in order of the key: at most `limit`, and no more once they weigh `size`."""
        ...

    async def write_rows(
        self, copy_id: str, table: Table, rows: Sequence[Row], *, before: Position | None, after: Position
    ) -> None:
        """Write a batch into the target and move its position from `before` to `after`. Raises StoreConflict for a value that
        this database cannot hold."""
        ...

    async def open_target(self, copy_id: str, mail_id: int) -> None:
        """End the copy: writes are accepted, and ids of mail are given above `mail_id`."""
        ...

    async def note_end(self, copy_id: str) -> None:
        """Note on the source that its target is open."""
        ...

    async def empty_target(self, copy_id: str) -> None:
        """Give up a copy that is not open: delete its rows and its mark."""
        ...

    async def unfence_source(self, copy_id: str) -> None:
        """Give up a copy whose target is not open and never will be: writes are accepted again."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


class Store(Reads, Upkeep, Protocol):
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
        alone: bool | None = False,
    ) -> int | None:
        """The earliest `next_run_at` among the rows that `claim` with the same `code_version`, `only` and `alone` could
        take, due or not; None if there is none. `alone=None`: by either kind of claim. A row that is due, but held back from
        this code version after a divergence, counts with the end of that back-off: what is reported as due, `claim` gives."""
        ...

    async def reconcile(self, worker_id: str, held: Sequence[tuple[str, int]]) -> list[str]:
        """Release running rows of this worker that are not among the (id, epoch) it holds; returns their ids."""
        ...

    async def adopt_diverged(self, code_version: str) -> int:
        """Make pending rows that another code version could not replay due now; returns how many."""
        ...

    async def prune(self, request: PruneRequest) -> PruneBatch:
        """Delete finished trees, oldest first; a bounded part of the work, for a caller who calls again with `after`.

        A tree is a workflow without parent and all that descends from it. It is deleted if its root has one of the wanted
        statuses and types and every workflow in it is final and finished before `before`; that is checked again under the
        locks of the deletion, so that an operator's retry or the deletion wins, never both. All of it goes: rows, journals,
        mail, step retries, waiters (whoever waits, and whoever is waited for). No child goes while its tree stays, and the
        root goes last or together with all others: not before then is its id new again.

        Each transaction is short: it deletes at most `limit` parts, locks rows in order of id, and passes over what others
        have locked. A larger tree either goes in one transaction all the same, where no writer has to wait for that, or in
        several: nothing in it can be retried then (`NotFound`) from before the first of them on, and a pruning that was
        interrupted is taken up by the next one, of any caller. A dry run writes nothing and counts whole trees.
        Idempotent: after an OutcomeUnknown it is simply called again.
        """
        ...

    def subscribe(self, notify: Callable[[], None]) -> Callable[[], None]:
        """Call `notify` on the store's loop, coalesced, soon after anyone (any process) has committed; returns what ends
        the subscription. A hint only: callers also look by themselves from time to time."""
        ...

    async def check_serving(self) -> None:
        """Raise StoreMoved or StoreImporting where nothing will happen here any more, or yet. Every write tells by itself."""
        ...

    def transfer(self) -> Transfer:
        """This database as one side of a move. The store need not be open. Raises ConfigurationError where it cannot be."""
        ...

    def leases(self) -> Leases:
        """A new connection for the lease thread (opened lazily there)."""
        ...

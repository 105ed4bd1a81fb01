"""The Store in memory. Everything happens at once, under one lock (the lease thread is another thread).

`memory://` is a database of its own for each store; `memory://name` is shared by all stores of that name in this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn, TypeAlias

import msgspec

from onward._store.base import Clock
from onward._store.clock import SteadyClock
from onward._store.diagnosis import Diagnosis, Removal
from onward._store.memory.database import MemoryDatabase, give_back
from onward._store.memory.facts import read_work, worker_info
from onward._store.memory.leases import MemoryLeases
from onward._store.memory.pruning import prune
from onward._store.memory.state import Row
from onward._store.memory.transitions import Transaction
from onward._store.operations import Op, Outcome
from onward._store.pruning import PruneBatch, PruneRequest
from onward._store.records import (
    JOURNAL_FORMAT,
    Claimed,
    ClaimRequest,
    Filter,
    Inbox,
    JournalRow,
    Loaded,
    WorkerInfo,
    WorkflowRow,
)
from onward._store.subscriber import Subscriber
from onward._store.verdicts import QUARANTINE_CRASHES
from onward.errors import ConfigurationError, FatalStoreError

Rows: TypeAlias = list[WorkflowRow]


_named: weakref.WeakValueDictionary[str, MemoryDatabase] = weakref.WeakValueDictionary()


class MemoryStore:
    """See base.Store."""

    def __init__(
        self, name: str = "", *, clock: Clock | None = None, probe: Callable[[str], None] | None = None
    ) -> None:
        self._probe = probe or _no_probe
        self._database = _named.setdefault(name, MemoryDatabase()) if name else MemoryDatabase()
        self._clock = SteadyClock(clock)
        self._is_open = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ends: set[Callable[[], None]] = set()
        self.url = f"memory://{name}"

    async def open(self, *, migrate: bool = True) -> None:
        """Nothing to migrate."""
        self._loop = asyncio.get_running_loop()
        self._is_open = True

    async def close(self) -> None:
        """End the subscriptions; idempotent."""
        self._is_open = False
        for end in list(self._ends):
            end()

    def now_us(self) -> int:
        """The machine's clock, never falling."""
        return self._clock.now_us()

    def check_caller(self) -> None:
        """There are no transactional steps."""

    @contextlib.contextmanager
    def _open_database(self, *, is_write: bool = False) -> Iterator[MemoryDatabase]:
        """The database under its lock; after a write the subscribers are told."""
        if not self._is_open:
            raise FatalStoreError(f"the store {self.url} is closed; open it first")
        with self._database.lock:
            yield self._database
        if is_write:
            self._database.publish()

    # --- writes and what workers read ---

    async def write(self, batch: Sequence[Op], *, retry: bool = False) -> list[Outcome]:
        """Apply the operations one by one; undo all if one raises."""
        with self._open_database(is_write=True) as database:
            transaction = Transaction(database.rows, now=self.now_us(), retry=retry, next_mail_id=database.next_mail_id)
            try:
                outcomes = [transaction.apply(op) for op in batch]
                self._probe("write:before-commit")
            except BaseException:
                transaction.undo()
                raise
            database.next_mail_id = transaction.next_mail_id
        self._probe("write:after-commit")
        return outcomes

    async def claim(self, request: ClaimRequest) -> list[Claimed]:
        """Take due rows."""
        with self._open_database() as database:
            worker = database.workers.get(request.worker)
            if worker is None or worker.is_dead:
                return []
            now, journal_format = self.now_us(), int(request.version.partition("/")[0])
            due = [
                row
                for row in database.rows.values()
                if row.next_run_at is not None
                and row.next_run_at <= now
                and row.new.queue == request.queue
                and row.diverged_by.get(request.code_version, 0) <= now
                and _fits(row, request.types, request.only, request.alone, journal_format)
            ]
            due.sort(key=lambda row: (row.new.priority, row.next_run_at, row.new.id))
            taken = due[: 1 if request.alone else request.limit]
            if taken:
                self._probe("claim:before-commit")
            for row in taken:
                row.status, row.worker, row.next_run_at, row.waiting_for = "running", request.worker, None, None
                row.awaited = row.wake_floor = None
                row.epoch += 1
                row.updated_at = now
                row.started_at = row.started_at if row.started_at is not None else now
                if row.deadline is None and row.new.timeout_us is not None:
                    row.deadline = now + row.new.timeout_us
                row.version = row.version if row.version is not None else request.version
                row.code_version = row.code_version if row.code_version is not None else request.code_version
            if taken:
                database.publish()
        if taken:
            self._probe("claim:after-commit")
        return [row.as_claimed() for row in taken]

    async def load(self, workflow_ids: Sequence[str]) -> list[Loaded]:
        """Histories, mail and retry states."""
        with self._open_database() as database:
            rows = [database.rows[workflow_id] for workflow_id in workflow_ids if workflow_id in database.rows]
            return [
                Loaded(
                    row.new.id,
                    row.signals,
                    [entry for seq, entry in sorted(row.entries.items()) if seq not in row.struck],
                    list(row.mail),
                    list(row.retries.values()),
                    max(row.entries, default=0),
                )
                for row in rows
            ]

    async def signals(self, worker_id: str) -> dict[str, int]:
        """`signals` of this worker's running rows."""
        with self._open_database() as database:
            return {workflow_id: row.signals for workflow_id, row in database.rows.items() if row.worker == worker_id}

    async def mail(self, wanted: Sequence[tuple[str, int]]) -> list[Inbox]:
        """Newer mail of held workflows."""
        with self._open_database() as database:
            found = [(database.rows[workflow_id], last) for workflow_id, last in wanted if workflow_id in database.rows]
            return [
                Inbox(row.new.id, row.epoch, row.signals, [m for m in row.mail if m.id > last]) for row, last in found
            ]

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
        with self._open_database() as database:
            now = self.now_us()
            times = [
                _due_at(row, row.next_run_at, code_version, now)
                for row in database.rows.values()
                if row.next_run_at is not None
                and row.new.queue in queues
                and _fits(row, types, only, alone, JOURNAL_FORMAT)
            ]
            return min(times, default=None)

    async def reconcile(self, worker_id: str, held: Sequence[tuple[str, int]]) -> list[str]:
        """Release what this worker has and does not hold."""
        with self._open_database() as database:
            mine = [row for row in database.rows.values() if row.worker == worker_id]
            lost = [row for row in mine if (row.new.id, row.epoch) not in held]
            if lost:
                self._probe("reconcile:before-commit")
            for row in lost:
                give_back(row, self.now_us())
            if lost:
                database.publish()
        if lost:
            self._probe("reconcile:after-commit")
        return [row.new.id for row in lost]

    async def adopt_diverged(self, code_version: str) -> int:
        """Make rows due that this code version has not tried yet."""
        with self._open_database() as database:
            now = self.now_us()
            rows = [
                row
                for row in database.rows.values()
                if row.status == "pending"
                and row.diverged_by
                and code_version not in row.diverged_by
                and (row.next_run_at or 0) > now
            ]
            if rows:
                self._probe("adopt:before-commit")
            for row in rows:
                row.next_run_at = row.updated_at = now
            if rows:
                database.publish()
        if rows:
            self._probe("adopt:after-commit")
        return len(rows)

    async def prune(self, request: PruneRequest) -> PruneBatch:
        """Delete a part of what is old."""
        with self._open_database() as database:
            self._probe("prune:before-commit")
            batch = prune(database.rows, request)
        self._probe("prune:after-commit")
        return batch

    def subscribe(self, notify: Callable[[], None]) -> Callable[[], None]:
        """Call `notify` on this loop soon after a commit."""
        subscriber = Subscriber(self._loop or asyncio.get_running_loop(), notify)
        subscribers = self._database.subscribers
        subscribers.append(subscriber.signal)

        def end() -> None:
            subscriber.is_over = True
            self._ends.discard(end)
            with contextlib.suppress(ValueError):
                subscribers.remove(subscriber.signal)

        self._ends.add(end)
        return end

    async def check_serving(self) -> None:
        """Nothing moves out of memory."""

    def transfer(self) -> NoReturn:
        """Its rows live and die with this process."""
        raise ConfigurationError(
            f"{self.url} belongs to one process: there is nothing in it to copy, and nobody to copy it for"
        )

    def leases(self) -> MemoryLeases:
        """For the lease thread."""
        return MemoryLeases(self._database, self._clock, self._probe)

    # --- for operators ---

    async def diagnose(self, *, thorough: bool = False) -> Diagnosis:
        """The work alone: there is nothing else to look at."""
        with self._database.lock:
            return Diagnosis(url=self.url, findings=(), work=read_work(self._database, self.now_us()))

    def schema_sql(self) -> str:
        """There is no schema."""
        return ""

    def roles_sql(self) -> str:
        """There are no roles."""
        return ""

    async def drop_schema(self, *, force: bool = False) -> Removal:
        """There are no tables."""
        return Removal()

    # --- reads for people ---

    async def get(self, workflow_id: str) -> WorkflowRow | None:
        """One workflow, or None."""
        with self._open_database() as database:
            row = database.rows.get(workflow_id)
            return None if row is None else row.for_people()

    async def outcomes(self, workflow_ids: Sequence[str]) -> Rows:
        """Those of these workflows that are final."""
        with self._open_database() as database:
            rows = [database.rows[workflow_id] for workflow_id in workflow_ids if workflow_id in database.rows]
            return [row.for_people() for row in rows if row.is_final]

    async def seed(self, workflow_id: str) -> str | None:
        """Its seed, or None."""
        with self._open_database() as database:
            row = database.rows.get(workflow_id)
            return None if row is None else row.new.seed

    async def journal(self, workflow_id: str) -> list[JournalRow]:
        """All entries in seq order."""
        with self._open_database() as database:
            row = database.rows.get(workflow_id)
            entries = [] if row is None else [(entry, seq in row.struck) for seq, entry in sorted(row.entries.items())]
            return [JournalRow(**msgspec.structs.asdict(entry), struck=struck) for entry, struck in entries]

    async def children(self, workflow_id: str) -> Rows:
        """Direct children, oldest first."""
        with self._open_database() as database:
            rows = [row for row in database.rows.values() if row.new.parent_id == workflow_id]
            return [row.for_people() for row in sorted(rows, key=lambda row: (row.created_at, row.new.id))]

    async def counts(self) -> dict[str, int]:
        """Number of workflows by status."""
        with self._open_database() as database:
            return dict(Counter(str(row.status) for row in database.rows.values()))

    async def workers(self) -> list[WorkerInfo]:
        """Every worker row, newest first."""
        with self._open_database() as database:
            infos = [worker_info(one) for one in database.workers.values()]
            return sorted(infos, key=lambda info: (info.started_at, info.id), reverse=True)

    async def list(self, filter: Filter) -> Rows:
        """A page, newest first. (Last in the class: below it, `list` means this method.)"""
        with self._open_database() as database:
            rows = [row for row in database.rows.values() if _matches(row, filter)]
            rows.sort(key=lambda row: (row.created_at, row.new.id), reverse=True)
            return [row.for_people() for row in rows[: filter.limit]]


def _no_probe(point: str) -> None:
    """The probe of production."""


def _fits(row: Row, types: Sequence[str], only: Sequence[str] | None, alone: bool | None, journal_format: int) -> bool:
    """Whether a claim for these types could take the row."""
    return (
        row.new.type in types
        and (only is None or row.new.id in only)
        and (alone is None or (row.crashes >= QUARANTINE_CRASHES) == alone)
        and (row.version is None or int(row.version.partition("/")[0]) <= journal_format)
    )


def _due_at(row: Row, next_run_at: int, code_version: str, now: int) -> int:
    """When this code version may claim the row: one that is due may be held back from it after a divergence."""
    held_until = row.diverged_by.get(code_version, 0)
    return held_until if next_run_at <= now < held_until else next_run_at


def _matches(row: Row, filter: Filter) -> bool:
    tags = msgspec.json.decode(row.new.tags, type=dict[str, str]) if row.new.tags else {}
    return (
        (not filter.status or row.status in filter.status)
        and (not filter.types or row.new.type in filter.types)
        and (filter.created_after is None or row.created_at > filter.created_after)
        and (filter.created_before is None or row.created_at < filter.created_before)
        and (filter.parent_id is None or row.new.parent_id == filter.parent_id)
        and (filter.before is None or (row.created_at, row.new.id) < filter.before)
        and all(tags.get(name) == value for name, value in filter.tags)
    )

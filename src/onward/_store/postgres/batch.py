"""Sorts one batch of operations into sets, one for each table change, ready to be sent as JSON.

Pure: knows no connection. `journal.py` looks at the fences (or assumes that they hold), sorts, and sends. The order of the sets
stands for one possible order of the operations; within one execution it is the order of the batch, because nothing may follow
the operation that ends it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from onward._store.operations import (
    LEASE_LOST,
    CancelOp,
    FailAttemptOp,
    Fence,
    FinishOp,
    JournalOp,
    Op,
    Outcome,
    ParkOp,
    ReleaseOp,
    RetryOp,
    SignalOp,
    StartOp,
)
from onward._store.records import Entry, StepRetry


class FenceRow(msgspec.Struct, gc=False):
    """One workflow whose row is wanted; see fragment_wanted in journal.sql."""

    id: str
    worker: str | None = None
    epoch: int | None = None
    ends: bool = False
    takes: bool = False


class EntryRow(msgspec.Struct, gc=False):
    """A journal entry on its way; the names are those of insert_entries."""

    w: str
    s: int
    k: str
    t: str
    f: int
    r: str | None
    e: str | None
    d: str | None
    a: str | None
    n: int
    b: int | None


class KeyRow(msgspec.Struct, gc=False):
    """A step retry that is over."""

    w: str
    k: str


class SeqRow(msgspec.Struct, gc=False):
    """An entry by its number."""

    w: str
    s: int


class MailRow(msgspec.Struct, gc=False):
    """A mail by its number."""

    w: str
    i: int


class RetryRow(msgspec.Struct, gc=False):
    """A step between two tries."""

    w: str
    k: str
    n: int
    t: int
    e: str | None


class ProgressRow(msgspec.Struct, gc=False):
    """See note_progress."""

    id: str
    worker: str
    epoch: int
    step: str | None
    progress: str | None
    resets: bool


class ParkRow(msgspec.Struct, gc=False):
    """See park_rows."""

    id: str
    worker: str
    epoch: int
    seen: int
    next_run_at: int | None
    is_waiting: bool
    waiting_for: str
    awaited: int | None
    wake_floor: int | None


class FailRow(msgspec.Struct, gc=False):
    """See fail_attempts."""

    id: str
    worker: str
    epoch: int
    error: str
    backoff: int


class ReleaseRow(msgspec.Struct, gc=False):
    """See release_rows."""

    id: str
    worker: str
    epoch: int
    delay: int
    error: str | None
    diverged_by: str | None


class FinishRow(msgspec.Struct, gc=False):
    """See finish_rows."""

    id: str
    worker: str
    epoch: int
    status: str
    result: str | None
    error: str | None
    spends: bool


@dataclass(slots=True)
class Start:
    """A StartOp at its place in the batch; `look_only` where its parent's execution is over already."""

    index: int
    op: StartOp
    look_only: bool = False


@dataclass(slots=True)
class Standing:
    """What is known of one fence of the batch."""

    is_lost: bool = False
    is_over: bool = False
    """It was given back under this very epoch: with `retry`, by this very batch."""


@dataclass(slots=True)
class Sets:
    """A batch, sorted by what has to be written."""

    entries: list[EntryRow] = field(default_factory=list)
    read: list[MailRow] = field(default_factory=list)
    settled: list[KeyRow] = field(default_factory=list)
    progress: dict[str, ProgressRow] = field(default_factory=dict)
    parks: list[ParkRow] = field(default_factory=list)
    fails: list[FailRow] = field(default_factory=list)
    strikes: list[SeqRow] = field(default_factory=list)
    releases: list[ReleaseRow] = field(default_factory=list)
    retries: list[RetryRow] = field(default_factory=list)
    finishes: list[FinishRow] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    """Workflows that take their children along."""
    starts: list[Start] = field(default_factory=list)
    signals: list[tuple[int, SignalOp]] = field(default_factory=list)
    cancels: list[tuple[int, str]] = field(default_factory=list)
    operator_retries: list[tuple[int, str]] = field(default_factory=list)

    @property
    def are_entries_only(self) -> bool:
        """Whether nothing else than entries is to be written."""
        return bool(self.entries) and not (
            self.read or self.settled or self.progress or self.parks or self.fails or self.releases or self.finishes
            or self.starts or self.signals or self.cancels or self.operator_retries
        )  # fmt: skip


@dataclass(slots=True)
class Own:
    """The executions of one worker, each under one fence, and no row of anybody else's."""

    worker: str
    epochs: dict[str, int]
    """By workflow."""
    ending: set[str]

    @property
    def ids(self) -> list[str]:
        """In the order of the primary key."""
        return sorted(self.epochs)


def own_fences(batch: Sequence[Op]) -> Own | None:
    """The executions that the batch is of, if it needs no other rows but those of their parents and waiters."""
    epochs: dict[str, int] = {}
    ending: set[str] = set()
    worker = ""
    for op in batch:
        if isinstance(op, (SignalOp, CancelOp, RetryOp)) or (isinstance(op, StartOp) and op.watch):
            return None
        fence = op.fence
        if fence is None:
            continue
        workflow_id = fence.workflow_id
        if epochs.setdefault(workflow_id, fence.epoch) != fence.epoch or (worker and fence.worker != worker):
            return None
        worker = fence.worker
        if isinstance(op, FinishOp):
            if op.cancels_children:
                return None
            ending.add(workflow_id)
    return Own(worker, epochs, ending)


def fence_rows(batch: Sequence[Op]) -> list[FenceRow]:
    """The workflows whose rows the batch needs."""
    fences: dict[Fence, FenceRow] = {}
    targets: list[FenceRow] = []
    for op in batch:
        kind = type(op)
        if kind is SignalOp or kind is RetryOp:
            targets.append(FenceRow(op.workflow_id))  # type: ignore[union-attr]
            continue
        if kind is CancelOp:
            targets.append(FenceRow(op.workflow_id, ends=True))  # type: ignore[union-attr]
            continue
        fence: Fence | None = op.fence  # type: ignore[union-attr]
        if kind is StartOp:
            if fence is None:
                continue
            if op.watch:  # type: ignore[union-attr]
                targets.append(FenceRow(op.workflow.id))  # type: ignore[union-attr]
        assert fence is not None
        row = fences.get(fence)
        if row is None:
            row = fences[fence] = FenceRow(fence.workflow_id, fence.worker, fence.epoch)
        if kind is FinishOp:
            row.ends = True
            row.takes = row.takes or op.cancels_children  # type: ignore[union-attr]
    return [*fences.values(), *targets]


def sort(batch: Sequence[Op], standings: dict[Fence, Standing] | None, outcomes: list[Outcome]) -> Sets:
    """Sort the operations into sets; those of a lost execution, and those that follow its end, are refused.

    `standings` None: every fence holds.
    """
    sets = Sets()
    ended: set[Fence] = set()
    for index, op in enumerate(batch):
        if isinstance(op, (JournalOp, FinishOp, ParkOp, FailAttemptOp, ReleaseOp)):
            fence = op.fence
            if (standings is not None and standings[fence].is_lost) or (ended and fence in ended):
                outcomes[index] = LEASE_LOST
                continue
            if not isinstance(op, JournalOp):
                ended.add(fence)
            if standings is None or not standings[fence].is_over:
                _add(sets, op, fence)
        elif isinstance(op, StartOp):
            if op.fence is None:
                sets.starts.append(Start(index, op))
            elif (standings is not None and standings[op.fence].is_lost) or op.fence in ended:
                outcomes[index] = LEASE_LOST
            else:
                look_only = standings is not None and standings[op.fence].is_over
                sets.starts.append(Start(index, op, look_only=look_only))
        elif isinstance(op, SignalOp):
            sets.signals.append((index, op))
        elif isinstance(op, CancelOp):
            sets.cancels.append((index, op.workflow_id))
        else:
            sets.operator_retries.append((index, op.workflow_id))
    return sets


def _add(sets: Sets, op: JournalOp | ParkOp | FinishOp | FailAttemptOp | ReleaseOp, fence: Fence) -> None:
    """Put what a valid operation writes into the sets."""
    workflow_id = fence.workflow_id
    if isinstance(op, JournalOp):
        entries = op.entries
        for entry in entries:
            sets.entries.append(entry_row(workflow_id, entry))
        if op.consumed:
            sets.read.extend([MailRow(workflow_id, mail_id) for mail_id in op.consumed])
        if op.settled:
            sets.settled.extend([KeyRow(workflow_id, key) for key in op.settled])
        # The last step is read from the journal itself; the column is written when the row is written anyway.
        lone_step = not entries and op.step is not None
        if op.reset_counters or op.progress is not None or lone_step:
            step = op.step if lone_step or op.progress is not None else None
            _note(sets, ProgressRow(workflow_id, fence.worker, fence.epoch, step, op.progress, op.reset_counters))
        return
    worker, epoch = fence.worker, fence.epoch
    match op:
        case FinishOp():
            sets.finishes.append(
                FinishRow(workflow_id, worker, epoch, op.status, op.result, op.error, op.spends_attempt)
            )
            if op.cancels_children:
                sets.orphans.append(workflow_id)
        case ParkOp():
            sets.parks.append(
                ParkRow(
                    workflow_id, worker, epoch, op.seen_signals, op.next_run_at, op.is_waiting, op.waiting_for,
                    op.awaited, op.wake_floor,
                )
            )  # fmt: skip
            _keep(sets, workflow_id, op.retries)
        case FailAttemptOp():
            sets.entries.extend([entry_row(workflow_id, entry) for entry in op.entries])
            sets.fails.append(FailRow(workflow_id, worker, epoch, op.error, op.backoff_us))
            sets.strikes.extend([SeqRow(workflow_id, seq) for seq in op.strike])
            _keep(sets, workflow_id, op.retries)
        case ReleaseOp():
            sets.releases.append(ReleaseRow(workflow_id, worker, epoch, op.delay_us, op.error, op.diverged_by))


def _keep(sets: Sets, workflow_id: str, retries: tuple[StepRetry, ...]) -> None:
    if retries:
        sets.retries.extend([RetryRow(workflow_id, one.key, one.tries, one.next_at, one.error) for one in retries])


def _note(sets: Sets, row: ProgressRow) -> None:
    """One row a workflow: an UPDATE that meets a row twice would keep an arbitrary one of the two."""
    known = sets.progress.get(row.id)
    if known is not None:
        row.step = row.step or known.step
        row.progress = row.progress if row.progress is not None else known.progress
        row.resets = row.resets or known.resets
    sets.progress[row.id] = row


def entry_row(workflow_id: str, e: Entry) -> EntryRow:
    """An entry as it is sent."""
    return EntryRow(
        workflow_id, e.seq, e.key, e.kind, e.finished_at, e.result, e.error, e.digest, e.arguments, e.tries, e.started_at
    )  # fmt: skip

"""The life of a workflow, one function an operation: the store protocol at its plainest.

A `Transaction` applies operations one after the other to the rows of a database and can undo all of them. It is called under
the database's lock. The rules are those of base.py and operations.py; where SQLite's statements and this file differ, the
conformance suite fails.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, assert_never

import msgspec

from onward._store.memory.state import Row
from onward._store.operations import (
    APPLIED,
    LEASE_LOST,
    NOT_FOUND,
    AlreadyFinal,
    CancelOp,
    FailAttemptOp,
    Fence,
    FinishOp,
    IdConflict,
    JournalOp,
    Op,
    Outcome,
    ParkOp,
    ReleaseOp,
    RetryOp,
    SignalOp,
    Started,
    StartOp,
)
from onward._store.records import Entry, Mail, StepRetry
from onward._store.verdicts import CANCELLED_UNBEGUN
from onward.errors import StoreConflict


class Transaction:
    """One batch: `apply` each operation, `undo` if one of them raises."""

    def __init__(self, rows: dict[str, Row], *, now: int, retry: bool, next_mail_id: int) -> None:
        self._rows = rows
        self._now = now
        self._retry = retry
        self._before: dict[str, Row | None] = {}
        self._ended: set[Fence] = set()
        self._lost: set[Fence] = set()
        self._over: dict[Fence, bool] = {}
        self.next_mail_id = next_mail_id

    def undo(self) -> None:
        """Put every touched row back as it was."""
        for workflow_id, row in self._before.items():
            if row is None:
                self._rows.pop(workflow_id, None)
            else:
                self._rows[workflow_id] = row

    def touch(self, workflow_id: str) -> Row | None:
        """The row, remembered as it is, so that it may be changed."""
        row = self._rows.get(workflow_id)
        if workflow_id not in self._before:
            self._before[workflow_id] = None if row is None else row.copy()
        return row

    def apply(self, op: Op) -> Outcome:
        """One operation."""
        match op:
            case SignalOp():
                return self._signal(op)
            case CancelOp():
                return self._cancel(op)
            case RetryOp():
                return self._retry_by_operator(op)
            case StartOp(fence=None):
                return self._start(op, parent=None)
        fence = op.fence
        assert fence is not None
        row = self._fenced(fence)
        if row is None:
            return LEASE_LOST
        is_over = self._over[fence]
        if isinstance(op, StartOp):
            return self._start(op, parent=row, look_only=is_over)
        if not isinstance(op, JournalOp):
            self._ended.add(fence)
        if (
            is_over
            and isinstance(op, (JournalOp, FailAttemptOp))
            and any(row.entries.get(e.seq) != e for e in op.entries)
        ):
            self._lost.add(fence)  # someone else gave it back: what was to be recorded is not there
            return LEASE_LOST
        if not is_over:
            self._apply_to(row, op)
        return APPLIED

    def _fenced(self, fence: Fence) -> Row | None:
        """The row if the fence holds for this operation; `_over` says whether the batch was written once already."""
        row = self.touch(fence.workflow_id)
        if fence not in self._over:
            is_same_epoch = row is not None and row.epoch == fence.epoch
            self._over[fence] = is_same_epoch and row is not None and row.worker is None and self._retry
            is_held = is_same_epoch and row is not None and row.worker == fence.worker
            if not is_held and not self._over[fence]:
                self._lost.add(fence)
        return None if fence in self._lost or fence in self._ended else row

    def _apply_to(self, row: Row, op: JournalOp | ParkOp | FinishOp | FailAttemptOp | ReleaseOp) -> None:
        row.updated_at = self._now
        match op:
            case JournalOp():
                self._journal(row, op)
            case ParkOp():
                self._park(row, op)
            case FinishOp():
                row.attempts += op.spends_attempt
                self.finish(row, op.status, op.result, op.error)
                if op.cancels_children:
                    self._cancel_children(row.new.id)
            case FailAttemptOp():
                self._record(row, op.entries)
                row.struck.update(op.strike)
                row.retries.clear()
                _put_off(row, op.retries)
                row.status, row.worker, row.error = "pending", None, op.error
                row.attempts += 1
                is_cancelled = any(mail.kind == "cancel" for mail in row.mail)  # then it does not wait for the back-off
                row.next_run_at = self._now + (0 if is_cancelled else op.backoff_us)
                row.divergences, row.diverged_by = 0, {}
            case ReleaseOp():
                row.status, row.worker = "pending", None
                row.next_run_at = self._now + op.delay_us
                row.error = op.error if op.error is not None else row.error
                if op.diverged_by is not None:
                    row.divergences += 1
                    row.diverged_by[op.diverged_by] = row.next_run_at
            case _:
                assert_never(op)

    # --- of executions ---

    def _journal(self, row: Row, op: JournalOp) -> None:
        self._record(row, op.entries)
        row.mail = [mail for mail in row.mail if mail.id not in op.consumed]
        for key in op.settled:
            row.retries.pop(key, None)
        if op.step is not None and not op.entries:
            row.step = op.step  # else it is read from the entries
        row.progress = op.progress if op.progress is not None else row.progress
        if op.reset_counters:
            row.attempts = row.crashes = row.divergences = 0
            row.diverged_by = {}

    def _record(self, row: Row, entries: Iterable[Entry]) -> None:
        for entry in entries:
            known = row.entries.get(entry.seq)
            if known is not None and not (self._retry and known == entry):
                raise StoreConflict(
                    f"workflow {row.new.id!r} has an entry {entry.seq} already ({known.key!r}, not {entry.key!r})"
                )
            row.entries[entry.seq] = entry

    def _park(self, row: Row, op: ParkOp) -> None:
        if row.signals != op.seen_signals:
            row.status, row.next_run_at = "pending", self._now
        elif op.is_waiting:
            row.status, row.next_run_at = "waiting", op.next_run_at
        else:
            row.status, row.next_run_at = "pending", self._now if op.next_run_at is None else op.next_run_at
        row.worker, row.waiting_for = None, op.waiting_for
        row.awaited, row.wake_floor = op.awaited, op.wake_floor
        row.divergences, row.diverged_by = 0, {}
        _put_off(row, op.retries)

    def finish(
        self, row: Row, status: Literal["completed", "failed", "cancelled"], result: str | None, error: str | None
    ) -> None:
        """The one outcome, and the mail to those who wait for it."""
        row.status, row.result, row.error = status, result, error
        row.worker = row.next_run_at = row.waiting_for = row.awaited = row.wake_floor = None
        row.divergences, row.diverged_by = 0, {}
        row.updated_at = row.finished_at = self._now
        listeners = [*([row.new.parent_id] if row.new.parent_id is not None else []), *row.waiters]
        row.mail, row.tokens, row.retries, row.waiters = [], set(), {}, []
        for listener in listeners:
            self._deliver(listener, "child", row.new.id, payload=result, error=error, is_urgent=status != "completed")

    # --- wakes ---

    def _deliver(
        self,
        workflow_id: str,
        kind: Literal["signal", "child", "cancel"],
        name: str = "",
        *,
        payload: str | None = None,
        error: str | None = None,
        is_urgent: bool = True,
        is_forced: bool = False,
    ) -> None:
        """Mail and wake, inseparable; a workflow that has ended gets neither."""
        row = self.touch(workflow_id)
        if row is None or row.is_final:
            return
        row.mail.append(Mail(self.next_mail_id, kind, self._now, name, payload, error))
        self.next_mail_id += 1
        self._wake(row, is_end=kind == "child", is_urgent=is_urgent, is_forced=is_forced)

    def _wake(self, row: Row, *, is_end: bool = False, is_urgent: bool = True, is_forced: bool = False) -> None:
        row.signals += 1
        row.updated_at = self._now
        if is_end and row.awaited is not None:
            row.awaited -= 1
        if row.status == "running" or not (row.is_asleep or is_forced):
            return
        is_last = row.awaited is not None and row.awaited <= 0
        floor = row.wake_floor or 0
        if is_urgent or is_forced or is_last or floor <= self._now:
            row.status, row.next_run_at = "pending", min(row.next_run_at or self._now, self._now)
        else:
            row.next_run_at = min(row.next_run_at or floor, floor)

    # --- of clients ---

    def _start(self, op: StartOp, *, parent: Row | None, look_only: bool = False) -> Outcome:
        new = op.workflow
        row = self.touch(new.id)
        if row is None:
            if look_only:
                return LEASE_LOST
            due_at = new.run_at if new.run_at is not None else self._now + new.delay_us
            row = self._rows[new.id] = Row(new, self._now, self._now, due_at)
        if (row.new.type, row.new.digest) != (new.type, new.digest):
            return IdConflict(new.id, row.new.type)
        if parent is not None and not look_only:
            self._listen(parent, row, watch=op.watch)
        return Started(new.id, row.new.seed == new.seed, row.new.parent_id, row.status)

    def _listen(self, parent: Row, row: Row, *, watch: bool) -> None:
        """Make sure that the parent hears of the end of a workflow it has started or found."""
        is_own = row.new.parent_id == parent.new.id
        if row.is_final and watch:
            if not any(mail.kind == "child" and mail.name == row.new.id for mail in parent.mail):
                self._deliver(parent.new.id, "child", row.new.id, payload=row.result, error=row.error)
        elif not is_own and watch and parent.new.id not in row.waiters:
            row.waiters.append(parent.new.id)

    def _signal(self, op: SignalOp) -> Outcome:
        row = self.touch(op.workflow_id)
        if row is None:
            return NOT_FOUND
        if row.is_final:
            return AlreadyFinal(row.status)
        if op.token not in row.tokens:
            row.tokens.add(op.token)
            self._deliver(op.workflow_id, "signal", op.name, payload=op.payload)
        return APPLIED

    def _cancel(self, op: CancelOp) -> Outcome:
        row = self.touch(op.workflow_id)
        if row is None:
            return NOT_FOUND
        if row.is_final:
            is_repeat = self._retry and row.status == "cancelled" and row.epoch == 0
            return APPLIED if is_repeat else AlreadyFinal(row.status)
        if row.epoch == 0:
            self.finish(row, "cancelled", None, CANCELLED_UNBEGUN)
        elif row.cancel_requested_at is None:
            row.cancel_requested_at = self._now
            self._deliver(op.workflow_id, "cancel", is_forced=True)
        return APPLIED

    def _cancel_children(self, parent_id: str) -> None:
        for workflow_id in sorted(row.new.id for row in self._rows.values() if row.new.parent_id == parent_id):
            self._cancel(CancelOp(workflow_id))

    def _retry_by_operator(self, op: RetryOp) -> Outcome:
        row = self.touch(op.workflow_id)
        if row is None:
            return NOT_FOUND
        if row.status == "completed":
            return AlreadyFinal(row.status)
        if row.is_final:
            self._begin_again(row)
        elif row.status != "running":
            row.retries = {
                key: msgspec.structs.replace(retry, next_at=min(retry.next_at, self._now))
                for key, retry in row.retries.items()
            }
            row.diverged_by = {version: min(until, self._now) for version, until in row.diverged_by.items()}
            self._wake(row, is_forced=True)
        return APPLIED

    def _begin_again(self, row: Row) -> None:
        try:
            record = msgspec.json.decode(row.error or "{}", type=dict[str, object])
        except msgspec.DecodeError:
            record = {}
        seq = record.get("seq")
        if seq is None and (row.status == "cancelled" or record.get("timed_out")):
            ends = [
                s for s, entry in row.entries.items() if entry.kind in ("cancel", "timeout") and s not in row.struck
            ]
            seq = min(ends, default=None)
        if isinstance(seq, int):
            row.struck.update(s for s in row.entries if s >= seq)
        row.status, row.next_run_at, row.updated_at = "pending", self._now, self._now
        row.attempts = row.crashes = 0
        row.result = row.error = row.finished_at = row.cancel_requested_at = row.deadline = None


def _put_off(row: Row, retries: Iterable[StepRetry]) -> None:
    for retry in retries:
        row.retries[retry.key] = retry

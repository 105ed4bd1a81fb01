"""The closed set of writes and of their outcomes: what the committer hands to `Store.write`.

Every operation is idempotent when it is written again after an unknown commit (`retry=True`, see base.py). The ones with a
`fence` belong to one execution: they take effect only if the workflow's row still has that worker and epoch, checked under
the row's lock in the same transaction, and those of one execution take effect as a prefix: once one is refused, all later
ones of that execution in the batch are refused with `LeaseLost`.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from onward._store.records import Entry, NewWorkflow, StepRetry


class Fence(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Proof of ownership: the claim (worker and epoch) under which a write is valid."""

    workflow_id: str
    worker: str
    epoch: int


class StartOp(msgspec.Struct, frozen=True, gc=False):
    """Insert a workflow, or find the one that has its id.

    With a `fence` it is a parent's command: the child's row has `parent_id`. If then the id exists already and `watch` is
    true: a workflow that is not this parent's child gets a `waiters` row, under its lock; and one that is final already,
    own child or not, has its end put into the parent's mailbox at once, unless it lies there unread.
    `has_new_id`: its id was made for this very start, so that the store need not look for it before it inserts.
    → `Started` | `IdConflict` | `LeaseLost`
    """

    workflow: NewWorkflow
    fence: Fence | None = None
    watch: bool = False
    has_new_id: bool = False


class JournalOp(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Record entries, delete the mail they deliver and the retry states they end; set progress and last step.

    `reset_counters` sets attempts and crashes to 0 (a newly recorded step is progress). → `Applied` | `LeaseLost`
    """

    fence: Fence
    entries: tuple[Entry, ...] = ()
    consumed: tuple[int, ...] = ()
    settled: tuple[str, ...] = ()
    step: str | None = None
    progress: str | None = None
    reset_counters: bool = False


class ParkOp(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Give the row back until `next_run_at` or a wake.

    If the row's `signals` is still `seen_signals`: status `waiting` when `is_waiting` (for a signal or child; `next_run_at`
    is then the time-out or None), else `pending` at `next_run_at`. If it is not: `pending` now. `worker` becomes null.
    `waiting_for` (JSON for people, never null) marks the row as parked, so that wakes pull it forward. `retries` are
    upserted. `awaited` counts the children whose end it waits for; a child's end before `wake_floor` wakes it only then,
    unless it is the last of them or failed. → `Applied` | `LeaseLost`
    """

    fence: Fence
    seen_signals: int
    next_run_at: int | None
    is_waiting: bool
    waiting_for: str
    retries: tuple[StepRetry, ...] = ()
    awaited: int | None = None
    wake_floor: int | None = None


class FinishOp(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Write the one outcome; `worker` and `next_run_at` become null.

    The end goes as kind `child` into the mailbox of the parent and of every `waiters` row, and wakes them; unread mail,
    retry states and waiters of the workflow are deleted. `cancels_children`: every child that has not ended is cancelled
    in the same transaction, in order of id, as by `CancelOp`. `spends_attempt`: an escaping error ended it, attempts + 1.
    → `Applied` | `LeaseLost`
    """

    fence: Fence
    status: Literal["completed", "failed", "cancelled"]
    result: str | None = None
    error: str | None = None
    cancels_children: bool = False
    spends_attempt: bool = False


class FailAttemptOp(msgspec.Struct, frozen=True):
    """End an attempt by an error: attempts + 1, `pending` after `backoff_us`, `worker` null, `error` kept for people.

    `entries` (the `attempt` entry) are recorded, entries numbered in `strike` are struck out; the workflow's retry states
    become exactly `retries`, so that the failed step has all its tries again. With an unread cancel it is due now.
    → `Applied` | `LeaseLost`
    """

    fence: Fence
    error: str
    backoff_us: int
    entries: tuple[Entry, ...] = ()
    strike: tuple[int, ...] = ()
    retries: tuple[StepRetry, ...] = ()


class ReleaseOp(msgspec.Struct, frozen=True):
    """Give the row back without spending anything: `pending` after `delay_us`, `worker` null.

    `diverged_by` names the code version that could not replay it, `error` says why, `divergences` is then raised by one. No
    claim for that code version gets the row before `delay_us` has passed, whoever pulls it forward meanwhile: a worker of
    another code version may (`Store.adopt_diverged`). → `Applied` | `LeaseLost`
    """

    fence: Fence
    delay_us: int = 0
    error: str | None = None
    diverged_by: str | None = None


class SignalOp(msgspec.Struct, frozen=True):
    """Put a signal into a workflow's mailbox and wake it; `token` makes it idempotent.
    → `Applied` | `NotFound` | `AlreadyFinal`
    """

    workflow_id: str
    name: str
    payload: str
    token: str


class CancelOp(msgspec.Struct, frozen=True):
    """Ask a workflow to end. Never claimed: `cancelled` at once (parent told). Otherwise `cancel_requested_at`, mail of
    kind cancel (once) and a wake, which also pulls forward a row that is backing off or delayed.
    → `Applied` | `NotFound` | `AlreadyFinal`
    """

    workflow_id: str


class RetryOp(msgspec.Struct, frozen=True):
    """An operator's retry of a failed or cancelled workflow: `pending` now, counters 0, outcome and cancel request cleared.

    Entries from `error.seq` on (or from the first cancel or timeout entry) are struck out, and its next claim sets a new
    deadline. A workflow that is backing off, after a divergence too, runs now instead.
    → `Applied` | `NotFound` | `AlreadyFinal` (completed)
    """

    workflow_id: str


Op: TypeAlias = StartOp | JournalOp | ParkOp | FinishOp | FailAttemptOp | ReleaseOp | SignalOp | CancelOp | RetryOp


class Applied(msgspec.Struct, frozen=True):
    """Committed."""


class Started(msgspec.Struct, frozen=True, gc=False):
    """The workflow exists; `created` is false where an equal one had the id before.

    `parent_id` is its real parent, `status` its present status.
    """

    id: str
    created: bool
    parent_id: str | None = None
    status: str = "pending"


class IdConflict(msgspec.Struct, frozen=True):
    """The id belongs to another type or to other arguments; nothing was written for this operation."""

    id: str
    existing_type: str


class LeaseLostOutcome(msgspec.Struct, frozen=True):
    """The fence did not match; nothing was written for this operation."""


class NotFound(msgspec.Struct, frozen=True):
    """No workflow has this id; nothing was written."""


class AlreadyFinal(msgspec.Struct, frozen=True):
    """The workflow had ended; nothing was written."""

    status: str


class Busy(msgspec.Struct, frozen=True):
    """Somebody else's open transaction holds a row that this operation needs, and nobody waits for strangers: nothing was
    written for it, nor for the other operations of its execution in this batch. To be written again soon, with `retry=True`
    and apart from the others, so that these do not wait. Never from a store that has only one writer.
    """


Outcome: TypeAlias = Applied | Started | IdConflict | LeaseLostOutcome | NotFound | AlreadyFinal | Busy

APPLIED = Applied()
LEASE_LOST = LeaseLostOutcome()
NOT_FOUND = NotFound()
BUSY = Busy()

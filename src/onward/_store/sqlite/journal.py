"""Applies one batch of operations inside the writer's transaction: what `Store.write` does, set by set.

A batch is first looked at (which fences hold, in one statement), then sorted into sets, one for each table change, and each
set is written by one statement fed with one JSON text. The order of the sets stands for one possible order of the
operations; within one execution it is the order of the batch, because nothing may follow the operation that ends it.
A later duplicate of an applied batch (`retry`) finds its row given back under the same epoch and counts as applied.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec

from onward._store.operations import (
    APPLIED,
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
from onward._store.records import Entry
from onward._store.sqlite.connection import run_on
from onward._store.sqlite.endings import Ending, Endings
from onward._store.sqlite.mailbox import cancel, cancel_children, deliver_signals, mark_read, retry_workflows
from onward._store.sqlite.starts import Start, insert_new, start_workflows
from onward._store.sqlite.wakes import Wakes
from onward._store.statements import json_text, load_statements
from onward.errors import StoreConflict

SQL = load_statements("onward._store.sqlite", "journal")
Row: TypeAlias = tuple[Any, ...]


@dataclass(slots=True)
class _Execution:
    """What the look found out about one fence of the batch."""

    is_ending: bool = False
    is_lost: bool = False
    is_over: bool = False
    """It was given back under this very epoch: with `retry`, by this very batch."""
    ending: Ending | None = None


@dataclass(slots=True)
class _Sets:
    """The batch, sorted by what has to be written."""

    entries: list[Row] = field(default_factory=list)
    read: list[tuple[str, int]] = field(default_factory=list)
    settled: list[tuple[str, str]] = field(default_factory=list)
    progress: list[Row] = field(default_factory=list)
    parks: list[Row] = field(default_factory=list)
    fails: list[Row] = field(default_factory=list)
    strikes: list[tuple[str, int]] = field(default_factory=list)
    releases: list[Row] = field(default_factory=list)
    retries: list[Row] = field(default_factory=list)
    finishes: list[Ending] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    """Workflows that take their children along."""
    starts: list[Start] = field(default_factory=list)
    signals: list[tuple[int, SignalOp]] = field(default_factory=list)
    cancels: list[tuple[int, str]] = field(default_factory=list)
    operator_retries: list[tuple[int, str]] = field(default_factory=list)


def apply_batch(conn: sqlite3.Connection, batch: Sequence[Op], *, retry: bool, now: int) -> list[Outcome]:
    """Write the batch; raises sqlite3.Error or StoreConflict, after which the caller must roll back."""
    executions = _look_at_fences(conn, batch, retry=retry)
    outcomes: list[Outcome] = [APPLIED] * len(batch)
    sets = _sort(batch, executions, outcomes)
    if retry:
        _drop_recorded(conn, batch, sets, executions, outcomes)
    wakes = Wakes()
    if sets.starts and (retry or not insert_new(conn, sets.starts, outcomes, now)):
        run_on(conn, start_workflows(sets.starts, outcomes, wakes, now))
    _write_rows(conn, sets, now)
    if sets.finishes:
        endings = Endings()
        endings.extend(sets.finishes)
        run_on(conn, endings.write(wakes, now))
    if sets.orphans:
        run_on(conn, cancel_children(sets.orphans, wakes, now))
    if sets.signals:
        run_on(conn, deliver_signals(sets.signals, outcomes, wakes, now))
    if sets.cancels:
        run_on(conn, cancel(sets.cancels, outcomes, wakes, now, retry=retry))
    if sets.operator_retries:
        run_on(conn, retry_workflows(sets.operator_retries, outcomes, wakes, now))
    run_on(conn, wakes.write(now))
    return outcomes


def _look_at_fences(conn: sqlite3.Connection, batch: Sequence[Op], *, retry: bool) -> dict[Fence, _Execution]:
    executions: dict[Fence, _Execution] = {}
    for op in batch:
        fence: Fence | None = getattr(op, "fence", None)
        if fence is None:
            continue
        execution = executions.get(fence)
        if execution is None:
            execution = executions[fence] = _Execution()
        if isinstance(op, FinishOp):
            execution.is_ending = True
    if not executions:
        return executions
    rows = [
        (fence.workflow_id, fence.worker, fence.epoch, execution.is_ending) for fence, execution in executions.items()
    ]
    text: str = conn.execute(SQL["look_at_fences"], {"fences": json_text(rows)}).fetchone()[0]
    if text == "[]":
        return executions
    fences = list(executions)
    for index, state, parent, signals, has_waiters, has_retries in msgspec.json.decode(text):
        execution = executions[fences[index]]
        execution.is_over = retry and state == 1
        execution.is_lost = state != 2 and not execution.is_over
        execution.ending = Ending(fences[index].workflow_id, parent, signals > 0, bool(has_waiters), bool(has_retries))
    return executions


def _sort(batch: Sequence[Op], executions: dict[Fence, _Execution], outcomes: list[Outcome]) -> _Sets:
    """Sort the operations into sets; those of a lost execution, and those that follow its end, are refused."""
    sets = _Sets()
    ended: set[Fence] = set()
    for index, op in enumerate(batch):
        match op:
            case SignalOp():
                sets.signals.append((index, op))
                continue
            case CancelOp():
                sets.cancels.append((index, op.workflow_id))
                continue
            case RetryOp():
                sets.operator_retries.append((index, op.workflow_id))
                continue
            case StartOp(fence=None):
                sets.starts.append(Start(index, op))
                continue
        fence = op.fence
        assert fence is not None
        execution = executions[fence]
        if execution.is_lost or fence in ended:
            outcomes[index] = LEASE_LOST
            continue
        if isinstance(op, StartOp):
            sets.starts.append(Start(index, op, look_only=execution.is_over))
            continue
        if not isinstance(op, JournalOp):
            ended.add(fence)
        if not execution.is_over:
            _add(sets, op, execution)
    return sets


def _add(sets: _Sets, op: JournalOp | ParkOp | FinishOp | FailAttemptOp | ReleaseOp, execution: _Execution) -> None:
    """Put what a valid operation writes into the sets."""
    workflow_id = op.fence.workflow_id
    match op:
        case JournalOp():
            sets.entries.extend([_entry_row(workflow_id, entry) for entry in op.entries])
            if op.consumed:
                sets.read.extend([(workflow_id, mail_id) for mail_id in op.consumed])
            if op.settled:
                sets.settled.extend([(workflow_id, key) for key in op.settled])
            # The last step is read from the journal itself; the column is written when the row is written anyway.
            lone_step = op.step is not None and not op.entries
            if op.reset_counters or op.progress is not None or lone_step:
                step = op.step if lone_step or op.progress is not None else None
                sets.progress.append((workflow_id, step, op.progress, op.reset_counters))
        case ParkOp():
            row = (
                workflow_id,
                op.seen_signals,
                op.next_run_at,
                op.is_waiting,
                op.waiting_for,
                op.awaited,
                op.wake_floor,
            )
            sets.parks.append(row)
            sets.retries.extend(
                [(workflow_id, retry.key, retry.tries, retry.next_at, retry.error) for retry in op.retries]
            )
        case FinishOp():
            ending = execution.ending or Ending(workflow_id)
            ending.status, ending.result, ending.error = op.status, op.result, op.error
            ending.spends_attempt = op.spends_attempt
            sets.finishes.append(ending)
            if op.cancels_children:
                sets.orphans.append(workflow_id)
        case FailAttemptOp():
            sets.entries.extend([_entry_row(workflow_id, entry) for entry in op.entries])
            sets.fails.append((workflow_id, op.error, op.backoff_us))
            sets.strikes.extend([(workflow_id, seq) for seq in op.strike])
            sets.retries.extend(
                [(workflow_id, retry.key, retry.tries, retry.next_at, retry.error) for retry in op.retries]
            )
        case ReleaseOp():
            sets.releases.append((workflow_id, op.delay_us, op.error, op.diverged_by))


def _entry_row(workflow_id: str, e: Entry) -> Row:
    return (
        workflow_id, e.seq, e.key, e.kind, e.finished_at, e.result, e.error, e.digest, e.arguments, e.tries, e.started_at,
    )  # fmt: skip


def _drop_recorded(
    conn: sqlite3.Connection,
    batch: Sequence[Op],
    sets: _Sets,
    executions: dict[Fence, _Execution],
    outcomes: list[Outcome],
) -> None:
    """After an unknown commit: leave out the entries that are there already; other content there is a conflict.

    An execution that is over must have all its entries there, else it was ended by someone else: its lease was lost.
    """
    over = [
        op for op in batch if isinstance(op, (JournalOp, FailAttemptOp)) and executions[op.fence].is_over and op.entries
    ]
    recorded = [_entry_row(op.fence.workflow_id, entry) for op in over for entry in op.entries]
    keys = [row[:2] for row in (*sets.entries, *recorded)]
    if not keys:
        return
    text = conn.execute(SQL["read_entries"], {"entries": json_text(keys)}).fetchone()[0]
    present: dict[Row, Row] = {tuple(row[:2]): tuple(row) for row in msgspec.json.decode(text)}
    for row in sets.entries:
        if present.get(row[:2], row) != row:
            raise StoreConflict(
                f"workflow {row[0]!r} has another entry {row[1]} than the one to be recorded ({row[2]!r})"
            )
    sets.entries = [row for row in sets.entries if row[:2] not in present]
    wanted = {row[0] for row in recorded if present.get(row[:2]) != row}
    missing = {op.fence for op in over if op.fence.workflow_id in wanted}
    for index, op in enumerate(batch):
        if missing and getattr(op, "fence", None) in missing:
            outcomes[index] = LEASE_LOST


def _write_rows(conn: sqlite3.Connection, sets: _Sets, now: int) -> None:
    """One statement for each set that is not empty."""
    if sets.entries:
        conn.execute(SQL["insert_entries"], {"entries": json_text(sets.entries)})
    if sets.read:
        mark_read(conn, sets.read)
    if sets.settled:
        conn.execute(SQL["delete_retries"], {"rows": json_text(sets.settled)})
    if sets.strikes:
        conn.execute(SQL["strike_entries"], {"entries": json_text(sets.strikes)})
    if sets.fails:
        conn.execute(SQL["delete_retries_of"], {"ids": json_text([row[0] for row in sets.fails])})
    if sets.retries:
        conn.execute(SQL["upsert_retries"], {"rows": json_text(sets.retries)})
    for name, rows in (
        ("note_progress", _merged(sets.progress)),
        ("park_rows", sets.parks),
        ("fail_attempts", sets.fails),
        ("release_rows", sets.releases),
    ):
        if rows:
            conn.execute(SQL[name], {"rows": json_text(rows), "now": now})


def _merged(progress: list[Row]) -> list[Row]:
    """One row a workflow: an UPDATE that meets a row twice would keep an arbitrary one of the two."""
    merged: dict[str, Row] = {}
    for row in progress:
        known = merged.get(row[0])
        if known is not None:
            row = (row[0], row[1] or known[1], row[2] if row[2] is not None else known[2], row[3] or known[3])
        merged[row[0]] = row
    return list(merged.values())

"""Applies one batch of operations: what `Store.write` does.

The usual way is one round trip: BEGIN, one statement that locks every row the batch needs and refuses unless every fence holds,
the writes set by set, COMMIT. If it refuses (a row is gone, taken over, or locked by somebody), the careful way looks first:
it locks what it can, learns which executions are lost and which rows are busy, and writes the rest. Busy ones are tried once
more, waiting briefly; what is still busy then is answered `BUSY`, and nobody else has waited for it.

A retry after an unknown commit always goes the careful way, with waiting: the old transaction may still be under way. A later
duplicate of an applied batch finds its row given back under the same epoch and counts as applied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from onward._store.operations import (
    APPLIED,
    BUSY,
    LEASE_LOST,
    CancelOp,
    FailAttemptOp,
    Fence,
    JournalOp,
    Op,
    Outcome,
    RetryOp,
    SignalOp,
    StartOp,
)
from onward._store.postgres.batch import EntryRow, Own, SeqRow, Sets, Standing, entry_row, fence_rows, own_fences, sort
from onward._store.postgres.faults import LOCK_NOT_AVAILABLE
from onward._store.postgres.lone import lone_entry
from onward._store.postgres.mailbox import (
    cancel_calls,
    look_at,
    note_cancels,
    note_retries,
    note_signals,
    retry_calls,
    signal_calls,
)
from onward._store.postgres.session import Refused
from onward._store.postgres.starts import is_watching, note_starts, start_calls, watch_rows, write_starts
from onward._store.postgres.statements import Call, Value, as_array, as_json, as_texts
from onward._store.postgres.transfer import refuse_if_moving
from onward.errors import StoreConflict, StoreError, TransientStoreError

if TYPE_CHECKING:
    from onward._store.postgres.database import Database
    from onward._store.postgres.session import Session

Answers = list["bytes | None"]


async def write(session: Session, database: Database, batch: Sequence[Op], *, retry: bool) -> list[Outcome]:
    """Write the batch; raises StoreError."""
    if not retry:
        try:
            return await _write_at_once(session, database, batch)
        except Refused:
            pass
        except TransientStoreError as error:
            if not _was_locked(error):
                raise
    return await _write_carefully(session, database, batch, retry=retry)


def _was_locked(error: TransientStoreError) -> bool:
    return getattr(error.__cause__, "sqlstate", None) == LOCK_NOT_AVAILABLE


async def _write_at_once(session: Session, database: Database, batch: Sequence[Op]) -> list[Outcome]:
    started = await write_starts(session, database, batch)
    if started is not None:
        return started
    outcomes: list[Outcome] = [APPLIED] * len(batch)
    lone = lone_entry(database.sql, batch)
    if lone is not None:
        calls, place = database.whole([lone])
        answer = (await session.run(calls, commits=True))[place][0]
        if answer is None:
            raise Refused
        database.observe(answer)
        return outcomes
    own = own_fences(batch)
    sets = sort(batch, None, outcomes)
    if own is not None and sets.are_entries_only:
        record = database.sql["record_entries"].bind(**_fences(own), entries=as_json(sets.entries))
        calls, place = database.whole([record])
        database.observe((await session.run(calls, commits=True))[place][0])
        return outcomes
    plan = _Plan(database, sets)
    head = database.opening()
    lock = _lock(database, batch, own)
    answers = await session.run([*head, lock, *plan.calls, database.sql["commit"].bind()], commits=True)
    database.observe(answers[len(head)])
    plan.note(answers[len(head) + 1 : -1], outcomes, retry=False)
    return outcomes


def _fences(own: Own) -> dict[str, Value]:
    ids = own.ids
    return {"ids": as_texts(ids), "worker": own.worker, "epochs": as_array([own.epochs[id] for id in ids])}


def _lock(database: Database, batch: Sequence[Op], own: Own | None) -> Call:
    """The statement that locks what the batch needs, or refuses."""
    sql = database.sql
    if own is None:
        return sql["lock_or_refuse"].bind(fences=as_json(fence_rows(batch)))
    if not own.epochs:
        return sql["read_clock"].bind()
    if own.ending:
        ends = as_array([id in own.ending for id in own.ids])
        return sql["lock_ending_or_refuse"].bind(**_fences(own), ends=ends, ending=as_texts([*own.ending]))
    return sql["lock_own_or_refuse"].bind(**_fences(own))


class _Plan:
    """The writes of a sorted batch as statements, and what their answers mean."""

    def __init__(self, database: Database, sets: Sets) -> None:
        self._sets = sets
        self._places: dict[str, int] = {}
        self.calls: list[Call] = []
        sql = database.sql

        def add(name: str, rows: object) -> None:
            self.calls.append(sql[name].bind(rows=as_json(rows)))

        if sets.starts:
            self._mark("starts", start_calls(sql, sets.starts))
        if sets.entries:
            self.calls.append(sql["insert_entries"].bind(entries=as_json(sets.entries)))
        if sets.read:
            add("mark_read", sets.read)
        if sets.settled:
            add("delete_retries", sets.settled)
        if sets.strikes:
            add("strike_entries", sets.strikes)
        if sets.fails:
            self.calls.append(sql["delete_retries_of"].bind(ids=as_json([row.id for row in sets.fails])))
        if sets.retries:
            add("upsert_retries", sets.retries)
        if sets.progress:
            add("note_progress", list(sets.progress.values()))
        if sets.parks:
            add("park_rows", sets.parks)
        if sets.fails:
            add("fail_attempts", sets.fails)
        if sets.releases:
            add("release_rows", sets.releases)
        if sets.finishes:
            add("finish_rows", sets.finishes)
        if sets.orphans:
            self.calls.extend(cancel_calls(sql, parents=sets.orphans))
        watching = [start for start in sets.starts if is_watching(start)]
        if watching:
            self.calls.append(sql["deliver_known_ends"].bind(rows=watch_rows(watching)))
        if sets.signals:
            self._mark("signals", signal_calls(sql, sets.signals))
        if sets.cancels:
            ids = [workflow_id for _, workflow_id in sets.cancels]
            self._mark("cancels", [look_at(sql, ids), *cancel_calls(sql, ids)])
        if sets.operator_retries:
            self._mark("retries", retry_calls(sql, sets.operator_retries))

    def _mark(self, name: str, calls: Sequence[Call]) -> None:
        """Statements whose first answer decides outcomes."""
        self._places[name] = len(self.calls)
        self.calls.extend(calls)

    def note(self, answers: Answers, outcomes: list[Outcome], *, retry: bool) -> None:
        """Set the outcomes that depend on what was found."""
        sets, places = self._sets, self._places
        if sets.starts:
            note_starts(answers[places["starts"] + 1], sets.starts, outcomes)
        if sets.signals:
            note_signals(answers[places["signals"]], sets.signals, outcomes)
        if sets.cancels:
            note_cancels(answers[places["cancels"]], sets.cancels, outcomes, retry=retry)
        if sets.operator_retries:
            note_retries(answers[places["retries"]], sets.operator_retries, outcomes)


def plan_calls(database: Database, sets: Sets) -> list[Call]:
    """The writes of a sorted batch, for a transaction of somebody else's."""
    return _Plan(database, sets).calls


def _owner_ids(op: Op) -> tuple[str, ...]:
    """The workflows whose rows decide whether this operation is busy."""
    if isinstance(op, (SignalOp, CancelOp, RetryOp)):
        return (op.workflow_id,)
    if isinstance(op, StartOp):
        if op.fence is None:
            return ()
        return (op.fence.workflow_id, op.workflow.id) if op.watch else (op.fence.workflow_id,)
    return (op.fence.workflow_id,)


async def _write_carefully(session: Session, database: Database, batch: Sequence[Op], *, retry: bool) -> list[Outcome]:
    """Look, then write; what is busy a second time is left. See the module's docstring."""
    outcomes: list[Outcome] = [BUSY] * len(batch)
    rest = list(range(len(batch)))
    has_committed = False
    for waits in (True, False) if retry else (False, True):
        try:
            busy = await _look_and_write(session, database, batch, rest, outcomes, waits=waits, retry=retry)
        except StoreError as error:
            if isinstance(error, TransientStoreError) and _was_locked(error):
                if waits and not has_committed:
                    continue
                if not has_committed:
                    return await _write_halves(session, database, batch, retry=retry)
            if not has_committed:
                raise
            break  # what is committed must be told; the rest is looked at again
        has_committed = has_committed or len(busy) < len(rest)
        rest = busy
        if not rest:
            break
    return outcomes


async def _write_halves(session: Session, database: Database, batch: Sequence[Op], *, retry: bool) -> list[Outcome]:
    """Somebody's uncommitted start of the same id, for instance, is in the way: find out of whose."""
    groups: dict[object, list[int]] = {}
    for index, op in enumerate(batch):
        fence = getattr(op, "fence", None)
        groups.setdefault(index if fence is None else fence.workflow_id, []).append(index)
    if len(groups) == 1:
        return [BUSY] * len(batch)
    keys = list(groups)
    outcomes: list[Outcome] = [BUSY] * len(batch)
    has_committed = False
    for part in (keys[: len(keys) // 2], keys[len(keys) // 2 :]):
        indices = sorted(index for key in part for index in groups[key])
        try:
            found = await _write_carefully(session, database, [batch[index] for index in indices], retry=retry)
        except StoreError:
            if not has_committed:
                raise
            break
        for index, outcome in zip(indices, found, strict=True):
            outcomes[index] = outcome
            has_committed = has_committed or outcome is not BUSY
    return outcomes


async def _look_and_write(
    session: Session,
    database: Database,
    batch: Sequence[Op],
    rest: Sequence[int],
    outcomes: list[Outcome],
    *,
    waits: bool,
    retry: bool,
) -> list[int]:
    """One transaction: lock, look, write what can be written. Returns the operations that are busy."""
    sql = database.sql
    ops = [batch[index] for index in rest]
    fences = fence_rows(ops)
    keys = [
        SeqRow(op.fence.workflow_id, e.seq)
        for op in ops
        if isinstance(op, (JournalOp, FailAttemptOp))
        for e in op.entries
    ]
    lock = sql["lock_rows_waiting" if waits else "lock_rows"].bind(fences=as_json(fences))
    looks = [sql["read_refusal"].bind(), lock, sql["read_entries"].bind(entries=as_json(keys if retry else []))]
    async with session.hold() as converse:
        answers = await converse([*database.opening(), sql["limit_lock_wait"].bind(), *looks])
        refuse_if_moving(database, answers[-3])
        found, needed = msgspec.json.decode(answers[-2] or b"")
        locked = {workflow_id: (worker, epoch) for workflow_id, worker, epoch in found}
        blocked = {owner for owner, workflow_id, is_there in needed if is_there and workflow_id not in locked}
        busy = _busy_indices(batch, rest, blocked)
        good = [index for index in rest if index not in busy]
        if not good:
            return list(rest)
        ops = [batch[index] for index in good]
        standings = _standings(ops, locked, retry=retry)
        part: list[Outcome] = [APPLIED] * len(ops)
        sets = sort(ops, standings, part)
        if retry:
            _drop_recorded(ops, sets, standings, part, answers[-1] or b"[]")
        plan = _Plan(database, sets)
        written = await converse([*plan.calls, sql["read_clock"].bind(), sql["commit"].bind()], commits=True)
    database.observe(written[-2])
    plan.note(written[:-2], part, retry=retry)
    for index, outcome in zip(good, part, strict=True):
        outcomes[index] = outcome
    return sorted(busy)


def _busy_indices(batch: Sequence[Op], rest: Sequence[int], blocked: set[str]) -> set[int]:
    """Operations that need a row which somebody else holds, and all others of the same executions."""
    executions: set[Fence] = set()
    busy: set[int] = set()
    for index in rest:
        op = batch[index]
        if blocked.isdisjoint(_owner_ids(op)):
            continue
        busy.add(index)
        fence = getattr(op, "fence", None)
        if fence is not None:
            executions.add(fence)
    if executions:
        busy.update(index for index in rest if getattr(batch[index], "fence", None) in executions)
    return busy


def _standings(ops: Sequence[Op], locked: dict[str, tuple[str | None, int]], *, retry: bool) -> dict[Fence, Standing]:
    standings: dict[Fence, Standing] = {}
    for op in ops:
        fence: Fence | None = getattr(op, "fence", None)
        if fence is None or fence in standings:
            continue
        worker, epoch = locked.get(fence.workflow_id, (None, None))
        is_over = retry and worker is None and epoch == fence.epoch
        is_held = worker == fence.worker and epoch == fence.epoch
        standings[fence] = Standing(is_lost=not is_held and not is_over, is_over=is_over)
    return standings


def _drop_recorded(
    ops: Sequence[Op], sets: Sets, standings: dict[Fence, Standing], outcomes: list[Outcome], answer: bytes
) -> None:
    """After an unknown commit: leave out the entries that are there already; other content there is a conflict.

    An execution that is over must have all its entries there, else it was ended by someone else: its lease was lost.
    """
    present: dict[tuple[str, int], tuple[Any, ...]] = {
        (row[0], row[1]): tuple(row) for row in msgspec.json.decode(answer)
    }

    def found(row: EntryRow) -> tuple[Any, ...] | None:
        return present.get((row.w, row.s))

    fresh: list[EntryRow] = []
    for row in sets.entries:
        there = found(row)
        if there is None:
            fresh.append(row)
        elif there != msgspec.structs.astuple(row):
            raise StoreConflict(f"workflow {row.w!r} has another entry {row.s} than the one to be recorded ({row.k!r})")
    sets.entries = fresh
    missing = {
        op.fence
        for op in ops
        if isinstance(op, (JournalOp, FailAttemptOp)) and standings[op.fence].is_over
        for row in [entry_row(op.fence.workflow_id, entry) for entry in op.entries]
        if found(row) != msgspec.structs.astuple(row)
    }
    for index, op in enumerate(ops):
        if missing and getattr(op, "fence", None) in missing:
            outcomes[index] = LEASE_LOST

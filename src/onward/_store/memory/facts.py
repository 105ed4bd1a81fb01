"""The `Work` of a diagnosis, from the rows in memory."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec

from onward._store.diagnosis import EXAMPLES, Group, Payload, Sample, Work
from onward._store.memory.database import MemoryDatabase
from onward._store.memory.state import Row, Worker
from onward._store.records import WorkerInfo
from onward._store.verdicts import CRASHED, QUARANTINE_CRASHES

DAY_US = 24 * 3600 * 1_000_000
LONGEST_LIST = 20
"""Of the waits of a row the first 20 are kept: a row with as many may wait for more."""


def read_work(database: MemoryDatabase, now: int) -> Work:
    """The facts; the caller holds the lock."""
    rows = list(database.rows.values())
    open_rows = [row for row in rows if not row.is_final]
    return Work(
        now=now,
        groups=_groups(rows, now),
        workers=tuple(worker_info(one) for one in database.workers.values()),
        proofs={one.row.id: one.has_proof for one in database.workers.values() if not one.is_dead},
        held=dict(Counter(row.worker for row in rows if row.worker is not None)),
        quarantined=_sample(row for row in open_rows if row.crashes >= QUARANTINE_CRASHES),
        crashed=_sample(row for row in rows if row.error == CRASHED and (row.finished_at or 0) > now - 7 * DAY_US),
        diverged=_sample(row for row in rows if row.diverged_by and row.status == "pending"),
        unwakeable=_sample(row for row in rows if _is_unwakeable(row, database)),
        created_last_day=sum(row.created_at > now - DAY_US for row in rows),
        oldest_created_at=min((row.created_at for row in rows), default=None),
        payloads=_payloads(rows),
    )


def worker_info(worker: Worker) -> WorkerInfo:
    """A worker as people read it."""
    return WorkerInfo(
        **msgspec.structs.asdict(worker.row),
        started_at=worker.started_at,
        expires_at=worker.expires_at,
        is_dead=worker.is_dead,
    )


def _groups(rows: list[Row], now: int) -> tuple[Group, ...]:
    key = lambda row: (row.status, row.new.queue, row.new.type)  # noqa: E731  # for both sorted and groupby
    found = []
    for names, members in itertools.groupby(sorted(rows, key=key), key):
        group = list(members)
        due = [row.next_run_at for row in group if row.next_run_at is not None and _is_due(row, now)]
        ends = [row.finished_at for row in group if row.finished_at is not None]
        changes = max(row.updated_at for row in group)
        found.append(Group(*names, len(group), len(due), min(due, default=None), changes, min(ends, default=None)))
    return tuple(found)


def _is_due(row: Row, now: int) -> bool:
    is_held_back = row.crashes >= QUARANTINE_CRASHES or bool(row.diverged_by)
    return row.next_run_at is not None and row.next_run_at <= now and not is_held_back


def _sample(rows: Iterable[Row]) -> Sample:
    ids = sorted(row.new.id for row in rows)
    return Sample(len(ids), tuple(ids[:EXAMPLES]))


def _is_unwakeable(row: Row, database: MemoryDatabase) -> bool:
    if row.status != "waiting" or row.next_run_at is not None:
        return False
    waits: list[dict[str, Any]] = msgspec.json.decode(row.waiting_for or "[]")
    return len(waits) < LONGEST_LIST and not any(_can_come(wait, database) for wait in waits)


def _can_come(wait: dict[str, Any], database: MemoryDatabase) -> bool:
    awaited = database.rows.get(wait.get("name", ""))
    is_open = awaited is not None and not awaited.is_final
    return wait.get("kind") == "signal" or (wait.get("kind") == "child" and is_open)


def _payloads(rows: list[Row]) -> tuple[Payload, ...]:
    found: list[Payload] = []
    for row in rows:
        texts = [("arguments", row.new.payload), ("result", row.result), ("progress", row.progress)]
        texts += [
            (f"result of {entry.kind} {entry.key}", entry.result)
            for entry in row.entries.values()
            if entry.kind in ("step", "child", "signal")
        ]
        found += [Payload(row.new.id, what, len(text.encode())) for what, text in texts if text is not None]
    return tuple(sorted(found, key=lambda one: one.size, reverse=True)[:EXAMPLES])

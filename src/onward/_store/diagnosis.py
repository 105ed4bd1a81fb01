"""What a look at a database finds (`onward doctor`): findings, and the facts about the work that every database has.

A store's `diagnose` reads them in one consistent look. What only that database has (its files, its server) it judges itself,
as `Finding`s; the facts in `Work` are judged alike for all databases, in checks.py. Instants are microseconds since 1970 UTC.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from onward._store.records import WorkerInfo

Level = Literal["ok", "warn", "fail"]

EXAMPLES = 5
"""Ids that a `Sample` names."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at.

    `check` is its stable name, `text` says what is the case, `cure` what to do about it, `data` the same for programs.
    warn: worth knowing; fail: something stands still or is in danger. `is_unusable`: no other command can use the database.
    """

    check: str
    level: Level
    text: str
    cure: str = ""
    data: dict[str, Any] = {}
    is_unusable: bool = False


class Group(msgspec.Struct, frozen=True, array_like=True):
    """Workflows of one status, queue and type.

    `due_count` counts the claimable ones (due, not quarantined, not diverged), `due_since` is the earliest `next_run_at`
    among them.
    """

    status: str
    queue: str
    type: str
    count: int
    due_count: int = 0
    due_since: int | None = None
    updated_at: int | None = None
    oldest_finished_at: int | None = None


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """How many workflows are in some state, and the ids of a few."""

    count: int = 0
    examples: tuple[str, ...] = ()


class Payload(msgspec.Struct, frozen=True, array_like=True):
    """A stored value: whose, which (`arguments`, `result`, or `result of step charge`), and its length in bytes."""

    workflow_id: str
    what: str
    size: int


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """The workflows and workers of a database.

    Args:
        now: the database's clock.
        groups: all workflows.
        workers: every worker row.
        proofs: by worker id, whether what proves its life (a lock) is held; absent where nothing proves anything.
        held: running rows by worker id, ids that no worker row has included.
        quarantined: unfinished, claimed alone because their runs have crashed workers.
        crashed: failed for having crashed too many workers, within the last week.
        diverged: pending, and the code that tried does not fit their history.
        unwakeable: waiting without a time-out for ends of workflows that have ended or do not exist.
        created_last_day: workflows created in the last 24 hours.
        oldest_created_at: of the oldest workflow.
        size: bytes that tables and indexes take.
        payloads: the largest ones, largest first; None where looking took too long.
    """

    now: int
    groups: tuple[Group, ...]
    workers: tuple[WorkerInfo, ...] = ()
    proofs: dict[str, bool] = {}
    held: dict[str, int] = {}
    quarantined: Sample = Sample()
    crashed: Sample = Sample()
    diverged: Sample = Sample()
    unwakeable: Sample = Sample()
    created_last_day: int = 0
    oldest_created_at: int | None = None
    size: int | None = None
    payloads: tuple[Payload, ...] | None = ()


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """What a store's `diagnose` found; `work` is None where the tables cannot be read."""

    url: str
    findings: tuple[Finding, ...]
    work: Work | None = None


class Removal(msgspec.Struct, frozen=True, kw_only=True):
    """What `drop_schema` did: the tables and views removed, or else the living workers for whose sake it removed nothing.

    `is_empty`: nothing of anybody's is left in the database.
    """

    removed: tuple[str, ...] = ()
    alive: tuple[WorkerInfo, ...] = ()
    is_empty: bool = False

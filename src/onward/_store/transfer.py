"""What travels when workflows move to another database (`onward copy`): tables, rows and marks that no store owns.

A row is a tuple of plain values in the order of its table's columns, the primary key first: instants as integer microseconds,
booleans as such, JSON as text exactly as it is stored (where a database keeps it parsed: with sorted keys, see `canonical`). Rows
of equal content are therefore equal, whichever database they come from. `base.Transfer` reads and writes them; the order of the
procedure is decided in `_engine/moving.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

import msgspec

from onward._store.diagnosis import Finding
from onward._store.schema import AppliedMigration, Migration
from onward.errors import SchemaError, StoreImporting, StoreMoved

Value: TypeAlias = "str | int | bool | None"
Row: TypeAlias = tuple[Value, ...]
Key: TypeAlias = tuple[str | int, ...]
Position: TypeAlias = tuple[int, Key]
"""How many tables are complete, and the key of the last row copied of the next one."""

MOVING = (StoreMoved, StoreImporting)
"""What a database says that is being moved: no error of a workflow, and waiting helps nobody who writes to it."""


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """A table that is copied.

    `first` is a key below every row's; its length is that of the primary key. `flags` and `parsed` are the columns that SQLite
    keeps as integers, and those that PostgreSQL keeps as parsed JSON.
    """

    name: str
    columns: tuple[str, ...]
    first: Key
    flags: tuple[str, ...] = ()
    parsed: tuple[str, ...] = ()

    def key(self, row: Row) -> Key:
        """The primary key of a row."""
        return tuple(value for value in row[: len(self.first)] if value is not None)


_WORKFLOWS = """
    id type queue priority status next_run_at epoch signals run attempts crashes max_attempts awaited wake_floor divergences
    diverged_by partition parent_id version code_version created_at started_at updated_at finished_at deadline timeout_us
    cancel_requested_at digest seed step waiting_for tags progress result error payload
"""
_JOURNAL = "workflow_id seq key kind struck tries started_at finished_at digest arguments result error"
_MAILBOX = "id workflow_id kind created_at name token is_read payload error"

TABLES = (
    Table(name="workflows", columns=tuple(_WORKFLOWS.split()), first=("",), parsed=("diverged_by",)),
    Table(name="journal", columns=tuple(_JOURNAL.split()), first=("", -1), flags=("struck",)),
    Table(name="mailbox", columns=tuple(_MAILBOX.split()), first=(-1,), flags=("is_read",)),
    Table(name="waiters", columns=("target", "waiter", "created_at"), first=("", "")),
    Table(name="step_retries", columns=("workflow_id", "key", "tries", "next_at", "error"), first=("", "")),
)
"""In the order of copying. A worker's row belongs to its process, a pruning under way is brought to its end before."""


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """A mark in a database: of the source, to which `url` its workflows go, or of the target, from which they come.

    `ended_at` is null until the target is open; `position` is a target's.
    """

    copy_id: str
    url: str
    began_at: int
    ended_at: int | None = None
    position: Position | None = None


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A database as a copy finds it.

    `identity` is equal exactly where two URLs lead to the same tables. `counts` are rows by table; `worker_count` counts the
    workers whose lease runs; `mail_id` is the highest id ever given to a mail.
    """

    url: str
    identity: str
    counts: dict[str, int]
    unfinished_count: int
    running_count: int
    size: int
    worker_count: int
    mail_id: int
    source: Move | None = None
    target: Move | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no table holds a row."""
        return not any(self.counts.values())


def move_findings(moves: Mapping[str, Move]) -> Iterator[Finding]:
    """What `onward doctor` says about the marks, by role, of a database. Nothing where it is at work as usual."""
    source, target = moves.get("source"), moves.get("target")
    if source is not None:
        is_complete = source.ended_at is not None
        yield Finding(
            check="moved",
            level="warn",
            text=f"the workflows of this database were moved to {source.url}"
            + ("" if is_complete else ", but that copy is not complete: nobody works there either"),
            cure="use that URL" if is_complete else "run `onward copy` again, or give it up with --abort",
            data={"moved_to": source.url, "is_complete": is_complete},
        )
    if target is not None and target.ended_at is None:
        yield Finding(
            check="moved",
            level="warn",
            text=f"this database is the target of an unfinished copy of {target.url}: nobody can work in it",
            cure="run `onward copy` again, or give it up with --abort",
            data={"copied_from": target.url, "is_complete": False},
        )


def canonical(text: str | None) -> str | None:
    """JSON in the one form that is compared: sorted keys, no space."""
    if text is None:
        return None
    return msgspec.json.encode(msgspec.json.decode(text), order="sorted").decode()


def length(row: Row) -> int:
    """How much a row weighs in a batch, roughly in bytes."""
    return 100 + sum(len(value) for value in row if isinstance(value, str))


def check_exact(known: list[Migration], applied: list[AppliedMigration], *, database: str) -> None:
    """Raise SchemaError where a newer library has added what this one would not copy."""
    newer = [one for one in applied if one.number > len(known)]
    if newer:
        raise SchemaError(
            f"{database} has schema {newer[-1].number} ({newer[-1].name}), which is newer than this onward: copy with the "
            "version that made it"
        )

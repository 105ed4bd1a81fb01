"""What people read of workflows: rows of the tables as values with datetimes and decoded JSON.

Made by handles, clients and the command line from the store's rows; they never change anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from onward._codec.undecodable import Undecodable
from onward._engine import failures
from onward._store.records import JournalRow, Status, WorkflowRow

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def moment(at_us: int) -> datetime:
    """A stored instant as an aware datetime in UTC."""
    return EPOCH + timedelta(microseconds=at_us)


def microseconds(at: datetime) -> int:
    """An aware datetime as a stored instant."""
    return (at - EPOCH) // timedelta(microseconds=1)


def _moment(at_us: int | None) -> datetime | None:
    return None if at_us is None else moment(at_us)


def _json(text: str | None) -> Any:
    """Decoded; text that is no JSON (somebody has spoiled the row) is shown as it is; what the codec cannot read says so."""
    if isinstance(text, Undecodable):
        return str(text)
    try:
        return None if text is None else msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """An error as it was recorded: class name, message, traceback text."""

    type: str
    message: str
    traceback: str


def _error(text: str | None) -> ErrorInfo | None:
    if text is None:
        return None
    record = failures.read(text)
    return ErrorInfo(record.type, record.message, record.traceback)


@dataclass(frozen=True, slots=True)
class Wait:
    """One thing that a parked workflow waits for; `kind` is timer, signal, child or retry.

    A retry is a step between two tries: `tries` have failed, `error` is the last one's in short.
    """

    kind: str
    key: str
    name: str = ""
    until: datetime | None = None
    tries: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowInfo:
    """A workflow as it stands. Instants are aware datetimes in UTC, payloads decoded JSON; one that this client's
    codec cannot decode is a text that says so."""

    id: str
    type: str
    status: Status
    queue: str
    priority: int
    partition: str | None
    arguments: Any
    result: Any
    error: ErrorInfo | None
    progress: Any
    tags: dict[str, str]
    step: str | None
    waiting_for: tuple[Wait, ...]
    attempts: int
    crashes: int
    max_attempts: int
    worker: str | None
    parent_id: str | None
    next_run_at: datetime | None
    deadline: datetime | None
    cancel_requested_at: datetime | None
    created_at: datetime
    started_at: datetime | None
    updated_at: datetime
    finished_at: datetime | None

    @property
    def state(self) -> str:
        """The status in words that tell why: sleeping until …, backing off until …, waiting for …, needs review."""
        until = f" until {self.next_run_at:%Y-%m-%d %H:%M:%S} UTC" if self.next_run_at else ""
        if self.cancel_requested_at and self.finished_at is None:
            return f"{self.status}, cancelling"
        match self.status:
            case "waiting":
                names = ", ".join(
                    f"{wait.kind} {wait.name or wait.key}" for wait in self.waiting_for if wait.kind != "timer"
                )
                return f"waiting for {names or 'a wake-up'}{until}"
            case "pending" if any(wait.kind == "retry" for wait in self.waiting_for):
                return f"backing off{until}"
            case "pending" if self.waiting_for:
                return f"sleeping{until}"
            case "pending" if self.error is not None:
                return f"backing off{until}"
            case "pending" if self.next_run_at and self.next_run_at > self.updated_at:
                return f"delayed{until}"
            case "failed":
                return "failed, needs review"
            case _:
                return self.status

    @classmethod
    def of(cls, row: WorkflowRow) -> WorkflowInfo:
        """From a store's row."""
        waits = _json(row.waiting_for) or []
        waits = [wait for wait in waits if isinstance(wait, dict)] if isinstance(waits, list) else []
        tags = _json(row.tags) or {}
        return cls(
            id=row.id,
            type=row.type,
            status=row.status,
            queue=row.queue,
            priority=row.priority,
            partition=row.partition,
            arguments=_json(row.payload),
            result=_json(row.result),
            error=_error(row.error),
            progress=_json(row.progress),
            tags=tags if isinstance(tags, dict) else {},
            step=row.step,
            waiting_for=tuple(
                Wait(
                    wait["kind"],
                    wait["key"],
                    wait.get("name", ""),
                    _moment(wait.get("until")),
                    wait.get("tries", 0),
                    wait.get("error", ""),
                )
                for wait in waits
            ),
            attempts=row.attempts,
            crashes=row.crashes,
            max_attempts=row.max_attempts,
            worker=row.worker,
            parent_id=row.parent_id,
            next_run_at=_moment(row.next_run_at),
            deadline=_moment(row.deadline),
            cancel_requested_at=_moment(row.cancel_requested_at),
            created_at=moment(row.created_at),
            started_at=_moment(row.started_at),
            updated_at=moment(row.updated_at),
            finished_at=_moment(row.finished_at),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """One recorded entry. `struck` entries no longer count: their step was, or will be, tried again.

    `kind` is one of step, timer, signal, child, start, cancel, timeout, patch and attempt.
    """

    seq: int
    key: str
    kind: str
    arguments: str | None
    result: Any
    error: ErrorInfo | None
    tries: int
    started_at: datetime | None
    finished_at: datetime
    struck: bool

    @classmethod
    def of(cls, row: JournalRow) -> JournalEntry:
        """From a store's row."""
        return cls(
            seq=row.seq,
            key=row.key,
            kind=row.kind,
            arguments=row.arguments,
            result=_json(row.result),
            error=_error(row.error),
            tries=row.tries,
            started_at=_moment(row.started_at),
            finished_at=moment(row.finished_at),
            struck=row.struck,
        )

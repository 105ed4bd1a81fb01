"""Errors as recorded text and back: what a body raised becomes an `ErrorRecord`, and what workflow code sees is built from it.

The same record is used live and on replay, so that `except` branches alike both times. Classes are never imported by name:
only those that the step's own `raises=` lists are rebuilt.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Any

import msgspec

from onward._store.records import ErrorRecord
from onward.errors import Fail, StepFailed, StepTimedOut, WorkflowCancelled, WorkflowFailed, WorkflowTimedOut

MAX_TEXT = 8_000
"""Characters kept of a message and of a traceback (its end); enough for people, small enough for a row."""


class StepTimeout(Exception):
    """A try of a step ran longer than the step's `timeout`."""


def describe(
    error: BaseException,
    raises: Sequence[type[BaseException]] = (),
    *,
    seq: int | None = None,
    status: str | None = None,
) -> str:
    """The record of an error as JSON. `raises` are the classes that may come back as themselves."""
    listed = next((cls for cls in raises if isinstance(error, cls)), None)
    record = ErrorRecord(
        type=type(error).__name__,
        message=_clean(_message(error))[:MAX_TEXT],
        traceback=_clean("".join(traceback.format_exception(error)))[-MAX_TEXT:],
        listed=listed.__qualname__ if listed else None,
        args=_arguments(error) if listed else None,
        fatal=isinstance(error, Fail),
        timed_out=isinstance(error, StepTimeout),
        status=status,
        seq=seq,
    )
    return msgspec.json.encode(record).decode()


def note(type_name: str, message: str, *, status: str | None = None) -> str:
    """The record of something that is no exception here (a cancellation, a deadline), as JSON."""
    return msgspec.json.encode(ErrorRecord(type=type_name, message=message, status=status)).decode()


def read(record_json: str) -> ErrorRecord:
    """Decode a record; text that is none becomes one that shows it."""
    try:
        return msgspec.json.decode(record_json, type=ErrorRecord)
    except msgspec.MsgspecError:
        return ErrorRecord(type="Unreadable", message=record_json[:200])


def short(record_json: str) -> str:
    """A record in a few words: class name and the beginning of the message."""
    record = read(record_json)
    return f"{record.type}: {record.message[:300]}" if record.message else record.type


def rebuild_step(record_json: str, key: str, raises: Sequence[type[Exception]] = ()) -> Exception:
    """The exception that workflow code sees for a step's recorded error."""
    record = read(record_json)
    if record.listed is not None:
        for cls in raises:
            if cls.__qualname__ == record.listed:
                return _construct(cls, record)
    if record.fatal:
        return Fail(record.message)
    failed = StepTimedOut if record.timed_out else StepFailed
    return failed(key, record.type, record.message, record.traceback)


def rebuild_workflow(record_json: str, workflow_id: str, raises: Sequence[type[Exception]] = ()) -> Exception:
    """The exception that a parent or a caller of `result()` sees for a workflow's recorded end."""
    record = read(record_json)
    if record.listed is not None:
        for cls in raises:
            if cls.__qualname__ == record.listed:
                return _construct(cls, record)
    if record.status == "cancelled":
        return WorkflowCancelled(workflow_id, record.type, record.message, record.traceback)
    if record.timed_out or record.status == "timed_out":
        return WorkflowTimedOut(workflow_id, record.type, record.message, record.traceback)
    return WorkflowFailed(workflow_id, record.type, record.message, record.traceback)


def _construct(cls: type[Exception], record: ErrorRecord) -> Exception:
    args = tuple(record.args) if record.args is not None else (record.message,)
    try:
        return cls(*args)
    except Exception:  # a constructor with a signature of its own: give it the arguments without calling it
        error = cls.__new__(cls, *args)
        error.args = args
        return error


def _arguments(error: BaseException) -> list[Any] | None:
    try:
        text = msgspec.json.encode(error.args)
        if tuple(msgspec.json.decode(text)) != error.args:
            return None
    except (TypeError, ValueError, msgspec.MsgspecError, RecursionError):
        return None
    return list(error.args)


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:  # a user's __str__ may raise; the failure must still be recorded
        return f"<{type(error).__name__} whose text cannot be made: {type(broken).__name__}>"


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()

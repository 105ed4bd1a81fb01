"""The errors that a store itself writes into a workflow's row, and the crash counts at which it does."""

from __future__ import annotations

import msgspec

from onward._store.records import ErrorRecord

QUARANTINE_CRASHES = 2
"""Crashes from which on a row is claimed alone only."""

CRASH_LIMIT = 4
"""Crashes that make a workflow `failed`; the last two of them happened alone."""


def _record(type: str, message: str, status: str) -> str:
    return msgspec.json.encode(ErrorRecord(type=type, message=message, status=status)).decode()


CANCELLED_UNBEGUN = _record("WorkflowCancelled", "cancelled before it began", "cancelled")
CRASHED = _record(
    "WorkflowCrashed",
    f"its worker process died {CRASH_LIMIT} times while it ran, the last two times with nothing beside it",
    "failed",
)

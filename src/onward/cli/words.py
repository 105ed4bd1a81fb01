"""Words for people: lengths of time, moments, states with the time that is left, JSON on one line. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from onward._store.quantities import span
from onward.cli.settings import one_line
from onward.info import ErrorInfo, WorkflowInfo


def relative(at: datetime, now: datetime) -> str:
    """`in 3 d 4 h`, `just now` or `5 min ago`."""
    left = (at - now).total_seconds()
    if -1 < left <= 0:
        return "just now"
    return f"in {span(left)}" if left > 0 else f"{span(-left)} ago"


def instant(at: datetime) -> str:
    """A moment in UTC, to the second."""
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def state(info: WorkflowInfo, now: datetime) -> str:
    """`WorkflowInfo.state` with the time that is left, or with the fact that it is due."""
    at = info.next_run_at
    words = one_line(info.state)
    if at is None or info.finished_at is not None:
        return words
    if at > now:
        return f"{words} (in {span((at - now).total_seconds())})"
    return words if info.status == "pending" and not info.waiting_for and info.error is None else f"{words} (due now)"


def brief_state(info: WorkflowInfo, now: datetime) -> str:
    """The state for a table: `sleeping (2 d 23 h left)`."""
    words, until, _ = one_line(info.state).partition(" until ")
    if not until or info.next_run_at is None:
        return words
    left = (info.next_run_at - now).total_seconds()
    return f"{words} ({span(left)} left)" if left > 0 else f"{words} (due now)"


def json_line(value: Any, limit: int | None = None) -> str:
    """A value as JSON on one line, cut at `limit` characters."""
    return cut(one_line(msgspec.json.encode(value).decode()), limit)


def error_line(error: ErrorInfo, limit: int | None = None) -> str:
    """An error on one line."""
    return cut(one_line(f"{error.type}: {error.message}" if error.message else error.type), limit)


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def cut(text: str, limit: int | None) -> str:
    """The text, or its beginning and `...`."""
    return text if limit is None or len(text) <= limit else f"{text[: max(limit - 3, 0)]}..."

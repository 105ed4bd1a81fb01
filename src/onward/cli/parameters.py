"""What command-line values mean: durations, moments, tags. Given to click as `type=`; a refusal is a usage error (exit 2)."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import click

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d|w)\s*")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def seconds_of(text: str) -> float | None:
    """Seconds of `90`, `1.5h`, `2d12h`; None if it is no duration.

    >>> seconds_of("1h30m"), seconds_of("90"), seconds_of("soon")
    (5400.0, 90.0, None)
    """
    rest = text.strip().lower()
    if _NUMBER.fullmatch(rest):
        return float(rest)
    total = 0.0
    while part := _PART.match(rest):
        total += float(part[1]) * _UNITS[part[2]]
        rest = rest[part.end() :]
    return total if text.strip() and not rest else None


def duration(text: str | float) -> float:
    """Seconds, or numbers with units: 90, 30s, 5m, 2h, 3d, 1h30m."""
    if not isinstance(text, str):
        return float(text)
    seconds = seconds_of(text)
    if seconds is None:
        raise click.BadParameter(f"{text!r} is no duration: write seconds, or 30s, 5m, 2h, 3d, 1h30m")
    return seconds


def moment(text: str) -> datetime:
    """A past moment: an age (2h, 3d), or an ISO date or time, local unless it has an offset."""
    age = seconds_of(text)
    try:
        if age is not None:
            return datetime.now(UTC) - timedelta(seconds=age)
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{text!r} is neither an age (2h, 3d) nor a time (2026-07-28, 2026-07-28T09:30Z)"
        ) from None


def tag(text: str) -> tuple[str, str]:
    """NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise click.BadParameter(f"{text!r} is no tag: write NAME=VALUE")
    return name, value

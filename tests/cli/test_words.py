"""Durations, moments, tags and lines: what goes in and what is shown."""

from __future__ import annotations

import doctest
from datetime import UTC, datetime, timedelta

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onward._store import quantities
from onward._store.quantities import span
from onward.cli import parameters
from onward.cli.parameters import duration, moment, seconds_of, tag
from onward.cli.settings import one_line
from onward.cli.words import relative


@pytest.mark.parametrize("module", [parameters, quantities])
def test_the_examples_in_the_docstrings_hold(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("1.5", 1.5),
        ("250ms", 0.25),
        ("30s", 30),
        ("5m", 300),
        ("5 min", 300),
        ("1h30m", 5400),
        ("2D 12h", 216000),
        ("1w", 604800),
    ],
)
def test_durations_are_seconds_or_numbers_with_units(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", " ", "soon", "5x", "-3", "h", "1h 30", "3 d 4", "inf", "nan", "1e3"])
def test_other_texts_are_no_durations(text: str) -> None:
    assert seconds_of(text) is None
    with pytest.raises(click.BadParameter):
        duration(text)


def test_moments_are_ages_or_iso_times() -> None:
    assert abs(moment("2h") - (datetime.now(UTC) - timedelta(hours=2))) < timedelta(seconds=5)
    assert moment("2026-07-28T09:30Z") == datetime(2026, 7, 28, 9, 30, tzinfo=UTC)
    assert moment("2026-07-28").tzinfo is not None
    for wrong in ("yesterday", "2026-13-01", "99999999999w"):
        with pytest.raises(click.BadParameter):
            moment(wrong)


def test_tags_are_split_at_the_first_equals_sign() -> None:
    assert tag("a=b=c") == ("a", "b=c")
    assert tag("a=") == ("a", "")
    for wrong in ("a", "=b"):
        with pytest.raises(click.BadParameter):
            tag(wrong)


@given(st.floats(0, 1e9))
def test_a_span_is_short_and_near_the_truth(seconds: float) -> None:
    text = span(seconds)
    assert len(text.split()) <= 4
    back = seconds_of(text)
    assert back is not None
    assert abs(back - seconds) <= max(0.06 * seconds, 0.0001), text


def test_a_moment_is_told_relative_to_now() -> None:
    now = datetime(2026, 7, 28, tzinfo=UTC)
    assert relative(now + timedelta(days=3), now) == "in 3 d"
    assert relative(now - timedelta(seconds=0.5), now) == "just now"
    assert relative(now - timedelta(minutes=5), now) == "5 min ago"


@given(st.text())
def test_one_line_is_printable_and_one_line(text: str) -> None:
    assert one_line(text).isprintable()

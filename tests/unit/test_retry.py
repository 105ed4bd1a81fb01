"""Retry policies: which errors, how often, how long; RetryLater and durations."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onward.errors import ConfigurationError
from onward.retry import NO_RETRY, Retry, RetryLater, exception_classes, seconds, workflow_backoff


def test_waits_grow_by_the_factor_up_to_the_longest() -> None:
    """delay, delay·factor, delay·factor² … never more than max_delay."""
    policy = Retry(tries=9, delay=2, factor=3, max_delay=timedelta(seconds=20), jitter=0)
    assert [policy.delay_before(number) for number in (2, 3, 4, 5)] == [2.0, 6.0, 18.0, 20.0]


def test_no_wait_overflows() -> None:
    """The ten-thousandth try waits max_delay."""
    assert Retry(factor=10.0).delay_before(10_000) == 3600.0


@given(st.integers(2, 500), st.floats(0, 1), st.integers())
def test_jitter_only_shortens(number: int, jitter: float, seed: int) -> None:
    """A wait with jitter lies between its share and the full wait, and depends on the generator alone."""
    policy = Retry(jitter=jitter)
    full = policy.delay_before(number)
    wait = policy.delay_before(number, random.Random(seed))
    assert full * (1 - jitter) <= wait <= full
    assert wait == policy.delay_before(number, random.Random(seed))


def test_which_errors_are_tried_again() -> None:
    """retry_on selects, give_up_on excepts, and what is no Exception is never tried again."""
    policy = Retry(retry_on=(OSError,), give_up_on=FileNotFoundError)  # type: ignore[arg-type]  # one class will do
    assert policy.wants(TimeoutError())
    assert not policy.wants(FileNotFoundError())
    assert not policy.wants(ValueError())
    assert Retry().wants(ValueError())
    assert not Retry().wants(KeyboardInterrupt())
    assert NO_RETRY.tries == 1


@pytest.mark.parametrize(
    "options",
    [
        {"tries": 0},
        {"tries": 2.5},
        {"tries": True},
        {"delay": -1},
        {"delay": float("nan")},
        {"delay": "1"},
        {"max_delay": float("inf")},
        {"factor": 0.5},
        {"factor": float("nan")},
        {"jitter": 1.5},
        {"jitter": -0.1},
        {"retry_on": (ValueError("x"),)},
        {"retry_on": "ValueError"},
        {"give_up_on": (BaseException,)},
        {"give_up_on": 5},
    ],
)
def test_impossible_policies_are_refused(options: dict[str, Any]) -> None:
    """A policy that cannot be is a ConfigurationError that names the option."""
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        Retry(**options)


def test_durations_are_seconds_or_timedeltas() -> None:
    """Both give float seconds; anything else is refused under its name."""
    assert seconds(timedelta(days=3)) == 259_200.0
    assert (seconds(2), seconds(0.5), seconds(0)) == (2.0, 0.5, 0.0)
    for wrong in (-1, float("inf"), float("nan"), "1", None, True, timedelta(seconds=-1)):
        with pytest.raises(ConfigurationError, match="delay= must be"):
            seconds(wrong, "delay=")  # type: ignore[arg-type]  # the point


def test_exception_classes_come_as_a_tuple() -> None:
    """One class or several; no instances, no BaseException."""
    assert exception_classes(ValueError, "raises=") == (ValueError,)
    assert exception_classes([ValueError, KeyError], "raises=") == (ValueError, KeyError)
    assert exception_classes((), "raises=") == ()


def test_workflow_attempts_back_off_by_minutes() -> None:
    """min(30, 2**n) minutes."""
    assert [workflow_backoff(number) / 60 for number in (1, 2, 4, 5, 6, 1000)] == [2, 4, 16, 30, 30, 30]


def test_retry_later_says_when() -> None:
    """After a duration or until a moment, exactly one of the two."""
    assert RetryLater(after=timedelta(minutes=1)).after_s == 60.0
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    assert RetryLater(until=moment).until == moment
    assert str(RetryLater(after=30)) == "again after 30 s"
    with pytest.raises(ConfigurationError, match="either after= or until="):
        RetryLater()
    with pytest.raises(ConfigurationError, match="either after= or until="):
        RetryLater(after=1, until=moment)
    with pytest.raises(ConfigurationError, match="timezone-aware"):
        RetryLater(until=datetime(2026, 1, 1))  # noqa: DTZ001  # the point
    with pytest.raises(ConfigurationError, match="after="):
        RetryLater(after=-1)

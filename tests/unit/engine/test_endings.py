"""The failure policy's arithmetic and the words that a parked row carries."""

from __future__ import annotations

import json
import random

import pytest

from onward import Retry
from onward._engine.endings import MAX_SHOWN_WAITS, Verdict, divergence_backoff, waiting_for
from onward._engine.failures import note
from onward._engine.replay.commands import Waiting
from onward._store.operations import FailAttemptOp, Fence, FinishOp
from onward._store.records import Entry, StepRetry
from onward.retry import workflow_backoff

FENCE = Fence("w", "worker", 1)


def test_a_divergence_backs_off_one_second_doubling_to_five_minutes() -> None:
    """By the number of divergences before it, however many."""
    waits = [divergence_backoff(count) for count in range(12)]
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    assert divergence_backoff(10_000) == 300


def test_a_workflows_attempts_back_off_two_minutes_doubling_to_thirty() -> None:
    """min(30, 2**n) minutes after the n-th failed attempt, however many."""
    assert [workflow_backoff(attempt) / 60 for attempt in range(1, 7)] == [2, 4, 8, 16, 30, 30]
    assert workflow_backoff(10_000) == 30 * 60


def test_a_steps_tries_back_off_by_the_factor_up_to_the_longest() -> None:
    """delay * factor**(n-2) before try n, capped, without overflow."""
    policy = Retry(tries=9, delay=0.5, factor=3, max_delay=10, jitter=0)
    assert [policy.delay_before(number) for number in range(2, 7)] == [0.5, 1.5, 4.5, 10, 10]
    assert policy.delay_before(100_000) == 10


def test_jitter_only_shortens_and_never_by_more_than_its_share() -> None:
    """A wait of 10 s with jitter 0.2 lies between 8 and 10 s, and is not always the same."""
    policy, rng = Retry(tries=3, delay=10, jitter=0.2), random.Random(5)
    waits = {policy.delay_before(2, rng) for _ in range(200)}
    assert all(8 <= wait <= 10 for wait in waits)
    assert max(waits) - min(waits) > 1


def test_a_parked_row_names_what_it_waits_for() -> None:
    """Kind and key of each; the name of signals and children, the instant of timers."""
    shown = waiting_for(
        [
            Waiting("signal:go", "signal", "go"),
            Waiting("child", "child", "w/child"),
            Waiting("sleep", "timer", "", 123),
        ],
        {},
    )
    assert json.loads(shown) == [
        {"kind": "signal", "key": "signal:go", "name": "go"},
        {"kind": "child", "key": "child", "name": "w/child"},
        {"kind": "timer", "key": "sleep", "until": 123},
    ]


def test_a_step_between_two_tries_is_shown_with_its_time_and_last_error() -> None:
    """A step without a retry state is running, not waiting: it is left out."""
    retries = {
        "charge": StepRetry("charge", 2, 500, note("ValueError", "no")),
        "later": StepRetry("later", 0, 600),
    }
    waits = [Waiting(key, "step") for key in ("charge", "later", "running")]
    assert json.loads(waiting_for(waits, retries)) == [
        {"kind": "retry", "key": "charge", "until": 500, "tries": 2, "error": "ValueError: no"},
        {"kind": "retry", "key": "later", "until": 600, "tries": 0},
    ]


def test_a_row_that_waits_for_nothing_still_says_so() -> None:
    """Never null: that would not mark the row as parked."""
    assert waiting_for([], {}) == "[]"


def test_only_the_first_waits_are_named() -> None:
    """A parent of thousands of children keeps a small row."""
    waits = [Waiting(f"c{number}", "child", f"w/c{number}") for number in range(5000)]
    shown = json.loads(waiting_for(waits, {}))
    assert [item["key"] for item in shown] == [f"c{number}" for number in range(MAX_SHOWN_WAITS)]


@pytest.mark.parametrize("shifts", [True, False])
def test_a_failed_attempt_moves_pending_timers_by_its_back_off(shifts: bool) -> None:
    """By an `attempt` entry in the failure's own transaction, and only where timers are pending."""
    retries = (StepRetry("s", 1, 9),)
    verdict = Verdict(FENCE, error="{}", backoff_us=120, strike=(3,), shifts_timers=shifts, retries=retries)
    entries = (Entry(8, "attempt", "attempt", 77, result="120"),) if shifts else ()
    assert not verdict.is_final
    assert verdict.operation(8, 77) == FailAttemptOp(FENCE, "{}", 120, entries, (3,), retries)


def test_a_final_verdict_is_written_as_it_is() -> None:
    """Its operation is ready, whatever the journal's number."""
    finish = FinishOp(FENCE, "completed", result="1")
    verdict = Verdict(FENCE, finish)
    assert verdict.is_final
    assert verdict.operation(8, 77) is finish

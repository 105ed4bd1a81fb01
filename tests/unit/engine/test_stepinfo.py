"""What a body learns of its own try; a cancellation reaches it at whatever moment it comes."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from onward._engine.stepinfo import StepInfo


def info(**options: Any) -> StepInfo:
    return StepInfo(workflow_id="w", key="k", idempotency_key="w/k", try_number=1, **options)


def test_a_cancel_that_comes_while_a_body_begins_to_wait_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop cancels between the body's look and its wait: the body must see it."""
    one = info()
    plain_event = threading.Event
    has_come = False

    def make_event() -> threading.Event:
        nonlocal has_come
        if not has_come:
            has_come = True
            one.cancel()
        return plain_event()

    monkeypatch.setattr(threading, "Event", make_event)
    assert one.wait_cancelled(0)
    assert has_come
    assert one.cancelled


def test_every_thread_that_waits_is_woken() -> None:
    """A body may wait in threads of its own."""
    one, found = info(), []
    threads = [threading.Thread(target=lambda: found.append(one.wait_cancelled(30))) for _ in range(4)]
    for thread in threads:
        thread.start()
    one.cancel()
    for thread in threads:
        thread.join(30)
    assert found == [True] * 4


def test_without_a_cancel_the_time_passes_and_the_answer_is_no() -> None:
    """And nothing is left of the wait."""
    one = info()
    assert not one.wait_cancelled(0)
    assert not one.cancelled
    assert one._waiters == []


def test_a_cancelled_try_waits_no_more() -> None:
    """`wait_cancelled()` without a limit returns at once."""
    one = info()
    one.cancel()
    one.cancel()
    assert one.wait_cancelled()


def test_a_heartbeat_keeps_its_details() -> None:
    """Callable from the body's thread."""
    one = info()
    one.heartbeat({"done": 3})
    assert one.details == {"done": 3}
    one.heartbeat()
    assert one.details is None

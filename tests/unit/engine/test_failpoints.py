"""The places of the fault suite: unarmed they do nothing, armed they kill at exactly the named time."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from onward._engine import failpoints


@pytest.fixture
def kills(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The signals that this process would have sent itself."""
    sent: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append(number))
    yield sent
    failpoints.arm(None)


@pytest.mark.parametrize("setting", [None, "", "@3"])
def test_unarmed_points_do_nothing(setting: str | None, kills: list[int]) -> None:
    """However often they are passed."""
    failpoints.arm(setting)
    for _ in range(10):
        failpoints.hit("flush:before")
    assert kills == []


def test_a_named_point_kills_at_its_first_passing() -> None:
    """Really: the process ends by SIGKILL."""
    pid = os.fork()
    if pid == 0:
        failpoints.arm("here")
        failpoints.hit("elsewhere")
        failpoints.hit("here")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_a_counted_point_kills_at_exactly_that_passing(kills: list[int]) -> None:
    """Passings of other names do not count."""
    failpoints.arm("flush:after@3")
    counts = []
    for name in ("flush:after", "flush:before", "flush:after", "body:after", "flush:after", "flush:after"):
        failpoints.hit(name)
        counts.append(len(kills))
    assert counts == [0, 0, 0, 0, 1, 1]
    assert kills == [signal.SIGKILL]


def test_a_star_counts_every_point(kills: list[int]) -> None:
    """The kill loop of the fault suite."""
    failpoints.arm("*@2")
    counts = []
    for name in ("a", "b", "c"):
        failpoints.hit(name)
        counts.append(len(kills))
    assert counts == [0, 1, 1]

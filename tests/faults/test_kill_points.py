"""SIGKILL at each failpoint by name, before and after every commit, each followed by a fresh worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.kills import IS_LONG, Matrix, tell
from tests.faults.processes import ForkServers

pytestmark = pytest.mark.slow

COMMITS = [f"{what}:{when}-commit" for what in ("claim", "register", "step", "write") for when in ("before", "after")]
POINTS = ["body:after", "body:before", "flush:after", "flush:before", *COMMITS]


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory, servers: ForkServers, kind: str) -> Iterator[Matrix]:
    """The undisturbed run and copies of its database."""
    made = Matrix(tmp_path_factory.mktemp("points"), servers, kind)
    yield made
    made.close()


def test_the_undisturbed_run_passes_every_point_that_is_killed_at(matrix: Matrix) -> None:
    """A failpoint that is renamed or lost does not make the suite green by never killing."""
    assert {point for point in matrix.points if not point.startswith(("retire", "renew", "adopt", "reconcile"))} == set(
        POINTS
    )


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_any_point_changes_nothing_in_the_outcome(matrix: Matrix, kind: str, point: str) -> None:
    """Whatever a worker was doing when it died, a fresh one brings the workflow to the undisturbed outcome."""
    count = matrix.points[point]
    some = {1, max(1, count // 3), max(1, 2 * count // 3), count} if kind == "sqlite" else {1, max(1, count // 2)}
    rounds = matrix.rounds([f"{point}@{number}" for number in (range(1, count + 1) if IS_LONG else sorted(some))])
    late = (2, 4) if kind == "sqlite" or IS_LONG else (4,)
    rounds += matrix.rounds([f"{point}@{number}" for number in late if number <= count], late_signal=True)
    tell(rounds)
    assert rounds[0].was_killed


@pytest.mark.parametrize("point", ["body:before", "write:before-commit", "write:after-commit"])
def test_kills_change_nothing_where_every_park_is_replayed_and_compared(matrix: Matrix, point: str) -> None:
    """With checks_replay the worker compares each execution with a replay of its journal; the outcome stays the same."""
    rounds = matrix.rounds([f"{point}@{number}" for number in (2, 5, 9)], checks_replay=True)
    assert any(one.was_killed for one in rounds)

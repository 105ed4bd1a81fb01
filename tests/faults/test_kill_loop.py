"""The loop "kill at the N-th store call or step body, N = 1, 2, …" until a worker survives to the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.kills import IS_LONG, SIDE_BY_SIDE, Matrix, tell
from tests.faults.processes import ForkServers

pytestmark = pytest.mark.slow

STRIDES = {"sqlite": 3, "postgres": 15}
"""Each N at full length."""


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory, servers: ForkServers, kind: str) -> Iterator[Matrix]:
    """The undisturbed run and copies of its database."""
    made = Matrix(tmp_path_factory.mktemp("loop"), servers, kind)
    yield made
    made.close()


@pytest.mark.parametrize("mode", ["ordinary", "late_signal", "always_parks"])
def test_a_kill_at_the_nth_point_changes_nothing_for_any_n(matrix: Matrix, kind: str, mode: str) -> None:
    """N rises until the victim survives; every N leads to the undisturbed outcome (a sample of them by default)."""
    stride = 1 if IS_LONG else STRIDES[kind] if mode == "ordinary" else 2 * STRIDES[kind]
    options = {} if mode == "ordinary" else {mode: True}
    next_n, survived, kill_count = 1, False, 0
    while not survived:
        numbers = [next_n + index * stride for index in range(SIDE_BY_SIDE)]
        rounds = matrix.rounds([f"*@{number}" for number in numbers], **options)
        tell(rounds)
        kill_count += sum(one.was_killed for one in rounds)
        survived = not all(one.was_killed for one in rounds)
        next_n = numbers[-1] + stride
    assert kill_count * stride > matrix.points.total() // 3

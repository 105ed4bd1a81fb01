"""How many rows are claimed before a slot is free for them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from onward._engine.ahead import LATELY_S, PATIENCE_S, Ahead
from onward._engine.runner import Runner


class Time:
    """A clock that stands until a test moves it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def made(most: int = 100) -> tuple[Ahead, Time]:
    time = Time()
    return Ahead(most, time), time


def fake(name: str, given_back: list[str] | None = None) -> Runner:
    """What `Ahead` asks of a runner."""
    back: Any = (lambda: given_back.append(name)) if given_back is not None else None
    return cast(Runner, SimpleNamespace(row=SimpleNamespace(id=name), is_dropped=False, wind_down=back))


def leave(ahead: Ahead, count: int) -> None:
    for _ in range(count):
        ahead.left()


def test_nothing_is_claimed_ahead_where_nothing_has_left() -> None:
    ahead, _ = made()
    assert ahead.room() == 0


def test_as_many_as_have_lately_left_and_never_more_than_the_most() -> None:
    ahead, _ = made(most=10)
    leave(ahead, 7)
    assert ahead.room() == 7
    leave(ahead, 7)
    assert ahead.room() == 10


def test_what_left_long_ago_counts_no_more() -> None:
    ahead, time = made()
    leave(ahead, 50)
    time.now += 10 * LATELY_S
    assert ahead.room() == 0


def test_a_worker_with_one_slot_claims_nothing_ahead() -> None:
    ahead, _ = made(most=0)
    leave(ahead, 50)
    assert ahead.room() == 0


def test_more_are_claimed_only_when_half_of_them_have_begun() -> None:
    ahead, _ = made(most=10)
    leave(ahead, 20)
    ahead.add([str(n) for n in range(10)])
    for n in range(10):
        ahead.loaded(fake(str(n)), None)
    rooms = []
    while ahead.take() is not None:
        rooms.append(ahead.room())
    assert rooms == [0, 0, 0, 0, 5, 6, 7, 8, 9, 10]


def test_they_begin_in_the_order_of_the_claim_without_those_that_are_gone() -> None:
    ahead, _ = made()
    ahead.add("abc")
    runners = [fake(name) for name in "abc"]
    for runner in runners:
        ahead.loaded(runner, None)
    runners[1].is_dropped = True
    ahead.forget("b")
    taken = [item[0].row.id for _ in range(2) if (item := ahead.take()) is not None]
    assert taken == ["a", "c"]
    assert len(ahead) == 0


def test_what_has_waited_too_long_is_given_back_and_nothing_is_claimed_ahead_then() -> None:
    ahead, time = made()
    given_back: list[str] = []
    leave(ahead, 50)
    ahead.add("ab")
    ahead.loaded(fake("a", given_back), None)
    time.now += PATIENCE_S / 2
    ahead.loaded(fake("b", given_back), None)
    leave(ahead, 50)
    time.now += PATIENCE_S / 2
    assert ahead.gives_up_at == time.now
    ahead.give_back()
    assert (given_back, "a" in ahead, "b" in ahead) == (["a"], False, True)
    assert ahead.room() == 0

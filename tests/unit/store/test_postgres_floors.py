"""Claims that begin at a floor while dead entries pile up, and that nothing is lost below it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from onward._store.postgres import floors
from onward._store.postgres.floors import FAST_US, SLACK_US, SLOW_US, Floors, Look
from onward._store.postgres.store import PostgresStore
from tests.conformance.support import SECOND, T0, PostgresWorld, request, start

NOW = T0 + 100 * SECOND


def slow(times: dict[int, int], took_us: int = 10 * SLOW_US) -> Look:
    return Look(NOW, took_us, times)


def test_claims_that_are_fast_begin_at_the_beginning() -> None:
    kept = Floors(lambda: None)
    kept.claimed("q", False, Look(NOW, SLOW_US, {0: NOW}), 0, 10)
    kept.claimed("q", False, Look(NOW, SLOW_US + 100 * 50, {0: NOW}), 100, 100)
    assert kept.of("q", False) is None


def test_a_slow_claim_that_saw_everything_puts_the_floor_some_seconds_before_now() -> None:
    kept = Floors(lambda: None)
    kept.claimed("q", False, slow({0: NOW - 1, 5: NOW - 60 * SECOND}), 2, 10)
    assert kept.of("q", False) == {0: NOW - SLACK_US, 5: NOW - SLACK_US}
    assert kept.of("q", True) is None
    assert kept.of("other", False) is None


def test_a_slow_claim_that_took_as_many_as_it_could_goes_on_where_it_stopped() -> None:
    kept = Floors(lambda: None)
    kept.claimed("q", False, slow({0: NOW - 60 * SECOND}, 10**6), 10, 10)
    assert kept.of("q", False) == {0: NOW - 60 * SECOND}
    kept.claimed("q", False, slow({0: NOW - 1}), 10, 10)
    assert kept.of("q", False) == {0: NOW - SLACK_US}
    kept.claimed("q", False, slow({0: NOW - 90 * SECOND}), 10, 10)
    assert kept.of("q", False) == {0: NOW - SLACK_US}


async def test_a_look_lowers_the_floor_to_what_it_finds_and_says_so_if_it_is_due() -> None:
    told: list[None] = []
    kept = Floors(lambda: told.append(None))
    kept.claimed("q", False, slow({0: NOW}), 1, 10)
    for first, count in ((NOW + SECOND, 0), (NOW - 50 * SECOND, 1)):
        kept._floors["q", False].next_look_at = 0.0
        kept.look_beside("q", False, answer(Look(NOW, FAST_US + 1, {0: first, 7: NOW + SECOND})))
        await asyncio.gather(*kept._tasks)
        assert len(told) == count
    assert kept.of("q", False) == {0: NOW - 50 * SECOND, 7: NOW + SECOND}


async def test_one_look_at_a_time_and_for_a_small_share_of_it() -> None:
    looks: list[None] = []
    kept = Floors(lambda: None)
    kept.claimed("q", False, slow({0: NOW}), 1, 10)

    async def look() -> Look:
        looks.append(None)
        return Look(NOW, 10 * SECOND, {})

    kept.look_beside("q", False, look)
    kept.look_beside("q", False, look)
    await asyncio.gather(*kept._tasks)
    kept.look_beside("q", False, look)
    assert len(looks) == 1


async def test_a_fast_look_ends_the_use_of_floors() -> None:
    kept = Floors(lambda: None)
    kept.claimed("q", False, slow({0: NOW}), 1, 10)
    kept.look_beside("q", False, answer(Look(NOW, FAST_US, {})))
    await asyncio.gather(*kept._tasks)
    assert kept.of("q", False) is None


def answer(look: Look) -> Callable[[], Awaitable[Look]]:
    async def given() -> Look:
        return look

    return given


async def test_a_row_below_the_floor_and_one_of_a_new_priority_are_found_beside_the_claims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(floors, "SLOW_US", -(10**9))
    monkeypatch.setattr(floors, "FAST_US", -(10**9))
    monkeypatch.setattr(floors, "SHORTEST_PAUSE_S", 0.0)
    world = PostgresWorld(tmp_path)
    try:
        store = await world.open()
        assert isinstance(store, PostgresStore)
        world.worker(store)
        await start(store, "first")
        assert [one.id for one in await store.claim(request())] == ["first"]
        assert store._floors.of("default", False) is not None
        world.clock.advance(60)
        assert await store.claim(request()) == []
        await start(store, "past", run_at=T0 - SECOND)
        await start(store, "urgent", priority=-5)
        heard = asyncio.Event()
        store.subscribe(heard.set)
        taken: list[str] = []
        async with asyncio.timeout(20):
            while len(taken) < 2:
                taken += [one.id for one in await store.claim(request())]
                await asyncio.gather(*store._floors._tasks)
            await heard.wait()  # a worker that rests is told to look
        assert sorted(taken) == ["past", "urgent"]
        assert await store.next_due(["default"], ["flow"], "c1") is None
    finally:
        await world.close()

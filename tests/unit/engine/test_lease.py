"""The lease: renewed by a thread of its own, doubted in time, lost for good, and never kept up over a stuck loop.

Beats come when a test says so, and the clock is the test's: nothing waits, nothing is measured.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from onward._engine import lease
from onward._engine.lease import BEAT_S, MARGIN, RENEW_S, LeaseEvents, LeaseKeeper
from onward._store.base import Store
from onward._store.records import WorkerRow
from onward.errors import FatalStoreError, TransientStoreError
from tests.unit.engine.leaping import turns

LEASE_S = 15.0
SURE_S = LEASE_S * (1 - MARGIN)
WORKER = WorkerRow(id="me", name="", host="", pid=1, queues=(), types=(), code_version="")


class Beats:
    """The clock, and in the place of the keeper's stop event: its thread rests in `wait` until the next beat."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self._rests = threading.Semaphore(0)
        self._goes_on = threading.Semaphore(0)
        self._is_set = False

    def monotonic(self) -> float:
        return self.now

    def wait(self, timeout: float) -> bool:
        self._rests.release()
        self._goes_on.acquire()
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        self._goes_on.release()

    def clear(self) -> None:
        self._is_set = False

    def ended(self) -> None:
        """The thread will rest no more."""
        self._rests.release()

    def beat_unseen(self) -> None:
        """One beat, which the loop does not turn for."""
        assert self._rests.acquire(timeout=30)
        self.now += BEAT_S
        self._goes_on.release()
        assert self._rests.acquire(timeout=30)
        self._rests.release()

    async def beat(self, count: int = 1) -> None:
        """Beats during which the loop turns."""
        for _ in range(count):
            self.beat_unseen()
            await turns()


class FakeLeases:
    """The lease thread's connection, as the protocol has it."""

    def __init__(self, beats: Beats) -> None:
        self._beats = beats
        self.calls: list[tuple[Any, ...]] = []
        self.threads: set[threading.Thread] = set()
        self.errors: dict[str, Exception] = {}
        self.is_alive = True
        self.dead_rows = 0

    def _called(self, *call: Any) -> None:
        self.threads.add(threading.current_thread())
        self.calls.append(call)
        if call[0] in self.errors:
            raise self.errors[call[0]]

    def register(self, worker: WorkerRow, lease_us: int) -> None:
        self._called("register", worker.id, lease_us)

    def renew(self, worker_id: str, lease_us: int) -> bool:
        self._called("renew", worker_id, lease_us)
        return self.is_alive

    def retire(self, worker_id: str) -> None:
        self._called("retire", worker_id)

    def bury(self, worker_id: str) -> int:
        self._called("bury", worker_id)
        return self.dead_rows

    def close(self) -> None:
        self._called("close")
        self._beats.ended()

    def count(self, name: str) -> int:
        return sum(call[0] == name for call in self.calls)


class Bench:
    """One keeper with its fakes; `told` is what it told the engine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.beats = Beats()
        monkeypatch.setattr(lease, "time", self.beats)
        self.leases = FakeLeases(self.beats)
        self.told: list[Any] = []
        self.keeper: LeaseKeeper
        self.told_elsewhere = False

    def leases_of_store(self) -> FakeLeases:
        return self.leases

    def open(self) -> None:
        """Make the keeper on the running loop."""
        thread = threading.current_thread()

        def tell(what: Any) -> None:
            self.told_elsewhere |= threading.current_thread() is not thread
            self.told.append(what)

        class FakeStore:
            leases = self.leases_of_store

        events = LeaseEvents(
            dead=lambda: tell("dead"),
            buried=lambda count: tell(count),
            renewed=lambda: tell("renewed"),
            failed=lambda error: tell(error),
        )
        self.keeper = LeaseKeeper(cast("Store", FakeStore()), LEASE_S, events)
        self.keeper._stop = cast("threading.Event", self.beats)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def run(bench: Bench, test: Callable[[], Awaitable[None]]) -> None:
    """Run on an ordinary loop, which other threads can wake; leave no thread behind."""

    async def main() -> None:
        bench.open()
        try:
            await test()
        finally:
            await bench.keeper.stop(retire=False)

    asyncio.run(main())
    assert not any(thread.is_alive() for thread in bench.leases.threads)
    assert bench.leases.calls[-1] == ("close",)
    assert not bench.told_elsewhere


def test_a_thread_of_its_own_renews_the_lease(bench: Bench) -> None:
    """Registered and renewed once per RENEW_S from one thread, which is not the loop's; every beat looks for the dead."""

    async def test() -> None:
        await bench.keeper.start(WORKER)
        assert bench.leases.calls == [("register", "me", 15_000_000)]
        await bench.beats.beat(8)
        assert bench.leases.count("renew") == 8 * BEAT_S / RENEW_S
        assert bench.leases.count("bury") == 8
        assert ("renew", "me", 15_000_000) in bench.leases.calls
        assert len(bench.leases.threads) == 1
        assert threading.current_thread() not in bench.leases.threads

    run(bench, test)


def test_the_lease_holds_up_to_its_margin(bench: Bench) -> None:
    """From the moment at which the renewal was asked for, not answered; before the start and after the stop never."""

    async def test() -> None:
        keeper, beats = bench.keeper, bench.beats
        assert not keeper.holds
        await keeper.start(WORKER)
        assert keeper.holds
        beats.now += SURE_S - 0.001
        assert keeper.holds
        beats.now += 0.001
        assert not keeper.holds
        await beats.beat()
        assert keeper.holds
        await keeper.stop(retire=False)
        assert not keeper.holds

    run(bench, test)


def test_a_lease_that_holds_again_after_doubt_is_told(bench: Bench) -> None:
    """Bodies that could not begin may now; ordinary renewals are not told."""

    async def test() -> None:
        await bench.keeper.start(WORKER)
        await turns()
        assert bench.told == ["renewed"]
        await bench.beats.beat(6)
        assert bench.told == ["renewed"]
        bench.beats.now += SURE_S
        await bench.beats.beat()
        await bench.beats.beat()
        assert bench.told == ["renewed", "renewed"]

    run(bench, test)


def test_a_worker_declared_dead_is_told_so_once_and_renews_no_more(bench: Bench) -> None:
    """Death is final: the lease holds no longer, the thread ends."""

    async def test() -> None:
        await bench.keeper.start(WORKER)
        await turns()
        bench.leases.is_alive = False
        await bench.beats.beat(2)
        assert bench.told == ["renewed", "dead"]
        assert not bench.keeper.holds
        assert bench.leases.count("renew") == 1
        assert bench.leases.calls[-1] == ("close",)

    run(bench, test)


def test_a_keeper_begins_anew_under_another_id(bench: Bench) -> None:
    """After a death the engine stops it and starts it again."""

    async def test() -> None:
        await bench.keeper.start(WORKER)
        bench.leases.is_alive = False
        await bench.beats.beat(2)
        await bench.keeper.stop(retire=False)
        bench.leases.is_alive = True
        fresh = Beats()
        fresh.now = bench.beats.now
        bench.keeper._stop = cast("threading.Event", fresh)
        bench.leases._beats = fresh
        await bench.keeper.start(WorkerRow(**{**_fields(WORKER), "id": "reborn"}))
        assert bench.leases.calls[-1] == ("register", "reborn", 15_000_000)
        assert bench.keeper.holds

    run(bench, test)


def _fields(row: WorkerRow) -> dict[str, Any]:
    return {name: getattr(row, name) for name in WorkerRow.__struct_fields__}


def test_a_stuck_loop_is_not_covered_up(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A loop that has not turned for a lease's length is renewed for no longer, is reported once with its line, and is
    renewed again when it turns."""

    async def test() -> None:
        await bench.keeper.start(WORKER)
        await turns()
        counts = []
        for _ in range(round(3 * LEASE_S / BEAT_S)):
            bench.beats.beat_unseen()
            counts.append(bench.leases.count("renew"))
        stuck_s = counts.index(counts[-1]) * BEAT_S  # the first beat asked the loop to turn
        assert LEASE_S - RENEW_S <= stuck_s < LEASE_S
        assert not bench.keeper.holds
        assert bench.leases.count("bury") == len(counts)
        await turns()
        await bench.beats.beat(2)
        assert bench.leases.count("renew") > counts[-1]
        assert bench.keeper.holds

    with caplog.at_level(logging.WARNING, "onward.lease"):
        run(bench, test)
    [message] = [record.getMessage() for record in caplog.records]
    assert "the event loop has not turned for 1.5 s" in message
    assert "test_lease.py" in message


def test_it_tells_any_thread_how_long_the_loop_has_been_stuck(bench: Bench) -> None:
    """Counted from the beat that asked the loop to turn; 0 as soon as it does."""

    async def test() -> None:
        keeper = bench.keeper
        assert keeper.stuck_s == 0
        await keeper.start(WORKER)
        for _ in range(7):
            bench.beats.beat_unseen()
        assert keeper.stuck_s == 6 * BEAT_S
        await turns()
        assert keeper.stuck_s == 0

    run(bench, test)


def test_it_tells_any_thread_how_long_ago_it_last_beat(bench: Bench) -> None:
    """However the beat went; 0 while there is no thread that could."""

    async def test() -> None:
        keeper = bench.keeper
        assert keeper.silent_s == 0
        await keeper.start(WORKER)
        assert keeper.silent_s == 0
        bench.leases.errors["renew"] = TransientStoreError("busy")
        await bench.beats.beat(3)
        assert keeper.silent_s == 0
        assert keeper.is_failing
        bench.beats.now += 40
        assert keeper.silent_s == 40
        await keeper.stop(retire=False)
        assert keeper.silent_s == 0

    run(bench, test)


def test_a_loop_that_is_stuck_again_is_reported_again(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Once for each time."""

    async def test() -> None:
        await bench.keeper.start(WORKER)
        for _ in range(2):
            for _ in range(6):
                bench.beats.beat_unseen()
            await turns()

    with caplog.at_level(logging.WARNING, "onward.lease"):
        run(bench, test)
    assert len(caplog.records) == 2


def test_a_database_that_is_away_is_tolerated_with_one_line(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Renewal goes on trying; the lease comes into doubt by itself; one line says so, one that it is over."""

    async def test() -> None:
        await bench.keeper.start(WORKER)
        bench.leases.errors["renew"] = TransientStoreError("busy")
        await bench.beats.beat(round(SURE_S / BEAT_S))
        assert bench.leases.count("renew") > 20
        assert not bench.keeper.holds
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        bench.leases.errors.clear()
        await bench.beats.beat(2)
        assert bench.keeper.holds

    with caplog.at_level(logging.INFO, "onward.lease"):
        run(bench, test)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert bench.told == ["renewed", "renewed"]


def test_the_rows_of_dead_workers_are_told_when_there_are_any(bench: Bench) -> None:
    """The engine looks for work at once; nothing is told otherwise."""

    async def test() -> None:
        await bench.keeper.start(WORKER)
        await bench.beats.beat(2)
        bench.leases.dead_rows = 3
        await bench.beats.beat()
        bench.leases.dead_rows = 0
        await bench.beats.beat()
        assert bench.told == ["renewed", 3]

    run(bench, test)


def test_an_error_that_is_none_of_the_database_is_passed_on(bench: Bench) -> None:
    """A worker whose lease nobody renews must end, and say why."""
    bug = RuntimeError("a bug")

    async def test() -> None:
        await bench.keeper.start(WORKER)
        bench.leases.errors["bury"] = bug
        await bench.beats.beat()
        assert bench.told == ["renewed", bug]

    run(bench, test)


@pytest.mark.parametrize("error", [FatalStoreError("read-only"), RuntimeError("a bug")])
def test_a_worker_that_cannot_be_registered_raises_at_its_start(bench: Bench, error: Exception) -> None:
    """Whatever the reason; the lease never holds."""

    async def test() -> None:
        bench.leases.errors["register"] = error
        with pytest.raises(type(error)):
            await bench.keeper.start(WORKER)
        assert not bench.keeper.holds

    run(bench, test)


def test_a_graceful_stop_removes_the_worker_s_row(bench: Bench) -> None:
    """From the same thread, before the connection closes."""

    async def test() -> None:
        await bench.keeper.start(WORKER)
        await bench.keeper.stop(retire=True)
        assert bench.leases.calls[-2:] == [("retire", "me"), ("close",)]
        await bench.keeper.stop(retire=True)
        assert bench.leases.count("retire") == 1

    run(bench, test)


def test_a_row_that_cannot_be_removed_is_left_to_expire(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """With one warning; the stop succeeds."""

    async def test() -> None:
        await bench.keeper.start(WORKER)
        bench.leases.errors["retire"] = TransientStoreError("busy")
        await bench.keeper.stop(retire=True)

    run(bench, test)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert bench.told == ["renewed"]

"""What the threads of one process share: turns at the write lock, hints of commits, and how they end."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import warnings
from pathlib import Path
from typing import NoReturn

import pytest

from onward._store.opening import open_store
from onward._store.operations import FinishOp, JournalOp, StartOp
from onward._store.sqlite.locks import HAS_FLOCK, LockFile
from onward._store.sqlite.shared import FairMutex, shared_file
from onward._store.sqlite.store import SqliteStore
from onward.errors import TransientStoreError
from tests.conformance.support import (
    SqliteWorld,
    claim_one,
    entry,
    new,
    one,
    row,
    start,
    started_and_claimed,
    worker_row,
)


def test_the_mutex_is_handed_over_in_order_of_arrival() -> None:
    mutex = FairMutex()
    order: list[int] = []
    arrived = [threading.Event() for _ in range(5)]

    def take(number: int) -> None:
        arrived[number].set()
        with mutex:
            order.append(number)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(5)]
    with mutex:
        for number, thread in enumerate(threads):
            thread.start()
            arrived[number].wait()
            while len(mutex._waiting) <= number:  # it has said that it wants the mutex
                os.sched_yield()
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]
    assert not mutex._is_held


def test_one_who_comes_back_at_once_does_not_overtake_one_who_waits() -> None:
    mutex = FairMutex()
    order: list[str] = []
    thread = threading.Thread(target=lambda: _enter(mutex, order, "waiter"))
    with mutex:
        thread.start()
        while not mutex._waiting:
            os.sched_yield()
    _enter(mutex, order, "greedy")
    thread.join()
    assert order == ["waiter", "greedy"]


def _enter(mutex: FairMutex, order: list[str], name: str) -> None:
    with mutex:
        order.append(name)


def test_all_stores_of_one_file_share_one_mutex_also_by_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    first, second = SqliteStore(tmp_path / "real" / "x.db"), SqliteStore(tmp_path / "link" / "x.db")
    assert first._database.shared is second._database.shared
    assert shared_file(tmp_path / "other.db") is not first._database.shared


async def test_a_renewal_gets_its_turn_between_the_flushes_of_a_busy_writer(world: SqliteWorld) -> None:
    store = await world.open()
    leases = world.worker(store)
    flushes = [asyncio.ensure_future(store.write([StartOp(new(f"x{n}"))])) for n in range(300)]
    renewed = asyncio.ensure_future(asyncio.to_thread(leases.renew, "w1", 1))
    assert await renewed
    unfinished = [flush for flush in flushes if not flush.done()]
    await asyncio.gather(*flushes)
    assert len(unfinished) > 100


async def test_no_thread_and_no_handle_outlives_close(world: SqliteWorld) -> None:
    threads, handles = set(threading.enumerate()), _handles(world.tmp_path)
    store = await world.open()
    leases = world.worker(store)
    store.subscribe(lambda: None)
    await start(store)
    await row(store)
    assert _handles(world.tmp_path) != handles
    watcher = [thread for thread in threading.enumerate() if thread.name == "onward-watch"]
    leases.close()
    await store.close()
    for thread in watcher:
        await asyncio.to_thread(thread.join, 5)
    left = {thread.name for thread in set(threading.enumerate()) - threads if thread.name.startswith("onward")}
    assert left == set()
    assert _handles(world.tmp_path) == handles


def _handles(directory: Path) -> set[str]:
    links = [Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd")]
    found = set()
    for link in links:
        try:
            found.add(os.readlink(link))
        except OSError:
            continue
    return {name for name in found if name.startswith(str(directory))}


async def test_a_store_on_a_closed_loop_troubles_nobody(world: SqliteWorld) -> None:
    heard: list[None] = []

    def other_loop() -> None:
        async def body() -> None:
            store = open_store(world.url())
            await store.open()
            store.subscribe(lambda: heard.append(None))  # never ended

        asyncio.run(body())

    await asyncio.to_thread(other_loop)
    await start(await world.open())


@pytest.mark.skipif(not HAS_FLOCK, reason="no flock on this system")
def test_a_lock_file_is_held_once_and_free_after_release(tmp_path: Path) -> None:
    path = tmp_path / "w.lock"
    lock = LockFile.try_lock(path, create=True)
    assert lock is not None
    assert LockFile.try_lock(path, create=False) is None
    lock.release(unlink=False)
    again = LockFile.try_lock(path, create=False)
    assert again is not None
    again.release(unlink=True)
    assert not path.exists()
    with pytest.raises(FileNotFoundError):
        LockFile.try_lock(path, create=False)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
async def test_a_forked_child_can_drop_its_stores_and_open_its_own(world: SqliteWorld) -> None:
    store = await world.open()
    assert isinstance(store, SqliteStore)
    store.subscribe(lambda: None)
    world.worker(store)
    await start(store)
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of fork beside threads: just what is tested
        with store._database.shared.mutex:  # another thread of the parent is writing just now
            pid = os.fork()
            if pid == 0:
                _answer(write, world)
    os.close(write)
    answer = await asyncio.to_thread(os.read, read, 100)
    os.close(read)
    os.waitpid(pid, 0)
    assert answer == b"started"
    assert (await row(store, "by child")).status == "pending"
    assert (await claim_one(store, "by child")).epoch == 1


def _answer(write: int, world: SqliteWorld) -> NoReturn:
    """The child: say how it went, and never return into the test."""
    signal.alarm(30)
    verdict = b"failed"
    try:
        verdict = _in_child(world)
    finally:
        os.write(write, verdict)
        os._exit(0)


def _in_child(world: SqliteWorld) -> bytes:
    async def body() -> None:
        mine = open_store(world.url(), world.clock)
        await mine.open()
        await start(mine, "by child")

    asyncio._set_running_loop(None)
    asyncio.new_event_loop().run_until_complete(body())
    return b"started"


@pytest.mark.skipif(not hasattr(os, "fork") or not HAS_FLOCK, reason="no fork or no flock on this system")
async def test_a_forked_child_does_not_keep_its_dead_parents_lock(world: SqliteWorld) -> None:
    store = await world.open()
    undertaker = world.worker(store, "undertaker")
    victim = store.leases()
    victim.register(worker_row("victim"), 10**12)
    await start(store)
    await claim_one(store, worker="victim")
    read, write = os.pipe()
    alive, born = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        os.close(write)
        os.write(born, b"x")
        os.read(read, 1)  # lives on until the test has ended
        os._exit(0)
    os.close(read)
    os.close(born)
    await asyncio.to_thread(os.read, alive, 1)  # what runs in a child after a fork has run
    os.close(alive)
    victim.close()
    try:
        assert undertaker.bury("undertaker") == 1
    finally:
        os.close(write)
        os.waitpid(pid, 0)


async def test_a_missing_lock_file_leaves_the_decision_to_the_lease(world: SqliteWorld) -> None:
    store = await world.open()
    undertaker = world.worker(store, "undertaker", lease_s=1000)
    world.worker(store, "w1", lease_s=10)
    await start(store)
    await claim_one(store)
    (world.tmp_path / "onward.db-workers" / "w1.lock").unlink()
    assert undertaker.bury("undertaker") == 0
    world.clock.advance(11)
    assert undertaker.bury("undertaker") == 1


async def test_a_late_renewal_alone_does_not_kill_a_worker_that_holds_its_lock(world: SqliteWorld) -> None:
    store = await world.open()
    undertaker = world.worker(store, "undertaker", lease_s=1000)
    busy = world.worker(store, "w1", lease_s=10)
    await start(store)
    await claim_one(store)
    world.clock.advance(30)  # a transactional step held the writer: no renewal came through
    assert undertaker.bury("undertaker") == 0
    assert busy.renew("w1", 10_000_000)
    world.clock.advance(2)
    assert undertaker.bury("undertaker") == 0
    world.clock.advance(20)
    assert undertaker.bury("undertaker") == 0  # the first look at this lease
    world.clock.advance(1)
    assert undertaker.bury("undertaker") == 1  # nobody renewed it while the lock was free


@pytest.mark.skipif(not HAS_FLOCK, reason="no flock on this system")
async def test_a_burial_that_fails_leaves_the_lock_file_for_the_next_look(
    world: SqliteWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await world.open()
    undertaker = world.worker(store, "undertaker", lease_s=1000)
    victim = store.leases()
    victim.register(worker_row("w1"), 10**12)
    await start(store)
    await claim_one(store)
    victim.close()
    with monkeypatch.context() as context:
        context.setattr(undertaker, "_bury", _busy)
        with pytest.raises(TransientStoreError):
            undertaker.bury("undertaker")
    assert undertaker.bury("undertaker") == 1, "as soon as before: the lease would run for days"
    assert not (world.tmp_path / "onward.db-workers" / "w1.lock").exists()


def _busy(*_: object) -> NoReturn:
    raise TransientStoreError("another connection holds the write lock")


async def test_a_renewal_that_comes_just_before_the_burial_wins(
    world: SqliteWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await world.open()
    undertaker = world.worker(store, "undertaker", lease_s=1000)
    late = world.worker(store, "w1", lease_s=10)
    await start(store)
    await claim_one(store)
    world.clock.advance(11)
    assert undertaker.bury("undertaker") == 0
    world.clock.advance(2)
    # between the look without the lock and the write under it
    monkeypatch.setattr(undertaker, "_forget_renewed", lambda others: late.renew("w1", 10_000_000))
    assert undertaker.bury("undertaker") == 0
    assert late.renew("w1", 10_000_000)


async def test_lock_files_of_the_dead_and_the_retired_are_removed(world: SqliteWorld) -> None:
    store = await world.open()
    undertaker = world.worker(store, "undertaker")
    world.worker(store, "dead").close()
    world.worker(store, "retired").retire("retired")
    undertaker.bury("undertaker")
    assert [path.name for path in (world.tmp_path / "onward.db-workers").iterdir()] == ["undertaker.lock"]


async def test_an_idle_claim_takes_no_write_lock(world: SqliteWorld) -> None:
    store = await world.open()
    world.worker(store)
    await start(store, delay_us=1)
    from onward._store.sqlite.connection import connect
    from tests.conformance.support import request

    other = connect(world.path)
    other.execute("BEGIN IMMEDIATE")
    assert await store.claim(request()) == []
    assert await store.claim(request(only=("a",))) == []
    assert await store.reconcile("w1", []) == []
    assert await store.adopt_diverged("v") == 0
    other.execute("ROLLBACK")
    other.close()


async def test_probes_surround_every_commit_of_the_writer(tmp_path: Path) -> None:
    points: list[str] = []
    store = SqliteStore(tmp_path / "x.db", probe=points.append)
    await store.open()
    leases = store.leases()
    leases.register(worker_row("w1"), 10**9)
    points.clear()
    await one(store, StartOp(new()))
    await claim_one(store)
    leases.close()
    await store.close()
    assert points == ["write:before-commit", "write:after-commit", "claim:before-commit", "claim:after-commit"]


async def test_what_fails_before_the_commit_is_rolled_back_and_arrives_as_it_is(tmp_path: Path) -> None:
    def probe(point: str) -> None:
        if point == "write:before-commit":
            raise RuntimeError("stop here")

    store = SqliteStore(tmp_path / "x.db", probe=probe)
    await store.open()
    with pytest.raises(RuntimeError, match="stop here"):
        await one(store, StartOp(new()))
    assert await store.counts() == {}
    store._database.probe = lambda point: None
    await start(store)
    await store.close()


async def test_entries_alone_are_no_news_and_everything_else_is(
    world: SqliteWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long workflow would otherwise make its worker look for due rows, and its callers for outcomes, at every step."""
    store = await world.open()
    world.worker(store)
    fence = await started_and_claimed(store)
    assert isinstance(store, SqliteStore)
    told: list[bool] = []
    monkeypatch.setattr(store._database.shared.hub, "publish", lambda conn=None, *, is_news=True: told.append(is_news))
    await store.write([JournalOp(fence, (entry(1),))])
    await store.write([JournalOp(fence, (entry(2),)), StartOp(new("b"))])
    await store.write([FinishOp(fence, "completed", "1")])
    assert told == [False, True, True]

"""Several processes on one file."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from onward._store.operations import StartOp
from onward._store.sqlite.locks import HAS_FLOCK
from onward._store.sqlite.migrations import known_migrations
from tests.conformance.support import SqliteWorld, new, row

SCRIPT = Path(__file__).with_name("process.py")
Process = subprocess.Popen[str]


class Processes:
    """Starts the script and ends what is left of it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._started: list[Process] = []

    def start(self, *arguments: str) -> Process:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), self._url, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def end(self) -> None:
        for process in self._started:
            process.kill()
            process.communicate()


def line(process: Process) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go(process: Process) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


@pytest.fixture
def processes(world: SqliteWorld) -> Iterator[Processes]:
    found = Processes(world.url())
    yield found
    found.end()


def real_time(world: SqliteWorld) -> None:
    """Other processes have the machine's clock."""
    world.clock.now_us = lambda: time.time_ns() // 1000  # type: ignore[method-assign]


def test_processes_that_open_a_new_file_at_once_all_succeed(world: SqliteWorld, processes: Processes) -> None:
    started = [processes.start("open") for _ in range(4)]
    assert [line(process) for process in started] == ["ready"] * 4
    for process in started:
        go(process)
    assert [line(process) for process in started] == ["opened"] * 4
    conn = sqlite3.connect(world.path)
    assert conn.execute("SELECT count(*) FROM onward_migrations").fetchone() == (len(known_migrations()),)
    conn.close()


async def test_two_processes_drain_one_queue_without_sharing_a_row(world: SqliteWorld, processes: Processes) -> None:
    real_time(world)
    store = await world.open()
    await store.write([StartOp(new(f"x{number:03}")) for number in range(200)])
    started = [processes.start("drain", f"p{number}") for number in range(2)]
    for process in started:
        assert await asyncio.to_thread(line, process) == "ready"
    for process in started:
        go(process)
    done = [(await asyncio.to_thread(line, process)).split() for process in started]
    assert all(done)
    assert len(done[0]) + len(done[1]) == len({*done[0], *done[1]}) == 200
    assert await store.counts() == {"completed": 200}
    assert {len(await store.journal(f"x{number:03}")) for number in range(200)} == {1}


@pytest.mark.skipif(not HAS_FLOCK, reason="no flock on this system")
async def test_the_rows_of_a_killed_process_are_free_at_once(world: SqliteWorld, processes: Processes) -> None:
    real_time(world)
    store = await world.open()
    undertaker = world.worker(store, "undertaker", lease_s=3600)
    await store.write([StartOp(new(f"x{number}")) for number in range(5)])
    process = processes.start("hold", "victim")
    assert await asyncio.to_thread(line, process) == "ready 5"
    assert undertaker.bury("undertaker") == 0
    process.kill()
    await asyncio.to_thread(process.wait)
    assert undertaker.bury("undertaker") == 5  # its lease had almost an hour to go
    assert await store.counts() == {"pending": 5}


@pytest.mark.skipif(not HAS_FLOCK, reason="no flock on this system")
async def test_a_stopped_process_keeps_its_lock_and_its_rows_until_its_lease_ends(
    world: SqliteWorld, processes: Processes
) -> None:
    real_time(world)
    store = await world.open()
    undertaker = world.worker(store, "undertaker", lease_s=3600)
    await store.write([StartOp(new("a"))])
    process = processes.start("hold", "stopped")
    assert await asyncio.to_thread(line, process) == "ready 1"
    process.send_signal(signal.SIGSTOP)
    try:
        assert undertaker.bury("undertaker") == 0
        world.clock.now_us = lambda: time.time_ns() // 1000 + 3_700_000_000  # type: ignore[method-assign]
        assert undertaker.bury("undertaker") == 0
        world.clock.now_us = lambda: time.time_ns() // 1000 + 3_702_000_000  # type: ignore[method-assign]
        assert undertaker.bury("undertaker") == 1
    finally:
        process.send_signal(signal.SIGCONT)


async def test_a_commit_of_another_process_is_heard_by_a_hint(world: SqliteWorld, processes: Processes) -> None:
    """How fast is for the benchmarks to say; here it is enough that nobody waited for a poll of seconds."""
    store = await world.open()
    process = processes.start("beat", "15")
    assert await asyncio.to_thread(line, process) == "ready"
    heard: list[float] = []
    news = asyncio.Event()

    def notify() -> None:
        heard.append(time.monotonic())
        news.set()

    store.subscribe(notify)
    go(process)
    beats = [tuple(map(float, (await asyncio.to_thread(line, process)).split())) for _ in range(15)]
    async with asyncio.timeout(10):
        while heard[-1:] < [beats[-1][0]]:  # heard may well be before the process has looked at its clock again
            await news.wait()
            news.clear()
    delays = [min(at for at in heard if at >= began) - ended for began, ended in beats]
    assert statistics.median(delays) < 0.25, delays


@pytest.mark.parametrize(
    ("point", "expected"),
    [("write:before-commit", {}), ("write:after-commit", {"pending": 2}), ("never", {"pending": 2})],
)
async def test_a_process_killed_around_a_commit_leaves_all_or_nothing(
    world: SqliteWorld, processes: Processes, point: str, expected: dict[str, int]
) -> None:
    store = await world.open()
    process = processes.start("die", point)
    assert await asyncio.to_thread(line, process) == "ready"
    go(process)
    code = await asyncio.to_thread(process.wait)
    assert code == (0 if point == "never" else -signal.SIGKILL)
    assert await store.counts() == expected
    assert (await store.write([StartOp(new("c"))])) is not None
    assert (await row(store, "c")).status == "pending"

"""One function a measurement. Each uses a fresh database in the given folder and returns plain numbers."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import bare, flows
from onward import AsyncClient, Worker

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Result:
    """A line of the report."""

    name: str
    value: float
    unit: str
    target: str = ""
    note: str = ""


def url_of(path: Path) -> str:
    """The URL of a database file."""
    return f"sqlite:///{path}"


class WorkerProcess:
    """`onward worker benchmarks.flows` as a process of its own."""

    def __init__(self, path: Path, *options: str) -> None:
        argv = [sys.executable, "-m", "onward", "--url", url_of(path), "--log-level", "warning"]
        argv += ["worker", "benchmarks.flows", *options]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
        self.started_at = time.time()
        self.process = subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)

    def memory_mb(self) -> float:
        """Resident memory now."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        return 0.0

    def cpu_s(self) -> float:
        """Processor time of all its threads so far, to the nanosecond (the clock ticks of `stat` are too coarse)."""
        threads = Path(f"/proc/{self.process.pid}/task").iterdir()
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9

    def kill(self) -> None:
        """End it as a power failure would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """End it gracefully."""
        self.process.terminate()
        self.process.wait(30)


def wait_for(path: Path, sql: str, wanted: int, timeout_s: float = 300.0) -> None:
    """Wait until a count in the database reaches a number."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=30)
    end = time.monotonic() + timeout_s
    while connection.execute(sql).fetchone()[0] < wanted:
        if time.monotonic() > end:
            raise TimeoutError(f"{sql}: not {wanted} after {timeout_s} s")
        time.sleep(0.1)  # rarely: counting takes processor time from the worker, and the times are read from the rows
    connection.close()


FINAL = "SELECT count(*) FROM onward_workflows WHERE status = 'completed'"


async def _migrated(path: Path) -> None:
    async with AsyncClient(url_of(path)) as client:
        await client.counts()


def drain_three(folder: Path, count: int) -> tuple[float, float]:
    """Three-step workflows a second: (the bare loop, Onward with one worker process)."""
    path = folder / "bare.db"
    asyncio.run(_migrated(path))
    connection = bare.connect(path)
    bare.insert_pending(connection, count)
    bare_rate = count / bare.drain_three(connection)
    connection.close()

    path = folder / "three.db"

    async def enqueue() -> None:
        async with AsyncClient(url_of(path)) as client:
            await client.start_many(flows.three.bind(number) for number in range(count))

    asyncio.run(enqueue())
    worker = WorkerProcess(path)
    try:
        wait_for(path, FINAL, count)
    finally:
        worker.kill()
    connection = bare.connect(path)
    first, last = connection.execute("SELECT min(started_at), max(finished_at) FROM onward_workflows").fetchone()
    recorded = connection.execute("SELECT count(*) FROM onward_journal").fetchone()[0]
    connection.close()
    assert recorded == 3 * count, (recorded, count)
    return bare_rate, count / ((last - first) / 1e6)


def bulk_start(folder: Path, count: int) -> tuple[float, float]:
    """Starts a second: (start_many, single concurrent start calls)."""

    async def run() -> tuple[float, float]:
        async with AsyncClient(url_of(folder / "starts.db")) as client:
            await client.start(flows.one, 0)
            began = time.perf_counter()
            await client.start_many(flows.one.bind(number) for number in range(count))
            many = count / (time.perf_counter() - began)
            began = time.perf_counter()
            await asyncio.gather(*(client.start(flows.one, number) for number in range(count // 5)))
            return many, (count // 5) / (time.perf_counter() - began)

    return asyncio.run(run())


def latency(folder: Path, count: int) -> tuple[float, float]:
    """Start to result of a one-step workflow on an idle worker in the same process: (p50, p99) in ms."""

    async def run() -> list[float]:
        url = url_of(folder / "latency.db")
        times = []
        async with Worker(url, workflows=[flows.one]), AsyncClient(url) as client:
            for number in range(count):
                began = time.perf_counter()
                await (await client.start(flows.one, number)).result()
                times.append((time.perf_counter() - began) * 1000)
                await asyncio.sleep(0.01)
        return times

    return _quantiles(asyncio.run(run()))


def latency_two_processes(folder: Path, count: int) -> tuple[float, float]:
    """The same with client and worker in two processes."""
    path = folder / "latency2.db"
    asyncio.run(_migrated(path))
    worker = WorkerProcess(path)

    async def run() -> list[float]:
        times = []
        async with AsyncClient(url_of(path)) as client:
            await (await client.start(flows.one, -1)).result()
            for number in range(count):
                began = time.perf_counter()
                await (await client.start(flows.one, number)).result()
                times.append((time.perf_counter() - began) * 1000)
                await asyncio.sleep(0.02)
        return times

    try:
        return _quantiles(asyncio.run(run()))
    finally:
        worker.kill()


def long(folder: Path, steps: int) -> tuple[float, float]:
    """Sequential steps of one workflow a second, and bare single-row commits a second: (bare, Onward)."""
    path = folder / "long.db"
    asyncio.run(_migrated(path))
    connection = bare.connect(path)
    bare_rate = steps / bare.single_commits(connection, steps)
    connection.close()

    async def run() -> float:
        async with Worker(url_of(path), workflows=[flows.long]), AsyncClient(url_of(path)) as client:
            began = time.perf_counter()
            await (await client.start(flows.long, steps)).result()
            return steps / (time.perf_counter() - began)

    return bare_rate, asyncio.run(run())


def resume(folder: Path, steps: int) -> float:
    """Seconds from the start of a new worker process to the first new step after so many recorded ones."""
    path = folder / "resume.db"
    asyncio.run(_migrated(path))

    async def enqueue() -> None:
        async with AsyncClient(url_of(path)) as client:
            await client.start(flows.resume.using(id="resume"), steps, "mark")

    async def send() -> None:
        async with AsyncClient(url_of(path)) as client:
            await client.signal("resume", flows.go_on, True)

    async def result() -> float:
        async with AsyncClient(url_of(path)) as client:
            return await client.handle("resume", flows.resume).result()

    asyncio.run(enqueue())
    worker = WorkerProcess(path)
    wait_for(path, "SELECT count(*) FROM onward_workflows WHERE status = 'waiting'", 1)
    worker.kill()
    asyncio.run(send())
    worker = WorkerProcess(path)
    try:
        wait_for(path, FINAL, 1)
        return asyncio.run(result()) - worker.started_at
    finally:
        worker.kill()


def sleepers(folder: Path, count: int, spread_s: float) -> tuple[float, float, float]:
    """Sleepers due over a span: (p99 lateness in ms, MB of worker memory above idle, largest lateness in ms)."""
    path = folder / f"sleepers{spread_s:g}.db"
    asyncio.run(_migrated(path))
    worker = WorkerProcess(path)
    time.sleep(1.5)
    idle = worker.memory_mb()
    due = time.time() + max(5.0, count / 1000)

    async def enqueue() -> None:
        async with AsyncClient(url_of(path)) as client:
            await client.start_many(flows.sleeper.bind(due + spread_s * n / count) for n in range(count))

    asyncio.run(enqueue())
    try:
        wait_for(path, "SELECT count(*) FROM onward_workflows WHERE waiting_for IS NOT NULL", count, due - time.time())
        memory = worker.memory_mb() - idle
        wait_for(path, FINAL, count)
    finally:
        worker.kill()
    connection = bare.connect(path)
    late = [float(row[0]) * 1000 for row in connection.execute("SELECT result FROM onward_workflows")]
    connection.close()
    return statistics.quantiles(late, n=100)[98], memory, max(late)


def idle_cpu(folder: Path, seconds: float) -> float:
    """Percent of one core that an idle worker uses."""
    path = folder / "idle.db"
    asyncio.run(_migrated(path))
    worker = WorkerProcess(path)
    time.sleep(2)
    before, began = worker.cpu_s(), time.monotonic()
    time.sleep(seconds)
    used = (worker.cpu_s() - before) / (time.monotonic() - began) * 100
    worker.kill()
    return used


def _quantiles(times: list[float]) -> tuple[float, float]:
    cuts = statistics.quantiles(times, n=100)
    return statistics.median(times), cuts[98]

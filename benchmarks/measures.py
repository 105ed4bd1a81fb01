"""One function a measurement. Each takes a database that nobody else uses, makes it fresh, and returns plain numbers.

Worker processes are `onward worker benchmarks.flows`; when something happened is read from the rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import bare, flows
from benchmarks.databases import Database
from onward import AsyncClient, BoundWorkflow, Worker, Workflow

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Result:
    """A line of the report."""

    name: str
    value: float
    unit: str
    target: str = ""
    note: str = ""


class WorkerProcess:
    """`onward worker benchmarks.flows` as a process of its own."""

    def __init__(self, database: Database, *options: str) -> None:
        argv = [sys.executable, "-m", "onward", "--url", database.url, "--log-level", "warning"]
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


def wait_for(database: Database, condition: str, wanted: int, timeout_s: float = 300.0) -> None:
    """Wait until so many workflows fulfil a condition."""
    end = time.monotonic() + timeout_s
    sql = f"SELECT count(*) FROM {database.workflows} WHERE {condition}"
    with database.connected() as connection:
        while connection.execute(sql).fetchone()[0] < wanted:
            if time.monotonic() > end:
                raise TimeoutError(f"{condition}: not {wanted} after {timeout_s} s")
            time.sleep(
                0.1
            )  # rarely: counting takes processor time from the worker, and the times are read from the rows


COMPLETED = "status = 'completed'"


async def _migrated(database: Database) -> None:
    database.fresh()
    async with AsyncClient(database.url) as client:
        await client.counts()


async def _enqueue(database: Database, workflows: Iterable[BoundWorkflow[Any]]) -> float:
    """Start them in one call; seconds."""
    async with AsyncClient(database.url) as client:
        await client.counts()
        began = time.perf_counter()
        await client.start_many(workflows)
        return time.perf_counter() - began


@contextmanager
def worker_on(database: Database, *options: str) -> Iterator[WorkerProcess]:
    """A worker process, killed at the end."""
    worker = WorkerProcess(database, *options)
    try:
        yield worker
    finally:
        worker.kill()


def drain(database: Database, workflow: Workflow[[int], int], count: int, *options: str) -> dict[str, float]:
    """Workflows that wait in the queue, run by one worker process: from its first claim to the last end."""
    asyncio.run(_migrated(database))
    enqueued_s = asyncio.run(_enqueue(database, (workflow.bind(number) for number in range(count))))
    with worker_on(database, *options) as worker:
        wait_for(database, COMPLETED, count)
        cpu_s, memory_mb = worker.cpu_s(), worker.memory_mb()
    first, last = database.row(
        f"SELECT {database.seconds('min(started_at)')}, {database.seconds('max(finished_at)')} FROM {database.workflows}"
    )
    return {
        "seconds": last - first,
        "per_s": count / (last - first),
        "enqueue_per_s": count / enqueued_s,
        "worker_cpu_s": cpu_s,
        "worker_rss_mb": memory_mb,
    }


def drain_three(database: Database, count: int, *options: str) -> dict[str, float]:
    """Three-step workflows, each entry of theirs counted."""
    found = drain(database, flows.three, count, *options)
    recorded = database.row(f"SELECT count(*) FROM {database.journal}")[0]
    assert recorded == 3 * count, (recorded, count)
    return found


def bare_three(database: Database, count: int) -> float:
    """The same rows by the bare loop: workflows a second."""
    asyncio.run(_migrated(database))
    with contextlib.closing(bare.connect(database.path)) as connection:
        bare.insert_pending(connection, count)
        return count / bare.drain_three(connection)


def starts(database: Database, count: int) -> tuple[float, float]:
    """Starts a second: (`start_many`, single concurrent `start` calls)."""

    async def run() -> tuple[float, float]:
        await _migrated(database)
        async with AsyncClient(database.url) as client:
            await client.start(flows.one, 0)
            began = time.perf_counter()
            await client.start_many(flows.one.bind(number) for number in range(count))
            many = count / (time.perf_counter() - began)
            began = time.perf_counter()
            await asyncio.gather(*(client.start(flows.one, number) for number in range(count // 5)))
            return many, (count // 5) / (time.perf_counter() - began)

    return asyncio.run(run())


async def _round_trips(client: AsyncClient, count: int, pause_s: float) -> list[float]:
    """Start to result of one-step workflows, one after the other; milliseconds."""
    times = []
    for number in range(-5, count):  # the first few warm both sides up
        began = time.perf_counter()
        await (await client.start(flows.one, number)).result()
        times.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(pause_s)
    return times[5:]


def latency(database: Database, count: int) -> list[float]:
    """Start to result of a one-step workflow on an idle worker in the same process; milliseconds."""

    async def run() -> list[float]:
        await _migrated(database)
        async with Worker(database.url, workflows=[flows.one]), AsyncClient(database.url) as client:
            return await _round_trips(client, count, 0.01)

    return asyncio.run(run())


def latency_two_processes(database: Database, count: int) -> list[float]:
    """The same with client and worker in two processes."""

    async def run() -> list[float]:
        async with AsyncClient(database.url) as client:
            return await _round_trips(client, count, 0.02)

    asyncio.run(_migrated(database))
    with worker_on(database):
        return asyncio.run(run())


def bare_commits(database: Database, steps: int) -> float:
    """Bare single-row commits a second."""
    asyncio.run(_migrated(database))
    with contextlib.closing(bare.connect(database.path)) as connection:
        return steps / bare.single_commits(connection, steps)


def in_one(database: Database, workflow: Workflow[[int], int], size: int) -> float:
    """Seconds of one workflow of that size (`long`: steps one after the other; `parent`: children at once)."""

    async def run() -> float:
        await _migrated(database)
        async with (
            Worker(database.url, workflows=[workflow, flows.one]),
            AsyncClient(database.url) as client,
        ):
            began = time.perf_counter()
            await (await client.start(workflow, size)).result()
            return time.perf_counter() - began

    return asyncio.run(run())


def resume(database: Database, steps: int) -> tuple[float, float]:
    """Seconds that recording so many steps took, and from the start of a new worker process to the first new step after."""

    async def send() -> None:
        async with AsyncClient(database.url) as client:
            await client.signal("resume", flows.go_on, True)

    async def result() -> float:
        async with AsyncClient(database.url) as client:
            return await client.handle("resume", flows.resume).result()

    asyncio.run(_migrated(database))
    asyncio.run(_enqueue(database, [flows.resume.using(id="resume").bind(steps, "mark")]))
    began = time.time()
    with worker_on(database):
        wait_for(database, "status = 'waiting'", 1)
        built_s = time.time() - began
    asyncio.run(send())
    with worker_on(database) as worker:
        wait_for(database, COMPLETED, 1)
        return built_s, asyncio.run(result()) - worker.started_at


@dataclass(frozen=True, slots=True)
class Sleepers:
    """How late sleepers woke, in milliseconds, and what the sleeping ones cost in memory."""

    late_ms: list[float]
    memory_mb: float
    """Of the worker while all sleep, above its idle state."""
    rss_mb: float
    enqueue_per_s: float


def sleepers(database: Database, count: int, spread_s: float) -> Sleepers:
    """Sleepers due over a span, or at one instant."""
    asyncio.run(_migrated(database))
    with worker_on(database) as worker:
        time.sleep(1.5)
        idle = worker.memory_mb()
        due = time.time() + max(5.0, count / 1000)
        flow = flows.sleeper
        enqueued_s = asyncio.run(_enqueue(database, (flow.bind(due + spread_s * n / count) for n in range(count))))
        wait_for(database, "waiting_for IS NOT NULL", count, due - time.time())
        memory = worker.memory_mb()
        wait_for(database, COMPLETED, count)
    late = [float(row[0]) * 1000 for row in database.rows(f"SELECT result FROM {database.workflows}")]
    return Sleepers(late, memory - idle, memory, count / enqueued_s)


def idle_cpu(database: Database, seconds: float) -> float:
    """Percent of one core that an idle worker uses."""
    asyncio.run(_migrated(database))
    with worker_on(database) as worker:
        time.sleep(2)
        before, began = worker.cpu_s(), time.monotonic()
        time.sleep(seconds)
        return (worker.cpu_s() - before) / (time.monotonic() - began) * 100


def percentile(times: Sequence[float], percent: int) -> float:
    """Of at least two numbers."""
    return statistics.quantiles(times, n=100)[percent - 1]

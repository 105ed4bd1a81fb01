"""The seven workloads on Onward, one function each, and what they share. Each takes a database that nobody else uses, makes it
fresh, checks in its rows what it reports, and returns plain numbers under the names that the peers' scripts use.

When something happened is read from the rows: a worker begins with its first claim and ends with the last workflow's end.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks import flows
from benchmarks.databases import Database
from benchmarks.meters import Meter
from benchmarks.processes import WorkerProcess, worker_on
from onward import AsyncClient, BoundWorkflow, Worker, Workflow

MICROSECOND_S = 1e-6
COMPLETED = "status = 'completed'"
LOOK_S = 0.1
"""Between two looks at how many have ended: counting takes processor time from the worker."""
IDLE_S = 1.5
"""Until a worker that has nothing to do has come to rest."""
Figures = dict[str, float]


def percentile(times: Sequence[float], percent: int) -> float:
    """Of at least two numbers."""
    return statistics.quantiles(times, n=100, method="inclusive")[percent - 1]


def wait_for(
    database: Database, condition: str, wanted: int, worker: WorkerProcess | None = None, timeout_s: float = 600.0
) -> None:
    """Wait until so many workflows fulfil a condition."""
    end = time.monotonic() + timeout_s
    sql = f"SELECT count(*) FROM {database.workflows} WHERE {condition}"
    with database.connected() as connection:
        while connection.execute(sql).fetchone()[0] < wanted:
            if worker is not None:
                worker.check()
            if time.monotonic() > end:
                raise TimeoutError(f"{condition}: not {wanted} after {timeout_s} s")
            time.sleep(LOOK_S)


def wait_until_drained(database: Database, worker: WorkerProcess, timeout_s: float = 600.0) -> None:
    """Wait until nothing is to be done; both counts are read from small indexes, however many rows have ended."""
    end = time.monotonic() + timeout_s
    left = f"SELECT count(*) FROM {database.workflows} WHERE"
    sql = f"SELECT ({left} next_run_at IS NOT NULL) + ({left} status = 'running')"
    with database.connected() as connection:
        while connection.execute(sql).fetchone()[0]:
            worker.check()
            if time.monotonic() > end:
                raise TimeoutError(f"not drained after {timeout_s} s")
            time.sleep(LOOK_S)


def migrate(database: Database) -> None:
    """Make it fresh, with Onward's tables."""

    async def run() -> None:
        async with AsyncClient(database.url) as client:
            await client.counts()

    database.fresh()
    asyncio.run(run())


def start_all(database: Database, workflows: Iterable[BoundWorkflow[Any]]) -> float:
    """Start them in one call; seconds."""

    async def run() -> float:
        async with AsyncClient(database.url) as client:
            await client.counts()
            began = time.perf_counter()
            await client.start_many(workflows)
            return time.perf_counter() - began

    return asyncio.run(run())


def drain(
    database: Database,
    workflows: Sequence[BoundWorkflow[Any]],
    *options: str,
    count: int = 1,
    meters: bool = True,
    prepare: Callable[[Database], None] | None = None,
) -> Figures:
    """Workflows that wait in the queue, run by one worker command: from its first claim to the last end.

    Args:
        database: where.
        workflows: all of them, started before the worker is.
        options: of `onward worker`.
        count: its processes.
        meters: whether to ask the server what it cost (which takes two seconds).
        prepare: fills the tables before.
    """
    migrate(database)
    if prepare is not None:
        prepare(database)
    enqueued_s = start_all(database, workflows)
    size = len(workflows)
    meter = Meter(database)
    if meters:
        meter.start()
    with worker_on(database, *options, count=count) as worker:
        wait_until_drained(database, worker)
        figures = {"worker_cpu_s": worker.cpu_s() - worker.cpu_when_ready_s, "worker_rss_mb": worker.memory_mb()}
    if meters:
        figures |= meter.stop()
    first, last = database.row(
        f"SELECT {database.seconds('min(started_at)')}, {database.seconds('max(finished_at)')} FROM {database.workflows}"
    )
    figures |= {"seconds": last - first, "per_s": size / (last - first)}
    figures |= {"enqueue_s": enqueued_s, "enqueue_per_s": size / enqueued_s}
    figures["checked_rows"] = database.count(f"{COMPLETED} AND started_at IS NOT NULL")
    assert figures["checked_rows"] == size, figures
    return figures


def drain_numbers(
    database: Database, workflow: Workflow[[int], int], size: int, steps: int, *options: str, **more: Any
) -> Figures:
    """The same for workflows of that many steps, each entry of theirs counted."""
    figures = drain(database, [workflow.bind(number) for number in range(size)], *options, **more)
    recorded = int(database.row(f"SELECT count(*) FROM {database.journal}")[0])
    assert recorded == steps * size, (recorded, steps, size)
    return {**figures, "checked_steps": recorded}


async def _round_trips(client: AsyncClient, size: int, pause_s: float) -> list[float]:
    times = []
    for number in range(-5, size):  # the first few warm both sides up
        began = time.perf_counter()
        await (await client.start(flows.one, number)).result()
        times.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(pause_s)
    return times[5:]


def latency(database: Database, size: int, *, is_in_one_process: bool = False) -> Figures:
    """Start to result of one-step workflows, one after the other, on an idle worker in another process, or in this one."""

    async def run() -> list[float]:
        async with contextlib.AsyncExitStack() as stack:
            if is_in_one_process:
                await stack.enter_async_context(Worker(database.url, workflows=[flows.one]))
            client = await stack.enter_async_context(AsyncClient(database.url))
            await asyncio.sleep(IDLE_S)
            return await _round_trips(client, size, 0.02)

    migrate(database)
    if is_in_one_process:
        times = asyncio.run(run())
    else:
        with worker_on(database) as worker:
            worker.wait_until_ready()
            times = asyncio.run(run())
    assert database.row(f"SELECT count(*) FROM {database.journal}")[0] == size + 5
    return {
        "p50_ms": statistics.median(times),
        "p99_ms": percentile(times, 99),
        "max_ms": max(times),
        "seconds": sum(times) / 1000,
    }


def in_one(database: Database, workflow: Workflow[[int], int], size: int) -> Figures:
    """One workflow of that size (`long`: steps one after the other; `parent`: children at once), client and worker in this
    process: from the start's call to its result."""

    async def run() -> tuple[float, float]:
        async with Worker(database.url, workflows=[workflow, flows.one]), AsyncClient(database.url) as client:
            await (await client.start(flows.one, 0)).result()  # connections are there, code is loaded
            began, cpu = time.perf_counter(), time.process_time()
            assert await (await client.start(workflow, size)).result() == size
            return time.perf_counter() - began, time.process_time() - cpu

    migrate(database)
    meter = Meter(database)
    meter.start()
    seconds, cpu = asyncio.run(run())
    entries = int(database.row(f"SELECT count(*) FROM {database.journal} WHERE kind = 'step'")[0])
    assert entries == size + 1, entries
    return {"seconds": seconds, "per_s": size / seconds, "worker_cpu_s": cpu, "checked_steps": size, **meter.stop()}


def resume(database: Database, steps: int) -> Figures:
    """A workflow whose worker is gone: from the start of a new worker's process to the first step that is not recorded yet."""

    async def send() -> None:
        async with AsyncClient(database.url) as client:
            await client.signal("resume", flows.go_on, True)

    async def result() -> float:
        async with AsyncClient(database.url) as client:
            return await client.handle("resume", flows.resume).result()

    migrate(database)
    start_all(database, [flows.resume.using(id="resume").bind(steps, "mark")])
    with worker_on(database) as worker:
        worker.wait_until_ready()
        began = time.time()
        wait_for(database, "status = 'waiting'", 1, worker)
        built_s = time.time() - began
    recorded = int(database.row(f"SELECT count(*) FROM {database.journal}")[0])
    assert recorded == steps, recorded
    asyncio.run(send())
    with worker_on(database) as worker:
        wait_for(database, COMPLETED, 1, worker)
        resumed_at = asyncio.run(result())
        registered = f"SELECT {database.seconds('max(started_at)')} FROM {_workers(database)}"
        figures = {"seconds": resumed_at - worker.started_at, "worker_cpu_s": worker.cpu_s()}
        with contextlib.suppress(TypeError):
            figures["replay_s"] = resumed_at - float(database.row(registered)[0])
    return {"build_s": built_s, "from_spawn_s": figures["seconds"], "checked_steps": recorded, **figures}


def sleepers(database: Database, size: int, spread_s: float, *given: str) -> Figures:
    """Sleepers due at one instant, or spread over a span from it on; all of them sleep before (those that did not are counted,
    and make the run worthless). How late each woke, and what they cost in memory: while all sleep, and at most."""
    migrate(database)
    with worker_on(database, *given) as worker:
        worker.wait_until_ready()
        time.sleep(IDLE_S)
        idle_mb = worker.memory_mb()
        due = time.time() + 1.0 + size / 1000  # time enough for all to fall asleep before
        enqueued_s = start_all(database, (flows.sleeper.bind(due + spread_s * n / size) for n in range(size)))
        wait_for(database, f"waiting_for IS NOT NULL OR {COMPLETED}", size, worker)
        awake = database.count(COMPLETED)
        asleep_mb = worker.memory_mb()
        cpu_s = worker.cpu_s()
        wait_for(database, COMPLETED, size, worker)
        peak_mb, cpu_s = worker.memory_mb(peak=True), worker.cpu_s() - cpu_s
    late = [float(row[0]) for row in database.rows(f"SELECT result FROM {database.workflows}")]
    assert len(late) == size
    assert min(late) >= -MICROSECOND_S, f"woken {-min(late)} s too early"
    last = float(database.row(f"SELECT {database.seconds('max(finished_at)')} FROM {database.workflows}")[0])
    return {
        "late_p50_s": statistics.median(late),
        "late_p99_s": percentile(late, 99),
        "late_max_s": max(late),
        "seconds": last - due,
        "awake_before": awake,
        "asleep_mb": asleep_mb - idle_mb,
        "above_idle_mb": peak_mb - idle_mb,
        "worker_rss_mb": peak_mb,
        "worker_cpu_s": cpu_s,
        "enqueue_s": enqueued_s,
        "enqueue_per_s": size / enqueued_s,
    }


def _workers(database: Database) -> str:
    return "onward.workers" if database.is_postgres else "onward_workers"

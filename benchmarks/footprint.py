"""What a workflow leaves and needs: write-ahead log, fsyncs, commits, round trips, statements, rows, bytes on disk, memory.

The log, fsyncs, and bytes written are counted while one worker process drains a queue; commits and round trips in a smaller run,
because counting them takes a relay before the server and a look at each commit inside this process. The cost of a step is a third
of what three steps take more than none.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import Counter
from collections.abc import Callable
from unittest.mock import patch

from benchmarks import flows, limit, workloads
from benchmarks.bench import Bench
from benchmarks.databases import Database
from benchmarks.meters import Meter
from benchmarks.processes import worker_on
from benchmarks.relay import Relay
from benchmarks.results import Results
from onward import Worker, Workflow
from onward._engine import failpoints

SECTION = "footprint"
SIZE, COUNTED, LIVE, PARKED = 10_000, 2_000, 2_000, 10_000
FLOWS: dict[str, tuple[Workflow[[int], int], int]] = {"noop": (flows.noop, 0), "three": (flows.three, 3)}
FAR_S = 3_600.0
FIGURES = {
    "wal_bytes": "WAL, bytes",
    "wal_records": "WAL records",
    "fsyncs": "fsyncs",
    "commits": "transactions",
    "round_trips": "round trips",
    "statements": "statements",
    "written_bytes": "bytes written by the worker",
    "rows": "rows",
    "disk_bytes": "bytes on disk",
}


def run(bench: Bench) -> None:
    """Each case on each database; the log does not vary, so two rounds are plenty."""
    size, counted = bench.count(SIZE), bench.count(COUNTED)
    for _ in range(min(2, bench.rounds)):
        for kind in bench.kinds:
            for name, (workflow, steps) in FLOWS.items():
                work = functools.partial(_started, workflow=workflow, size=size)
                bench.measure(SECTION, f"{name}, start", kind, size, work)
                work = functools.partial(_drained, workflow=workflow, size=size)
                bench.measure(SECTION, f"{name}, run", kind, size, work)
                if kind == "pg":
                    work = functools.partial(_bare, size=size, steps=steps)
                    bench.measure(SECTION, f"{name}, run", kind, size, work, who="bare")
                work = functools.partial(_counted, workflow=workflow, size=counted)
                bench.measure(SECTION, f"{name}, run", kind, counted, work)
            bench.measure(
                SECTION, "a live workflow", kind, bench.count(LIVE), functools.partial(_live, size=bench.count(LIVE))
            )
            parked = bench.count(PARKED)
            bench.measure(SECTION, "a parked workflow", kind, parked, functools.partial(_parked, size=parked))


def _each(figures: dict[str, float], size: int) -> dict[str, float]:
    names = {
        "pg_wal_bytes": "wal_bytes",
        "pg_wal_records": "wal_records",
        "pg_wal_fsyncs": "fsyncs",
        "pg_statements": "statements",
    }
    found = {new: figures[old] / size for old, new in names.items() if old in figures}
    if "pg_xacts" in figures:
        found["commits"] = figures["pg_xacts"] / size
    return found


def _started(database: Database, *, workflow: Workflow[[int], int], size: int) -> dict[str, float]:
    workloads.migrate(database)
    with Meter(database, counts_statements=True) as meter:
        workloads.start_all(database, (workflow.bind(number) for number in range(size)))
    return _each(meter.figures, size) | {"rows": 1.0}


def _drained(database: Database, *, workflow: Workflow[[int], int], size: int) -> dict[str, float]:
    workloads.migrate(database)
    workloads.start_all(database, (workflow.bind(number) for number in range(size)))
    written = 0.0
    with Meter(database) as meter, worker_on(database) as worker:
        workloads.wait_until_drained(database, worker)
        written = worker.written_bytes() / size
    rows = database.count("true") + int(database.row(f"SELECT count(*) FROM {database.journal}")[0])
    figures = _each(meter.figures, size) | {"rows": rows / size, "disk_bytes": _disk_bytes(database) / size}
    return figures if database.is_postgres else figures | {"written_bytes": written}


def _disk_bytes(database: Database) -> float:
    if not database.is_postgres:
        with database.connected() as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return database.path.stat().st_size
    tables = (database.workflows, database.journal)
    return sum(float(database.row(f"SELECT pg_total_relation_size('{table}')")[0]) for table in tables)


def _bare(database: Database, *, size: int, steps: int) -> dict[str, float]:
    return _each(limit.drain(database, size, steps), size)


def _counted(database: Database, *, workflow: Workflow[[int], int], size: int) -> dict[str, float]:
    """In this process: each commit passes a failpoint; on PostgreSQL behind the relay."""
    workloads.migrate(database)
    workloads.start_all(database, (workflow.bind(number) for number in range(size)))
    if not database.is_postgres:
        return {"commits": _commits(database, database.url, workflow) / size}
    with Meter(database, counts_statements=True) as meter, Relay(database.url) as relay:
        _commits(database, relay.url, workflow)
        round_trips = relay.round_trips
    return {"round_trips": round_trips / size, "statements": meter.figures.get("pg_statements", 0.0) / size}


def _commits(database: Database, url: str, workflow: Workflow[[int], int]) -> int:
    passed: Counter[str] = Counter()
    hit: Callable[[str], None] = failpoints.hit

    def count(name: str) -> None:
        passed[name] += 1
        hit(name)

    def wait() -> None:
        while database.count("status <> 'completed'"):
            time.sleep(workloads.LOOK_S)

    async def work() -> None:
        async with Worker(url, workflows=[workflow]):
            await asyncio.to_thread(wait)

    with patch.object(failpoints, "hit", count):
        asyncio.run(work())
    return sum(times for name, times in passed.items() if name.endswith(":after-commit"))


def _live(database: Database, *, size: int) -> dict[str, float]:
    """Executions in memory, each in a step that takes long."""
    workloads.migrate(database)
    with worker_on(database, "--slots", str(size)) as worker:
        worker.wait_until_ready()
        time.sleep(workloads.IDLE_S)
        idle = worker.memory_mb()
        workloads.start_all(database, (flows.staying.bind(FAR_S) for _ in range(size)))
        workloads.wait_for(database, "status = 'running'", size, worker)
        time.sleep(workloads.IDLE_S)
        return {"memory_bytes": (worker.memory_mb() - idle) * 2**20 / size}


def _parked(database: Database, *, size: int) -> dict[str, float]:
    """Sleepers that are due in an hour."""
    workloads.migrate(database)
    with worker_on(database) as worker:
        worker.wait_until_ready()
        time.sleep(workloads.IDLE_S)
        idle = worker.memory_mb()
        due = time.time() + FAR_S
        workloads.start_all(database, (flows.sleeper.bind(due) for _ in range(size)))
        workloads.wait_for(database, "waiting_for IS NOT NULL", size, worker)
        time.sleep(workloads.IDLE_S)
        return {"memory_bytes": (worker.memory_mb() - idle) * 2**20 / size}


def lines(results: Results) -> list[str]:
    """Two tables: what a workflow and a step cost, and memory."""

    def figure(case: str, subject: str, name: str) -> float | None:
        return results.median(SECTION, case, subject, name)

    def step(subject: str, name: str) -> float | None:
        with_steps, without = figure("three, run", subject, name), figure("noop, run", subject, name)
        return None if with_steps is None or without is None else (with_steps - without) / 3

    rows = []
    for kind, where in (("pg", "PostgreSQL"), ("sqlite", "SQLite")):
        for name, words in FIGURES.items():
            found = [
                figure("three, start", f"onward-{kind}", name),
                figure("three, run", f"onward-{kind}", name),
                figure("three, run", f"bare-{kind}", name),
                figure("noop, run", f"onward-{kind}", name),
                step(f"onward-{kind}", name),
            ]
            if found[1] is not None:
                shown = " | ".join(
                    "" if one is None else f"{one:,.0f}" if one >= 100 else f"{one:.3g}" for one in found
                )
                rows.append(f"| {words}, {where} | {shown} |")
    table = [
        "| | its start (`start_many`) | three steps | the same, bare SQL | no step | each step |",
        "|---|---:|---:|---:|---:|---:|",
        *rows,
        "",
        "| memory of the worker | PostgreSQL | SQLite |",
        "|---|---:|---:|",
    ]
    for case, words in (
        ("a live workflow", "each workflow in memory, within a step"),
        ("a parked workflow", "each sleeping one"),
    ):
        found = [figure(case, f"onward-{kind}", "memory_bytes") for kind in ("pg", "sqlite")]
        if any(one is not None for one in found):
            table.append(f"| {words} | " + " | ".join("" if one is None else f"{one:,.0f} B" for one in found) + " |")
    return table

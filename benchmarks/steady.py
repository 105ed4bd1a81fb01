"""Minutes of steady load: workflows are started at an even rate, run, kept for a while and pruned, while vacuum does its work
and, in the middle third, somebody's open snapshot keeps it from that (PostgreSQL). Nothing may decay: a line every half minute
says how many ended, how long they waited for their claim, and how large the tables are.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from benchmarks import flows, workloads
from benchmarks.bench import Bench
from benchmarks.databases import Database
from benchmarks.processes import worker_on
from benchmarks.results import Results, Sample
from onward import AsyncClient

SECTION = "steady"
RATE = 500
"""Three-step workflows started in a second: well below what one worker does, so that waiting shows."""
BEAT_S = 0.1
SPAN_S = 30.0
RETENTION_S = 60
"""Workflows are deleted so long after their end; the retention of a real system in small."""
_COLUMNS = ("per_s", "started_per_s", "claim_p50_ms", "claim_p99_ms", "rows", "table_mb", "index_mb", "dead_rows")


@dataclass(slots=True)
class _Load:
    """Starts workflows at an even rate until it is told to stop, in a thread of its own."""

    database: Database
    rate: int
    started: int = 0
    error: BaseException | None = None
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as error:
            self.error = error

    async def _run(self) -> None:
        async with AsyncClient(self.database.url) as client:
            began = time.monotonic()
            while not self.stopping.is_set():
                due = int((time.monotonic() - began) * self.rate) - self.started
                if due > 0:
                    await client.start_many([flows.three.bind(self.started + number) for number in range(due)])
                    self.started += due
                await asyncio.sleep(BEAT_S)


@contextlib.contextmanager
def _loaded(load: _Load) -> Iterator[None]:
    thread = threading.Thread(target=load.run, name="load")
    thread.start()
    try:
        yield
    finally:
        load.stopping.set()
        thread.join()
    if load.error is not None:
        raise load.error


def run(bench: Bench) -> None:
    """One run on each database."""
    for kind in bench.kinds:
        _run_on(bench, kind)


def _run_on(bench: Bench, kind: str) -> None:
    database = bench.database(kind)
    minutes = bench.minutes
    span_s = min(SPAN_S, minutes * 60 / 3)
    spans = max(3, round(minutes * 60 / span_s))
    workloads.migrate(database)
    load = _Load(database, bench.count(RATE))
    held = contextlib.ExitStack()
    with worker_on(database, "--retention", f"{RETENTION_S}s") as worker, held:
        worker.wait_until_ready()
        with _loaded(load):
            at, before = time.time(), 0
            for number in range(spans):
                is_held = database.is_postgres and spans // 3 <= number < 2 * spans // 3
                if not is_held:
                    held.close()
                elif number == spans // 3:
                    snapshot = held.enter_context(database.connected())
                    snapshot.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
                    snapshot.execute(f"SELECT count(*) FROM {database.workflows}")
                time.sleep(max(0.0, at + span_s - time.time()))
                worker.check()
                figures = _look(database, at, time.time(), load.started - before) | {"is_held": float(is_held)}
                at, before = time.time(), load.started
                bench.keep(Sample(SECTION, f"{round((number + 1) * span_s)} s", f"onward-{kind}", figures, load.rate))


def _look(database: Database, since: float, until: float, started: int) -> dict[str, float]:
    began, made = database.seconds("started_at"), database.seconds("created_at")
    edge = f"to_timestamp({since})" if database.is_postgres else str(int(since * 1e6))
    rows = database.rows(
        f"SELECT {began} - {made} FROM {database.workflows} WHERE finished_at >= {edge} AND parent_id IS NULL"
    )
    waits = sorted(max(0.0, float(wait)) * 1000 for (wait,) in rows)
    figures = {"per_s": len(waits) / (until - since), "started_per_s": started / (until - since)}
    if len(waits) > 1:
        figures |= {"claim_p50_ms": statistics.median(waits), "claim_p99_ms": workloads.percentile(waits, 99)}
    return figures | _sizes(database)


def _sizes(database: Database) -> dict[str, float]:
    if not database.is_postgres:
        rows = float(database.count("true"))
        files = sum(
            path.stat().st_size
            for suffix in ("", "-wal")
            if (path := database.path.with_name(database.path.name + suffix)).exists()
        )
        return {"rows": rows, "table_mb": files / 1e6}
    tables = f"('{database.workflows}'::regclass, '{database.journal}'::regclass)"
    size, indexes = database.row(
        f"SELECT sum(pg_table_size(oid)), sum(pg_indexes_size(oid)) FROM pg_class WHERE oid IN {tables}"
    )
    dead, vacuums = database.row(
        f"SELECT sum(n_dead_tup), sum(autovacuum_count) FROM pg_stat_user_tables WHERE relid IN {tables}"
    )
    return {
        "rows": float(database.count("true")),
        "table_mb": float(size) / 1e6,
        "index_mb": float(indexes) / 1e6,
        "dead_rows": float(dead),
        "vacuums": float(vacuums),
    }


def decay(results: Results, kind: str) -> tuple[float, float] | None:
    """Of the last third to the first: the ratio of the rates, and of the waits for a claim (p99)."""
    samples = results.of(SECTION, subject=f"onward-{kind}")
    third = len(samples) // 3
    if not third:
        return None
    first, last = samples[:third], samples[-third:]

    def mean(part: list[Sample], name: str) -> float:
        return statistics.fmean(sample.figures.get(name, 0.0) for sample in part)

    wait = mean(first, "claim_p99_ms")
    return mean(last, "per_s") / (mean(first, "per_s") or 1.0), mean(last, "claim_p99_ms") / (wait or 1.0)


def _told(where: str, rate: int, ends: float, wait: float) -> str:
    return (
        f"{where}, {rate:,} three-step workflows started a second, kept for {RETENTION_S} s after their end. From the first"
        f" third to the last the rate of ends went to {ends:.2f} times, the p99 of the wait for a claim to {wait:.2f} times."
    )


def lines(results: Results) -> list[str]:
    """A table for each database, and whether anything decayed."""
    found: list[str] = []
    for kind, where in (("pg", "PostgreSQL"), ("sqlite", "SQLite")):
        samples = results.of(SECTION, subject=f"onward-{kind}")
        change = decay(results, kind)
        if change is None:
            continue
        found += [
            _told(where, samples[0].size, *change),
            "",
            "| after | ended/s | started/s | claim p50, ms | p99, ms | rows | tables, MB | indexes, MB | dead rows | |",
            "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|",
        ]
        for sample in samples:
            cells = [f"{sample.figures[name]:,.1f}" if name in sample.figures else "" for name in _COLUMNS[:4]]
            cells += [f"{sample.figures[name]:,.0f}" if name in sample.figures else "" for name in _COLUMNS[4:]]
            note = "snapshot held" if sample.figures.get("is_held") else ""
            found.append(f"| {sample.case} | {' | '.join(cells)} | {note} |")
        found.append("")
    return found[:-1]

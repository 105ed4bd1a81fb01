"""What a worker costs that has nothing to do: statements a second on PostgreSQL, with one queue and with fifty, and CPU."""

from __future__ import annotations

import functools
import time

from benchmarks import workloads
from benchmarks.bench import KINDS, Bench
from benchmarks.databases import Database
from benchmarks.meters import Meter
from benchmarks.processes import worker_on
from benchmarks.results import Results

SECTION = "idle"
QUEUES = (1, 50)
SECONDS = 20.0


def run(bench: Bench, *, seconds: float = SECONDS) -> None:
    """Each number of queues on each database."""
    seconds = seconds if bench.scale > 0.01 else 0.5  # shorter ones would miss what comes every few seconds
    for _ in range(min(bench.rounds, 3)):
        for queues in QUEUES:
            for kind in bench.kinds:
                bench.measure(
                    SECTION, f"{queues} queues", kind, queues, functools.partial(_idle, queues=queues, seconds=seconds)
                )


def _idle(database: Database, *, queues: int, seconds: float) -> dict[str, float]:
    workloads.migrate(database)
    meter = Meter(database, counts_statements=True)  # before the worker's sessions begin
    options = [part for number in range(queues) for part in ("--queue", f"queue{number}")]
    with worker_on(database, *options) as worker:
        worker.wait_until_ready()
        time.sleep(2 * workloads.IDLE_S)
        meter.start()
        cpu_s, began = worker.cpu_s(), time.monotonic()
        time.sleep(seconds)
        cpu_s, took_s = worker.cpu_s() - cpu_s, time.monotonic() - began
        found = meter.stop()
    figures = {"cpu_percent": cpu_s / took_s * 100}
    if found:
        figures["commits_per_s"] = found["pg_xacts"] / found["elapsed_s"]
        # where statements are not counted: each of its statements is a transaction
        counted = found.get("pg_statements", found["pg_xacts"])
        figures["statements_per_s"] = counted / found["elapsed_s"]
    return figures


def lines(results: Results) -> list[str]:
    """The table."""
    rows = []
    for case in results.cases(SECTION):
        for kind in KINDS:
            figures = [
                results.median(SECTION, case, f"onward-{kind}", name) for name in ("statements_per_s", "cpu_percent")
            ]
            if figures[1] is not None:
                shown = " | ".join("" if figure is None else f"{figure:.2f}" for figure in figures)
                name = case.replace("1 queues", "1 queue")
                rows.append(f"| {'PostgreSQL' if kind == 'pg' else 'SQLite'}, {name} | {shown} |")
    return ["| an idle worker | statements/s | CPU, % of a core |", "|---|---:|---:|", *rows]

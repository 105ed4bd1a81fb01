"""How the rate of three-step workflows moves with worker processes, slots, rows that have ended, payloads, and `def` steps."""

from __future__ import annotations

import functools

from benchmarks import flows, workloads
from benchmarks.bench import KINDS, Bench
from benchmarks.claims import Case, fill
from benchmarks.databases import Database
from benchmarks.results import Results
from onward import Workflow

SECTION = "scaling"
SIZE = 5_000
PROCESSES = (1, 2, 4)
SLOTS = (1, 10, 100, 1_000)
FINISHED = (1_000, 10_000, 100_000, 1_000_000)
HUGE = 10_000_000
PAYLOADS = (100, 1_000, 10_000, 100_000, 1_000_000)
PAYLOAD_TOTAL = 20_000_000
"""Bytes of payloads in one run."""


def run(bench: Bench) -> None:
    """All of them, round robin."""
    size = bench.count(SIZE)
    for _ in range(bench.rounds):
        for kind in bench.kinds:
            for count in PROCESSES:
                options = ("-p", str(count)) if count > 1 else ()
                bench.measure(
                    SECTION,
                    f"processes: {count}",
                    kind,
                    size,
                    functools.partial(_three, size=size, options=options, count=count),
                )
            for slots in SLOTS:
                few = bench.count(SIZE // 10) if slots == 1 else size
                work = functools.partial(_three, size=few, options=("--slots", str(slots)))
                bench.measure(SECTION, f"slots: {slots:,}", kind, few, work)
            for workflow, case in (
                (flows.three, "steps: async def"),
                (flows.three_in_threads, "steps: def, in threads"),
            ):
                bench.measure(SECTION, case, kind, size, functools.partial(_three, size=size, workflow=workflow))
            for length in PAYLOADS:
                count = max(10, min(size, bench.count(PAYLOAD_TOTAL // length)))
                bench.measure(
                    SECTION, f"payload: {length:,} B", kind, count, functools.partial(_carry, size=count, length=length)
                )
    for kind in bench.kinds:  # once: filling takes the time
        for finished in (*FINISHED, *((HUGE,) if bench.is_huge else ())):
            rows = bench.count(finished)
            work = functools.partial(_three, size=size, finished=rows)
            bench.measure(SECTION, f"finished rows: {finished:,}", kind, size, work)


def _three(
    database: Database,
    *,
    size: int,
    options: tuple[str, ...] = (),
    count: int = 1,
    workflow: Workflow[[int], int] = flows.three,
    finished: int = 0,
) -> dict[str, float]:
    prepare = functools.partial(_fill, count=finished) if finished else None
    return workloads.drain_numbers(database, workflow, size, 3, *options, count=count, meters=False, prepare=prepare)


def _fill(database: Database, count: int) -> None:
    fill(database, count, "finished", Case("finished rows", status="completed"))
    with database.connected() as connection:
        connection.execute("ANALYZE")


def _carry(database: Database, *, size: int, length: int) -> dict[str, float]:
    text = "x" * (length - 2)  # with its quotes
    figures = workloads.drain(database, [flows.carry.bind(text) for _ in range(size)], meters=False)
    return {**figures, "mb_per_s": figures["per_s"] * length / 1e6}


def lines(results: Results) -> list[str]:
    """The table."""
    rows = []
    for case in results.cases(SECTION):
        rates = [results.median(SECTION, case, f"onward-{kind}", "per_s") for kind in KINDS]
        rows.append(f"| {case} | " + " | ".join("" if rate is None else f"{rate:,.0f}" for rate in rates) + " |")
    return ["| workflows/s | PostgreSQL | SQLite |", "|---|---:|---:|", *rows]

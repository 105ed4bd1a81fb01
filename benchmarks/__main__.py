"""`python -m benchmarks`: all measurements in one run, as a table with ratios, written to docs/benchmarks.md.

Timings on a shared machine are noisy: the table gives medians over rounds, in which the bare loop and Onward alternate.
"""

from __future__ import annotations

import argparse
import os
import platform
import sqlite3
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import flows, measures
from benchmarks.databases import Database
from benchmarks.measures import ROOT, Result


@contextmanager
def fresh(base: str | None) -> Iterator[Database]:
    """A database file on the disk to be measured, removed afterwards."""
    with tempfile.TemporaryDirectory(dir=base, prefix="onward-bench-") as name:
        yield Database(f"sqlite:///{Path(name) / 'bench.db'}")


def run(scale: float, rounds: int, base: str | None) -> list[Result]:
    """Every measurement, smallest first."""
    results: list[Result] = []

    def count(full: int) -> int:
        return max(20, int(full * scale))

    def median(*measures_: Callable[[Database], float]) -> list[float]:
        """The median of each over the rounds, in which they alternate."""
        values: list[list[float]] = [[] for _ in measures_]
        for _ in range(rounds):
            for found, measure in zip(values, measures_, strict=True):
                with fresh(base) as database:
                    found.append(measure(database))
        return [statistics.median(found) for found in values]

    def add(*items: Result) -> None:
        for item in items:
            results.append(item)
            print(f"{item.name:58} {item.value:12,.1f} {item.unit:14} {item.target:12} {item.note}", flush=True)

    bare, ours = median(
        lambda database: measures.bare_three(database, count(20_000)),
        lambda database: measures.drain_three(database, count(20_000))["per_s"],
    )
    add(
        Result("three-step workflows, bare sqlite3 loop", bare, "workflows/s"),
        Result(
            "three-step workflows, one worker process", ours, "workflows/s", ">= 0.35 x", f"{ours / bare:.2f} x bare"
        ),
    )
    [noop] = median(lambda database: measures.drain(database, flows.noop, count(20_000))["per_s"])
    add(Result("workflows without a step, one worker process", noop, "workflows/s"))
    bare, ours = median(
        lambda database: measures.bare_commits(database, count(2_000)),
        lambda database: count(2_000) / measures.in_one(database, flows.long, count(2_000)),
    )
    add(
        Result("sequential commits, bare sqlite3 loop", bare, "commits/s"),
        Result("sequential steps of one workflow", ours, "steps/s", "", f"{ours / bare:.2f} x bare"),
    )
    [fanout] = median(lambda database: measures.in_one(database, flows.parent, count(1_000)))
    add(Result("1,000 children of one step, awaited by one parent", fanout, "s"))
    with fresh(base) as database:
        many, single = measures.starts(database, count(20_000))
    add(Result("start_many", many, "workflows/s"), Result("concurrent start calls", single, "workflows/s"))
    for place, measure, target in (
        ("same process", measures.latency, "< 5"),
        ("two processes", measures.latency_two_processes, ""),
    ):
        with fresh(base) as database:
            times = measure(database, count(200))
        add(
            Result(f"start to result, one step, {place}, p50", statistics.median(times), "ms", target),
            Result(f"start to result, one step, {place}, p99", measures.percentile(times, 99), "ms"),
        )
    with fresh(base) as database:
        add(Result("resume after 5,000 recorded steps", measures.resume(database, count(5_000))[1], "s", "< 1"))
    for spread in (5.0, 0.0):
        with fresh(base) as database:
            found = measures.sleepers(database, count(10_000), spread)
        name = f"10,000 sleepers due over {spread:g} s" if spread else "10,000 sleepers due at one instant"
        late = measures.percentile(found.late_ms, 99)
        worst = f"worst {max(found.late_ms):.0f} ms"
        add(
            Result(f"{name}: p99 lateness", late, "ms", "< 150" if spread else "", worst),
            Result(f"{name}: memory above idle", found.memory_mb, "MB", "< 50"),
        )
    with fresh(base) as database:
        add(Result("idle worker", measures.idle_cpu(database, 20.0 * min(1.0, scale * 5)), "% of a core", "<= 0.5"))
    return results


def write(results: list[Result], path: Path, scale: float, rounds: int) -> None:
    """The page for people."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`; read the ratios, not the absolute numbers. The bare loop is `benchmarks/bare.py`: plain",
        "`sqlite3` writing the same rows in the same batches with the same durability, without leases, replay or steps.",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}:",
        f"CPython {platform.python_version()}, SQLite {sqlite3.sqlite_version}, `synchronous=FULL`; scale {scale:g},",
        f"medians of {rounds} rounds.",
        "",
        "| measurement | value | unit | target | |",
        "|---|---:|---|---|---|",
    ]
    lines += [f"| {r.name} | {r.value:,.1f} | {r.unit} | {r.target} | {r.note} |" for r in results]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Parse the command line, measure, report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="size of the workloads; 1 is the full size")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", default=None, help="a folder on the disk to be measured")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    arguments = parser.parse_args()
    results = run(arguments.scale, arguments.rounds, arguments.dir)
    if arguments.write:
        write(results, ROOT / "docs" / "benchmarks.md", arguments.scale, arguments.rounds)


if __name__ == "__main__":
    main()

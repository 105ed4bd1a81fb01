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

from benchmarks import measures
from benchmarks.measures import ROOT, Result


@contextmanager
def fresh_folder(base: str | None) -> Iterator[Path]:
    """A folder on the disk to be measured, removed afterwards."""
    with tempfile.TemporaryDirectory(dir=base, prefix="onward-bench-") as name:
        yield Path(name)


def run(scale: float, rounds: int, base: str | None) -> list[Result]:
    """Every measurement, smallest first."""
    results: list[Result] = []

    def count(full: int) -> int:
        return max(20, int(full * scale))

    def repeated(measure: Callable[[Path], tuple[float, float]]) -> tuple[float, float]:
        pairs = []
        for _ in range(rounds):
            with fresh_folder(base) as folder:
                pairs.append(measure(folder))
        return statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)

    def add(*items: Result) -> None:
        for item in items:
            results.append(item)
            print(f"{item.name:58} {item.value:12,.1f} {item.unit:14} {item.target:12} {item.note}", flush=True)

    bare, ours = repeated(lambda folder: measures.drain_three(folder, count(20_000)))
    add(
        Result("three-step workflows, bare sqlite3 loop", bare, "workflows/s"),
        Result(
            "three-step workflows, one worker process", ours, "workflows/s", ">= 0.35 x", f"{ours / bare:.2f} x bare"
        ),
    )
    bare, ours = repeated(lambda folder: measures.long(folder, count(2_000)))
    add(
        Result("sequential commits, bare sqlite3 loop", bare, "commits/s"),
        Result("sequential steps of one workflow", ours, "steps/s", "", f"{ours / bare:.2f} x bare"),
    )
    many, single = repeated(lambda folder: measures.bulk_start(folder, count(20_000)))
    add(Result("start_many", many, "workflows/s"), Result("concurrent start calls", single, "workflows/s"))
    p50, p99 = repeated(lambda folder: measures.latency(folder, count(200)))
    add(
        Result("start to result, one step, same process, p50", p50, "ms", "< 5"),
        Result("start to result, one step, same process, p99", p99, "ms"),
    )
    p50, p99 = repeated(lambda folder: measures.latency_two_processes(folder, count(200)))
    add(
        Result("start to result, one step, two processes, p50", p50, "ms"),
        Result("start to result, one step, two processes, p99", p99, "ms"),
    )
    with fresh_folder(base) as folder:
        add(Result("resume after 5,000 recorded steps", measures.resume(folder, count(5_000)), "s", "< 1"))
    for spread in (5.0, 0.0):
        with fresh_folder(base) as folder:
            late, memory, worst = measures.sleepers(folder, count(10_000), spread)
        name = f"10,000 sleepers due over {spread:g} s" if spread else "10,000 sleepers due at one instant"
        target = "< 150" if spread else ""
        add(
            Result(f"{name}: p99 lateness", late, "ms", target, f"worst {worst:.0f} ms"),
            Result(f"{name}: memory above idle", memory, "MB", "< 50"),
        )
    with fresh_folder(base) as folder:
        add(Result("idle worker", measures.idle_cpu(folder, 20.0 * min(1.0, scale * 5)), "% of a core", "<= 0.5"))
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

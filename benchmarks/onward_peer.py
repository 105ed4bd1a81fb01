"""One workload on Onward, with the command line of the scripts that run it on other systems.

    python benchmarks/onward_peer.py --workload three --n 1500 --dsn sqlite:////tmp/bench.db
    python benchmarks/onward_peer.py --workload latency --dsn postgresql://postgres@localhost/bench

The database is made fresh, and what is reported is checked in its rows. Prints one JSON object as its last line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / part) for part in ("src", ".")]  # it is run by its path

from benchmarks import flows, measures  # noqa: E402
from benchmarks.databases import Database  # noqa: E402

SIZES = {"noop": 5000, "three": 1500, "latency": 200, "long": 2000, "fanout": 1000, "resume": 5000, "sleepers": 10000}


def measure(workload: str, database: Database, size: int, concurrency: int | None) -> dict[str, Any]:
    """What one workload gives, under the names that all scripts use."""
    options = () if concurrency is None else ("--slots", str(concurrency))
    match workload:
        case "noop":
            return {**measures.drain(database, flows.noop, size, *options)}
        case "three":
            return {**measures.drain_three(database, size, *options), "checked_steps": 3 * size}
        case "latency":
            times = measures.latency_two_processes(database, size)
            p50, p99 = statistics.median(times), measures.percentile(times, 99)
            return {"p50_ms": p50, "p99_ms": p99, "max_ms": max(times), "seconds": sum(times) / 1000}
        case "long" | "fanout":
            seconds = measures.in_one(database, flows.long if workload == "long" else flows.parent, size)
            return {"seconds": seconds, "per_s": size / seconds}
        case "resume":
            built_s, seconds = measures.resume(database, size)
            return {"build_s": built_s, "seconds": seconds}
        case _:
            found = measures.sleepers(database, size, 0.0)
            late = [one / 1000 for one in found.late_ms]
            return {
                "late_p50_s": statistics.median(late),
                "late_p99_s": measures.percentile(late, 99),
                "late_max_s": max(late),
                "seconds": max(late),
                "worker_rss_mb": found.rss_mb,
                "enqueue_per_s": found.enqueue_per_s,
            }


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--workload", required=True, choices=SIZES)
    parser.add_argument("--n", type=int, help="size of the workload")
    parser.add_argument("--concurrency", type=int, help="slots of the worker")
    parser.add_argument("--dsn", required=True, help="sqlite:///path or postgresql://…/database; made fresh")
    parser.add_argument("--opt", action="append", default=[], help="k=v: none is known")
    given = parser.parse_args()
    size = given.n or SIZES[given.workload]
    database = Database(given.dsn)
    found = measure(given.workload, database, size, given.concurrency)
    name = "onward-pg" if database.is_postgres else "onward-sqlite"
    head = {"peer": name, "workload": given.workload, "n": size, "concurrency": given.concurrency}
    print(json.dumps({**head, **{key: round(value, 6) for key, value in found.items()}}))


if __name__ == "__main__":
    main()

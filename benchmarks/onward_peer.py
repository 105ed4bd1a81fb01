"""One workload on Onward, with the command line of the scripts that run it on other systems.

    python benchmarks/onward_peer.py --workload three --n 1500 --dsn sqlite:////tmp/bench.db
    python benchmarks/onward_peer.py --workload latency --dsn postgresql://postgres@localhost/bench

The database is made fresh, and what is reported is checked in its rows. Prints one JSON object as its last line.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / part) for part in ("src", ".")]  # it is run by its path

from benchmarks import flows, workloads  # noqa: E402
from benchmarks.databases import Database  # noqa: E402

SIZES = {"noop": 5000, "three": 1500, "latency": 200, "long": 2000, "fanout": 1000, "resume": 5000, "sleepers": 10000}


def measure(
    workload: str, database: Database, size: int, concurrency: int | None, options: dict[str, str]
) -> dict[str, float]:
    """What one workload gives, under the names that all scripts use."""
    given = [] if concurrency is None else ["--slots", str(concurrency)]
    processes = int(options.get("processes", "1"))
    if processes > 1:
        given += ["-p", str(processes)]
    match workload:
        case "noop":
            return workloads.drain_numbers(database, flows.noop, size, 0, *given, count=processes)
        case "three":
            return workloads.drain_numbers(database, flows.three, size, 3, *given, count=processes)
        case "latency":
            return workloads.latency(database, size, is_in_one_process=options.get("how") == "one-process")
        case "long":
            return workloads.in_one(database, flows.long, size)
        case "fanout":
            return workloads.in_one(database, flows.parent, size)
        case "resume":
            return workloads.resume(database, size)
        case _:
            return workloads.sleepers(database, size, float(options.get("spread", "0")), *given)


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--workload", required=True, choices=SIZES)
    parser.add_argument("--n", type=int, help="size of the workload")
    parser.add_argument("--concurrency", type=int, help="slots of the worker")
    parser.add_argument("--dsn", required=True, help="sqlite:///path or postgresql://…/database; made fresh")
    parser.add_argument(
        "--opt",
        action="append",
        default=[],
        help="k=v: processes=2 (of the worker), how=one-process (latency), spread=5 (s; sleepers)",
    )
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the worker's process is ended, too
    size = given.n or SIZES[given.workload]
    database = Database(given.dsn)
    options = dict(one.split("=", 1) for one in given.opt)
    found = measure(given.workload, database, size, given.concurrency, options)
    name = "onward-pg" if database.is_postgres else "onward-sqlite"
    head = {"peer": name, "workload": given.workload, "n": size, "concurrency": given.concurrency, "opt": options}
    print(json.dumps({**head, **{key: round(value, 6) for key, value in found.items()}}))


if __name__ == "__main__":
    main()

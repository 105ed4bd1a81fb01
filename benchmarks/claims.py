"""How long a claim takes while the table is full of rows that it must not look at.

    python -m benchmarks.claims --url postgresql://postgres@localhost/bench --rows 1000000
    python -m benchmarks.claims --url sqlite:////tmp/claims.db --rows 1000000

The database is made fresh for each case. In each one a worker claims due rows, ten at a time, and gives every claimed row its
end, beside: nothing else; a million rows that are due tomorrow; a million finished ones; a hundred thousand due rows of another
queue; a session that keeps a snapshot open, so that the dead versions of all rows claimed so far pile up (PostgreSQL).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.bench import Bench
from benchmarks.databases import Database
from benchmarks.results import Results, Sample
from benchmarks.workloads import percentile
from onward._store.base import Store
from onward._store.opening import open_store
from onward._store.operations import Fence, FinishOp
from onward._store.records import ClaimRequest, WorkerRow

WORKER = WorkerRow(
    id="bench", name="bench", host="here", pid=1, queues=("default",), types=("three",), code_version="1"
)
REQUEST = ClaimRequest(worker="bench", queue="default", types=("three",), limit=10, version="1/3.11", code_version="1")
SECTION = "claims"
ROWS = 1_000_000
DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Case:
    """What the table holds beside the due rows: how many rows, of which status and queue, due how far from now."""

    name: str
    others: float = 0.0
    """As a share of `--rows`."""
    status: str = "pending"
    queue: str = "default"
    due_in_s: int | None = None
    holds_snapshot: bool = False


CASES = (
    Case("nothing else"),
    Case("rows due tomorrow", 1.0, due_in_s=DAY_S),
    Case("finished rows", 1.0, status="completed"),
    Case("due rows of another queue", 0.1, queue="other", due_in_s=-60),
    Case("a snapshot held open over all claims", holds_snapshot=True),
)


def fill(database: Database, count: int, prefix: str, case: Case) -> None:
    """Insert so many rows by one statement."""
    now = "clock_timestamp()" if database.is_postgres else str(time.time_ns() // 1000)

    def at(offset_s: int | None) -> str:
        if offset_s is None:
            return "NULL"
        return f"{now} + interval '{offset_s} s'" if database.is_postgres else f"{now} + {offset_s * 1_000_000}"

    numbers = (
        f"generate_series(1, {count}) AS n (i)"
        if database.is_postgres
        else f"(WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) SELECT i FROM n) AS n"
    )
    identity = (
        f"'{prefix}' || lpad(n.i::text, 8, '0')" if database.is_postgres else f"'{prefix}' || printf('%08d', n.i)"
    )
    with database.connected() as connection:
        connection.execute(
            f"INSERT INTO {database.workflows} (id, type, queue, priority, status, payload, digest, seed, max_attempts,"
            f" next_run_at, created_at, updated_at, finished_at) SELECT {identity}, 'three', '{case.queue}', 0,"
            f" '{case.status}', '{{\"value\":1}}', 'd', '00', 5, {at(case.due_in_s)}, {now}, {now},"
            f" {now if case.status == 'completed' else 'NULL'} FROM {numbers}"
        )


@contextlib.contextmanager
def snapshot(database: Database, *, is_held: bool) -> Iterator[None]:
    """A session that reads once and leaves its transaction open."""
    if not is_held:
        yield
        return
    with database.connected() as connection:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        connection.execute(f"SELECT count(*) FROM {database.workflows}")
        yield
        connection.execute("ROLLBACK")


async def claim_all(store: Store) -> list[float]:
    """Claim and end everything that is due; milliseconds of each claim."""
    took = []
    while True:
        began = time.perf_counter()
        rows = await store.claim(REQUEST)
        took.append((time.perf_counter() - began) * 1000)
        if not rows:
            return took[:-1]
        await store.write([FinishOp(Fence(row.id, "bench", row.epoch), "completed", "4") for row in rows])


async def measure(database: Database, case: Case, rows: int, claims: int) -> list[float]:
    """The milliseconds of each claim of one case."""
    database.fresh()
    store = open_store(database.url)
    await store.open()
    leases = store.leases()
    try:
        await asyncio.to_thread(leases.register, WORKER, 3_600_000_000)
        await asyncio.to_thread(fill, database, round(rows * case.others), "other", case)
        due = Case("", due_in_s=-1)
        await asyncio.to_thread(fill, database, claims * REQUEST.limit, "due", due)
        with snapshot(database, is_held=case.holds_snapshot):
            return await claim_all(store)
    finally:
        await asyncio.to_thread(leases.close)
        await store.close()


def measure_all(url: str, rows: int, claims: int, tell: Callable[[str], Any] = print) -> dict[str, list[float]]:
    """All cases, told as they end."""
    found: dict[str, list[float]] = {}
    tell(
        f"{'a claim of 10 rows, beside':44} {'rows':>10} {'median':>9} {'p99':>9} {'longest':>9}   in ms, {claims} claims"
    )
    for case in CASES:
        database = Database(url)
        if case.holds_snapshot and not database.is_postgres:
            continue
        took = found[case.name] = asyncio.run(measure(database, case, rows, claims))
        p99 = percentile(took, 99)
        count = round(rows * case.others)
        tell(f"{case.name:44} {count:10,} {statistics.median(took):9.2f} {p99:9.2f} {max(took):9.2f}")
    return found


def run(bench: Bench) -> None:
    """A part of `python -m benchmarks`: each case once on each database."""
    rows, claims = bench.count(ROWS), bench.count(1_000)
    for kind in bench.kinds:
        for name, took in measure_all(bench.database(kind).url, rows, claims, lambda _: None).items():
            figures = {"p50_ms": statistics.median(took), "p99_ms": percentile(took, 99), "max_ms": max(took)}
            bench.keep(Sample(SECTION, name, f"onward-{kind}", figures, rows))


def lines(results: Results) -> list[str]:
    """The table."""
    shares = {case.name: case.others for case in CASES}
    rows = []
    for case in results.cases(SECTION):
        for kind, where in (("pg", "PostgreSQL"), ("sqlite", "SQLite")):
            found = results.of(SECTION, case, f"onward-{kind}")
            times = [results.median(SECTION, case, f"onward-{kind}", name) for name in ("p50_ms", "p99_ms", "max_ms")]
            if found:
                shown = " | ".join("" if time is None else f"{time:.2f}" for time in times)
                rows.append(f"| {case}, {where} | {round(found[-1].size * shares.get(case, 0)):,} | {shown} |")
    head = "| a claim of 10 rows beside | rows | median, ms | p99, ms | longest, ms |"
    return [head, "|---|---:|---:|---:|---:|", *rows]


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", required=True, help="the database; it is made fresh")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows beside the due ones")
    parser.add_argument("--claims", type=int, default=1_000)
    given = parser.parse_args()
    measure_all(given.url, given.rows, given.claims)


if __name__ == "__main__":
    main()

"""How fast workflows are started: one after the other, by many callers at once, in bulk, and in transactions of the caller."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sqlite3
import time
from collections.abc import Iterator
from typing import Any

from benchmarks import flows
from benchmarks.bench import KINDS, Bench
from benchmarks.databases import Database, without_own_options
from benchmarks.results import Results
from benchmarks.workloads import migrate
from onward import AsyncClient, Client

SECTION = "starts"
SINGLE, CONCURRENT, BULK = 500, 10_000, 50_000
CALLERS = 200
"""Tasks that each start one workflow after the other."""
EXPLAINED = {
    "single": "`start`, one after the other",
    "concurrent": f"`start`, {CALLERS} callers at once",
    "start_many": "`start_many`, all in one call",
    "tx": "`start` with `tx=`, a transaction each",
    "tx, bulk": "`start_many` with `tx=`, all in one transaction",
}


def run(bench: Bench) -> None:
    """All of them, round robin."""
    single, concurrent, bulk = bench.count(SINGLE), bench.count(CONCURRENT), bench.count(BULK)
    for _ in range(bench.rounds):
        for kind in bench.kinds:
            for case, size, work in (
                ("single", single, _single),
                ("concurrent", concurrent, _concurrent),
                ("start_many", bulk, _bulk),
                ("tx", single, _within),
                ("tx, bulk", concurrent, _bulk_within),
            ):
                bench.measure(SECTION, case, kind, size, functools.partial(_timed, work=work, size=size))


def _timed(database: Database, *, work: Any, size: int) -> dict[str, float]:
    migrate(database)
    seconds = work(database, size)
    assert database.count("status = 'pending'") >= size
    return {"seconds": seconds, "per_s": size / seconds}


def _single(database: Database, size: int) -> float:
    async def run() -> float:
        async with AsyncClient(database.url) as client:
            await client.start(flows.one, 0)
            began = time.perf_counter()
            for number in range(size):
                await client.start(flows.one, number)
            return time.perf_counter() - began

    return asyncio.run(run())


def _concurrent(database: Database, size: int) -> float:
    async def run() -> float:
        async with AsyncClient(database.url) as client:
            await client.start(flows.one, 0)
            numbers = iter(range(size))

            async def call() -> None:
                for number in numbers:
                    await client.start(flows.one, number)

            began = time.perf_counter()
            await asyncio.gather(*(call() for _ in range(CALLERS)))
            return time.perf_counter() - began

    return asyncio.run(run())


def _bulk(database: Database, size: int) -> float:
    async def run() -> float:
        async with AsyncClient(database.url) as client:
            await client.start(flows.one, 0)
            began = time.perf_counter()
            await client.start_many(flows.one.bind(number) for number in range(size))
            return time.perf_counter() - began

    return asyncio.run(run())


@contextlib.contextmanager
def _own(database: Database) -> Iterator[Any]:
    """A connection as an application has one: a transaction is open as soon as something is written."""
    if database.is_postgres:
        import psycopg

        with psycopg.connect(without_own_options(database.url)) as connection:
            yield connection
    else:
        with contextlib.closing(sqlite3.connect(database.path, timeout=30)) as connection:
            connection.execute("PRAGMA synchronous = FULL")
            yield connection


def _own_table(connection: Any) -> None:
    connection.execute("CREATE TABLE orders (id integer PRIMARY KEY)")
    connection.commit()


def _within(database: Database, size: int) -> float:
    with _own(database) as connection, Client(database.url) as client:
        _own_table(connection)
        began = time.perf_counter()
        for number in range(size):
            connection.execute(f"INSERT INTO orders VALUES ({number})")
            client.start(flows.one.using(tx=connection), number)
            connection.commit()
        return time.perf_counter() - began


def _bulk_within(database: Database, size: int) -> float:
    with _own(database) as connection, Client(database.url) as client:
        _own_table(connection)
        began = time.perf_counter()
        connection.execute("INSERT INTO orders VALUES (1)")
        flow = flows.one.using(tx=connection)
        client.start_many(flow.bind(number) for number in range(size))
        connection.commit()
        return time.perf_counter() - began


def lines(results: Results) -> list[str]:
    """The table."""
    rows = []
    for case in results.cases(SECTION):
        rates = [results.median(SECTION, case, f"onward-{kind}", "per_s") for kind in KINDS]
        text = " | ".join("" if rate is None else f"{rate:,.0f}" for rate in rates)
        rows.append(f"| {EXPLAINED.get(case, case)} | {text} |")
    return ["| starts/s | PostgreSQL | SQLite |", "|---|---:|---:|", *rows]

"""The physical limit: plain SQL loops that write the rows which Onward writes, in the same batches, on one thread.

    python benchmarks/limit.py --workload three --n 10000 --dsn postgresql://postgres@localhost/bench

They use Onward's own tables and indexes, full durability, set-based prepared statements, and one transaction where the engine
has one: the claim of a batch, then the entries of each step, those of the last one together with the workflows' end. They check
no lease, replay nothing, run no step and tell nobody. `noop` and `three` drain a queue, `long` commits single journal rows one
after the other. It has the command line of the peers' scripts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import secrets
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / part) for part in ("src", ".")]  # it is run by its path

from benchmarks.databases import Database, without_own_options  # noqa: E402
from benchmarks.meters import Meter  # noqa: E402
from benchmarks.workloads import migrate  # noqa: E402
from onward._engine.starts import new_seed, new_workflow_id  # noqa: E402

BATCH = 200
"""Workflows in one claim, and so in one flush: what a worker holds (its slots)."""
SIZES = {"noop": 20_000, "three": 10_000, "long": 2_000}
WORKER = secrets.token_hex(8)
DIGEST, PAYLOAD, VERSION = "0123456789abcdef", '{"value":1}', "1/3.11"


class Loop(Protocol):
    """One database's statements; each method is one transaction."""

    def insert(self, ids: Sequence[str]) -> None:
        """Pending workflows, as `start_many` leaves them."""
        ...

    def claim(self) -> list[str]:
        """Take a batch of due rows."""
        ...

    def write(self, ids: Sequence[str], seq: int, *, ends: bool) -> None:
        """An entry of each (none for seq 0), and the end."""
        ...

    def write_one(self, seq: int) -> None:
        """One entry of one workflow."""
        ...


def _key(seq: int) -> str:
    return "add" if seq == 1 else f"add#{seq}"


def _now() -> int:
    return time.time_ns() // 1000


class SQLiteLoop:
    """By the standard library's driver, set up like the engine's connection."""

    _CLAIM = (
        "SELECT id, payload, seed FROM onward_workflows WHERE queue = 'default' AND priority = 0 AND next_run_at <= ?"
        " ORDER BY next_run_at, id LIMIT ?"
    )
    _TAKE = (
        "UPDATE onward_workflows SET status = 'running', worker = ?, epoch = epoch + 1, next_run_at = NULL, version = ?,"
        " code_version = ?, started_at = ?, updated_at = ? WHERE id = ?"
    )
    _ENTRY = (
        "INSERT INTO onward_journal (workflow_id, seq, key, kind, digest, arguments, result, tries, started_at, finished_at)"
        " VALUES (?, ?, ?, 'step', ?, ?, '2', 1, ?, ?)"
    )
    _END = (
        "UPDATE onward_workflows SET status = 'completed', result = '4', worker = NULL, step = ?, finished_at = ?,"
        " updated_at = ? WHERE id = ? AND worker = ? AND epoch = 1"
    )

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._connection.execute("BEGIN IMMEDIATE")
        yield self._connection
        self._connection.execute("COMMIT")

    def insert(self, ids: Sequence[str]) -> None:
        now = _now()
        with self._transaction() as connection:
            connection.executemany(
                "INSERT INTO onward_workflows (id, type, queue, priority, status, payload, digest, seed, max_attempts,"
                " next_run_at, created_at, updated_at) VALUES (?, 'three', 'default', 0, 'pending', ?, ?, ?, 5, ?, ?, ?)",
                [(id, PAYLOAD, DIGEST, new_seed(), now, now, now) for id in ids],
            )

    def claim(self) -> list[str]:
        now = _now()
        with self._transaction() as connection:
            ids = [row[0] for row in connection.execute(self._CLAIM, (now, BATCH))]
            connection.executemany(self._TAKE, [(WORKER, VERSION, DIGEST, now, now, id) for id in ids])
        return ids

    def write(self, ids: Sequence[str], seq: int, *, ends: bool) -> None:
        now = _now()
        with self._transaction() as connection:
            if seq:
                key = _key(seq)
                rows = [(id, seq, key, DIGEST, PAYLOAD, now, now) for id in ids]
                connection.executemany(self._ENTRY, rows)
            if ends:
                step = _key(seq) if seq else None
                connection.executemany(self._END, [(step, now, now, id, WORKER) for id in ids])

    def write_one(self, seq: int) -> None:
        now = _now()
        with self._transaction() as connection:
            connection.execute(self._ENTRY, ("bare", seq, _key(seq), DIGEST, PAYLOAD, now, now))


class PostgresLoop:
    """By psycopg: one JSON parameter a statement, a transaction's statements in one round trip (pipeline mode)."""

    _CLAIM = (
        "WITH due AS MATERIALIZED (SELECT w.id FROM onward.workflows AS w WHERE w.queue = 'default' AND w.priority = 0"
        " AND w.next_run_at <= clock_timestamp() ORDER BY w.next_run_at, w.id LIMIT %s FOR UPDATE SKIP LOCKED)"
        " UPDATE onward.workflows AS w SET status = 'running', worker = %s, epoch = w.epoch + 1, next_run_at = NULL,"
        " version = %s, code_version = %s, started_at = clock_timestamp(), updated_at = clock_timestamp()"
        " FROM due WHERE w.id = due.id RETURNING w.id, w.payload::text, w.seed"
    )
    _ENTRIES = (
        "INSERT INTO onward.journal (workflow_id, seq, key, kind, digest, arguments, result, tries, started_at, finished_at)"
        " SELECT e.w, e.s, e.k, 'step', e.d, e.a, e.r::json, 1, clock_timestamp(), clock_timestamp()"
        " FROM json_to_recordset(%s) AS e (w text, s integer, k text, d text, a text, r text)"
    )
    _END = (
        "UPDATE onward.workflows AS w SET status = 'completed', result = e.r::json, worker = NULL, step = e.k,"
        " finished_at = clock_timestamp(), updated_at = clock_timestamp()"
        " FROM json_to_recordset(%s) AS e (w text, k text, r text)"
        " WHERE w.id = ANY (ARRAY[e.w]) AND w.worker = %s AND w.epoch = 1"
    )
    _ONE = (
        "INSERT INTO onward.journal (workflow_id, seq, key, kind, digest, arguments, result, tries, started_at, finished_at)"
        " VALUES ('bare', %s, %s, 'step', %s, %s, '2', 1, clock_timestamp(), clock_timestamp())"
    )

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        connection.prepare_threshold = 0
        for name in ("enable_seqscan", "enable_hashjoin", "enable_mergejoin", "enable_bitmapscan", "jit"):
            connection.execute(f"SET {name} = off")  # on tables without statistics the planner would scan them
        connection.execute("SET plan_cache_mode = force_generic_plan")

    def insert(self, ids: Sequence[str]) -> None:
        rows = json.dumps([{"id": id, "seed": new_seed()} for id in ids])
        self._connection.execute(
            "INSERT INTO onward.workflows (id, type, queue, priority, status, payload, digest, seed, max_attempts, next_run_at,"
            " created_at, updated_at) SELECT n.id, 'three', 'default', 0, 'pending', %s, %s, n.seed, 5, clock_timestamp(),"
            " clock_timestamp(), clock_timestamp() FROM json_to_recordset(%s) AS n (id text, seed text)",
            (PAYLOAD, DIGEST, rows),
        )

    def claim(self) -> list[str]:
        return [row[0] for row in self._connection.execute(self._CLAIM, (BATCH, WORKER, VERSION, DIGEST)).fetchall()]

    def write(self, ids: Sequence[str], seq: int, *, ends: bool) -> None:
        connection, key = self._connection, _key(seq) if seq else None
        entries = [{"w": id, "s": seq, "k": key, "d": DIGEST, "a": PAYLOAD, "r": "2"} for id in ids]
        if not ends:
            connection.execute(self._ENTRIES, (json.dumps(entries),))
            return
        with connection.pipeline(), connection.transaction():
            if seq:
                connection.execute(self._ENTRIES, (json.dumps(entries),))
            connection.execute(self._END, (json.dumps([{"w": id, "k": key, "r": "4"} for id in ids]), WORKER))

    def write_one(self, seq: int) -> None:
        self._connection.execute(self._ONE, (seq, _key(seq), DIGEST, PAYLOAD))


@contextlib.contextmanager
def loop_on(database: Database) -> Iterator[Loop]:
    """The loop for a database, on a connection of its own."""
    if database.is_postgres:
        import psycopg

        with psycopg.connect(without_own_options(database.url), autocommit=True) as connection:
            yield PostgresLoop(connection)
    else:
        with contextlib.closing(sqlite3.connect(database.path, isolation_level=None, timeout=30)) as connection:
            yield SQLiteLoop(connection)


def drain(database: Database, size: int, steps: int) -> dict[str, float]:
    """Claim, steps and end of so many workflows that wait in the queue."""
    migrate(database)
    with loop_on(database) as loop:
        ids = [new_workflow_id() for _ in range(size)]
        began = time.perf_counter()
        for start in range(0, size, 2_000):
            loop.insert(ids[start : start + 2_000])
        inserted_s = time.perf_counter() - began
    with Meter(database) as meter, loop_on(database) as loop:
        began, cpu = time.perf_counter(), time.process_time()
        while taken := loop.claim():
            if not steps:
                loop.write(taken, 0, ends=True)
            for seq in range(1, steps + 1):
                loop.write(taken, seq, ends=seq == steps)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    assert database.count("status = 'completed'") == size
    assert int(database.row(f"SELECT count(*) FROM {database.journal}")[0]) == steps * size
    return {
        **meter.figures,
        "seconds": seconds,
        "per_s": size / seconds,
        "worker_cpu_s": cpu,
        "enqueue_per_s": size / inserted_s,
        "checked_steps": steps * size,
    }


def single_commits(database: Database, size: int) -> dict[str, float]:
    """One journal row a commit."""
    migrate(database)
    with Meter(database) as meter, loop_on(database) as loop:
        loop.write_one(1)
        began = time.perf_counter()
        for seq in range(2, size + 2):
            loop.write_one(seq)
        seconds = time.perf_counter() - began
    assert int(database.row(f"SELECT count(*) FROM {database.journal}")[0]) == size + 1
    return {**meter.figures, "seconds": seconds, "per_s": size / seconds}


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--workload", required=True, choices=SIZES)
    parser.add_argument("--n", type=int, help="size of the workload")
    parser.add_argument("--dsn", required=True, help="sqlite:///path or postgresql://…/database; made fresh")
    given = parser.parse_args()
    database, size = Database(given.dsn), given.n or SIZES[given.workload]
    if given.workload == "long":
        found = single_commits(database, size)
    else:
        found = drain(database, size, 3 if given.workload == "three" else 0)
    name = "bare-pg" if database.is_postgres else "bare-sqlite"
    print(
        json.dumps({"peer": name, "workload": given.workload, "n": size, **{k: round(v, 6) for k, v in found.items()}})
    )


if __name__ == "__main__":
    main()

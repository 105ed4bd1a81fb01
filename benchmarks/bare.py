"""The physical limit: plain `sqlite3` loops that write the rows which Onward writes, in the same batches, on one thread.

They use Onward's own schema and indexes, full durability, and one transaction where the engine has one. They check no
lease, replay nothing and run no step body.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from onward._engine.starts import new_seed, new_workflow_id

BATCH = 200
WORKER = new_seed()


def connect(path: Path) -> sqlite3.Connection:
    """A connection set up like the engine's."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=30)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def insert_pending(connection: sqlite3.Connection, count: int) -> list[str]:
    """Pending three-step workflows, as `start_many` leaves them."""
    now = time.time_ns() // 1000
    ids = [new_workflow_id() for _ in range(count)]
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(
        "INSERT INTO onward_workflows (id, type, queue, priority, status, payload, digest, seed, max_attempts, next_run_at,"
        " created_at, updated_at)"
        " VALUES (?, 'three', 'default', 0, 'pending', '{\"value\":1}', '0123456789abcdef', ?, 5, ?, ?, ?)",
        [(id, new_seed(), now, now, now) for id in ids],
    )
    connection.execute("COMMIT")
    return ids


def drain_three(connection: sqlite3.Connection) -> float:
    """Claim, three steps and completion for all pending rows; seconds."""
    started = time.perf_counter()
    while True:
        connection.execute("BEGIN IMMEDIATE")
        now = time.time_ns() // 1000
        ids = [
            row[0]
            for row in connection.execute(
                "SELECT id, payload, seed FROM onward_workflows WHERE queue = 'default' AND priority = 0 AND next_run_at <= ?"
                " ORDER BY next_run_at, id LIMIT ?",
                (now, BATCH),
            )
        ]
        if not ids:
            connection.execute("COMMIT")
            return time.perf_counter() - started
        connection.executemany(
            "UPDATE onward_workflows SET status = 'running', worker = ?, epoch = epoch + 1, next_run_at = NULL,"
            " version = '1/3.11', code_version = '0123456789abcdef', started_at = ?, updated_at = ? WHERE id = ?",
            [(WORKER, now, now, id) for id in ids],
        )
        connection.execute("COMMIT")
        for seq, key in enumerate(("add", "add#2", "add#3"), start=1):
            connection.execute("BEGIN IMMEDIATE")
            now = time.time_ns() // 1000
            connection.executemany(
                "INSERT INTO onward_journal (workflow_id, seq, key, kind, digest, arguments, result, tries, started_at,"
                " finished_at) VALUES (?, ?, ?, 'step', '0123456789abcdef', '{\"value\":1}', '2', 1, ?, ?)",
                [(id, seq, key, now, now) for id in ids],
            )
            if seq == 3:
                connection.executemany(
                    "UPDATE onward_workflows SET status = 'completed', result = '4', worker = NULL, step = 'add#3',"
                    " finished_at = ?, updated_at = ? WHERE id = ? AND worker = ? AND epoch = 1",
                    [(now, now, id, WORKER) for id in ids],
                )
            connection.execute("COMMIT")


def single_commits(connection: sqlite3.Connection, count: int) -> float:
    """One journal row a commit; seconds."""
    started = time.perf_counter()
    for seq in range(1, count + 1):
        now = time.time_ns() // 1000
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(
            "INSERT INTO onward_journal (workflow_id, seq, key, kind, digest, arguments, result, tries, started_at,"
            " finished_at) VALUES ('bare', ?, ?, 'step', '0123456789abcdef', '{\"value\":1}', '2', 1, ?, ?)",
            (seq, f"add#{seq}", now, now),
        )
        connection.execute("COMMIT")
    return time.perf_counter() - started

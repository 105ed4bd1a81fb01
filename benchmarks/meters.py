"""What a stretch of work costs the PostgreSQL server: commits, write-ahead log, fsyncs, statements and processor time.

The log and its fsyncs are counted for the whole server, so nobody else may use it meanwhile. On SQLite there is nothing to ask:
the meter answers with nothing.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any, Self

from benchmarks.databases import Database

REPORT_S = 1.1
"""A session tells its counters when it ends, and at most once a second."""


class Meter:
    """Counts between `start` and `stop`, or as a context manager; then `figures` has the differences. The sessions that did the
    work have to be closed before it stops: an idle one keeps its counters to itself for ten seconds.

    Args:
        database: any; only those of PostgreSQL can be measured.
        counts_statements: count statements too, where `pg_stat_statements` is loaded.
    """

    def __init__(self, database: Database, *, counts_statements: bool = False) -> None:
        self._database = database
        self._counts_statements = counts_statements and database.is_postgres and _track_statements(database)
        self._before: dict[str, float] = {}
        self.figures: dict[str, float] = {}

    def start(self) -> None:
        """From now on."""
        if not self._database.is_postgres:
            return
        time.sleep(REPORT_S)
        self._before = {**self._read(), **_cpu(self._database)}

    def stop(self) -> dict[str, float]:
        """Until now: the differences."""
        if not self._database.is_postgres:
            return {}
        cpu = _cpu(
            self._database
        )  # before waiting: what is idle meanwhile costs next to nothing, but it is none of the work
        time.sleep(REPORT_S)
        after = {**self._read(), **cpu}
        self.figures = {name: after[name] - before for name, before in self._before.items() if name in after}
        return self.figures

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _read(self) -> dict[str, float]:
        with self._database.connected() as connection:
            commits = _one(
                connection,
                "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()",
            )
            records, volume = connection.execute(
                "SELECT wal_records, pg_current_wal_insert_lsn() - '0/0'::pg_lsn FROM pg_stat_wal"
            ).fetchone()
            found = {
                "elapsed_s": time.monotonic(),
                "pg_xacts": float(commits),
                "pg_wal_records": float(records),
                "pg_wal_bytes": float(volume),
            }
            if connection.info.server_version >= 180000:
                found["pg_wal_fsyncs"] = float(
                    _one(connection, "SELECT sum(fsyncs) FROM pg_stat_io WHERE object = 'wal'")
                )
            else:
                found["pg_wal_fsyncs"] = float(_one(connection, "SELECT wal_sync FROM pg_stat_wal"))
            if self._counts_statements:
                found["pg_statements"] = float(
                    _one(
                        connection,
                        "SELECT coalesce(sum(calls), 0) FROM benchmark.pg_stat_statements"
                        " WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())"
                        " AND query !~ '(pg_stat_|data_directory)'",
                    )
                )
        return found


def _one(connection: Any, sql: str) -> Any:
    return connection.execute(sql).fetchone()[0]


def _track_statements(database: Database) -> bool:
    """Let the server count this database's statements, in sessions begun after this."""
    with database.connected() as connection:
        if "pg_stat_statements" not in _one(connection, "SHOW shared_preload_libraries"):
            return False
        name = _one(connection, "SELECT current_database()")
        connection.execute("CREATE SCHEMA IF NOT EXISTS benchmark")
        connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements SCHEMA benchmark")
        connection.execute(f"ALTER DATABASE \"{name}\" SET pg_stat_statements.track = 'top'")
    return True


def _cpu(database: Database) -> dict[str, float]:
    """Processor time of the server's processes so far; nothing where it runs elsewhere, or belongs to somebody else."""
    with contextlib.suppress(OSError, ValueError):
        [directory] = database.row("SHOW data_directory")
        pid = int((Path(directory) / "postmaster.pid").read_text().split()[0])
        ticks = sum(_times(pid))  # its own, and those of the sessions that have ended
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                ticks += sum(_times(int(child))[:2])
        return {"pg_cpu_s": ticks / os.sysconf("SC_CLK_TCK")}
    return {}


def _times(pid: int) -> list[int]:
    """Ticks in user mode and in the kernel, and the same of the children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return [int(field) for field in fields[11:15]]

"""One database with its ledger and its fault processes, and what must be true of them at any time.

Everything is read from the file by plain SQL on a connection of the test's own, and from the ledger: never through the library.
Triggers of the test's own keep every change of a status, so that a second outcome would be seen even if it were undone.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from onward.client import Client
from onward.definitions import BoundWorkflow
from tests.faults.faultworker import Job
from tests.faults.ledger import Line, read_ledger
from tests.faults.processes import FaultProcess, ForkServers, until

FINAL = ("completed", "failed", "cancelled")
AUDIT = """
CREATE TABLE bookings (amount INTEGER);
CREATE TABLE audit (n INTEGER PRIMARY KEY, workflow_id TEXT, old TEXT, new TEXT, result TEXT, error TEXT);
CREATE TRIGGER audit_status AFTER UPDATE ON onward_workflows
WHEN OLD.status IS NOT NEW.status OR OLD.result IS NOT NEW.result
BEGIN
    INSERT INTO audit (workflow_id, old, new, result, error) VALUES (NEW.id, OLD.status, NEW.status, NEW.result, NEW.error);
END;
CREATE TRIGGER audit_deletion AFTER DELETE ON onward_journal
BEGIN
    INSERT INTO audit (workflow_id, new) VALUES (OLD.workflow_id, 'journal entry deleted');
END;
"""


class Scene:
    """A database in a directory of its own."""

    def __init__(self, directory: Path, servers: ForkServers) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.database = directory / "faults.db"
        self.ledger_path = directory / "ledger"
        self.url = f"sqlite:///{self.database}"
        self._servers = servers
        self.processes: list[FaultProcess] = []

    # --- making

    def start(self, *workflows: BoundWorkflow[Any]) -> None:
        """Make the database, with the tests' own tables and triggers, and start these."""
        with Client(self.url) as client:
            is_new = not self.database.exists()
            client.counts()
            if is_new:
                with closing(self.connect()) as conn:
                    conn.executescript(AUDIT)
            client.start_many(workflows)

    def copy(self, name: str) -> Scene:
        """Another scene with a copy of this database, which nobody may have open."""
        other = Scene(self.directory.parent / name, self._servers)
        shutil.copyfile(self.database, other.database)
        return other

    def spawn(self, **options: Any) -> FaultProcess:
        """Start a worker (or what the job's options say)."""
        log = self.directory / f"process{len(self.processes) + 1}.log"
        job = Job(database=str(self.database), ledger=str(self.ledger_path), log=str(log), **options)
        process = self._servers.spawn(job)
        self.processes.append(process)
        return process

    def kill_all(self) -> None:
        """End every process that still lives."""
        for process in self.processes:
            process.kill()

    @contextmanager
    def worker(self, **options: Any) -> Iterator[FaultProcess]:
        """A worker that is stopped gracefully at the end of the block, and killed if the block fails."""
        process = self.spawn(**options)
        try:
            until(lambda: " works on " in process.log or process.ended is not None, "a worker that works")
            yield process
            process.stop()
        finally:
            process.kill()

    # --- looking

    def connect(self) -> sqlite3.Connection:
        """A connection of the test's own, in autocommit mode."""
        return sqlite3.connect(self.database, isolation_level=None, timeout=10)

    def rows(self, sql: str, *parameters: object) -> list[Any]:
        """Query the file: tuples, or bare values where there is one column."""
        with closing(self.connect()) as conn:
            cursor = conn.execute(sql, parameters)
            is_single = len(cursor.description) == 1
            return [row[0] if is_single else row for row in cursor.fetchall()]

    def statuses(self) -> Counter[str]:
        """How many workflows there are of each status."""
        return Counter(dict(self.rows("SELECT status, count(*) FROM onward_workflows GROUP BY status")))

    def status(self, workflow_id: str) -> str:
        """The status of one workflow."""
        [status] = self.rows("SELECT status FROM onward_workflows WHERE id = ?", workflow_id)
        return str(status)

    def bodies(self) -> list[Line]:
        """The ledger."""
        return read_ledger(self.ledger_path)

    def bodies_of(self, workflow_id: str) -> list[str]:
        """The keys of the bodies that ran for one workflow, in order."""
        return [line.key for line in self.bodies() if line.workflow == workflow_id]

    def until_final(self, timeout_s: float = 30.0) -> None:
        """Wait until every workflow has ended."""
        sql = "SELECT count(*) FROM onward_workflows WHERE status NOT IN ('completed', 'failed', 'cancelled')"
        try:
            until(lambda: self.rows(sql) == [0], "the end of every workflow", timeout_s=timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.describe()}") from None

    def describe(self) -> str:
        """What there is to know when something went wrong."""
        unfinished = self.rows(
            "SELECT id, type, status, worker, epoch, signals, next_run_at, waiting_for, attempts, crashes, error"
            " FROM onward_workflows WHERE status <> 'completed' LIMIT 20"
        )
        journal = self.rows("SELECT workflow_id, seq, key, kind, struck, result, error FROM onward_journal LIMIT 100")
        mail = self.rows("SELECT * FROM onward_mailbox")
        logs = "\n".join(f"--- {one.job.failpoint} {one.job.twists}\n{one.log[-3000:]}" for one in self.processes)
        lines = [str(row) for rows in (unfinished, journal, mail, self.bodies()[-40:]) for row in (*rows, "")]
        return "\n".join((str(self.directory), *lines, logs))

    # --- what must be true

    def outcome(self) -> dict[str, Any]:
        """What may not depend on crashes: results, errors, and every recorded entry with its value."""
        workflows = {
            row[0]: row[1:]
            for row in self.rows("SELECT id, type, status, result, progress, parent_id FROM onward_workflows")
        }
        entries = {
            (row[0], row[1]): (row[2], row[3], json.loads(row[4])["type"] if row[4] else None)
            for row in self.rows(
                "SELECT workflow_id, key, kind, result, error FROM onward_journal WHERE struck = 0 AND kind <> 'attempt'"
            )
        }
        bookings = self.rows("SELECT amount FROM bookings")
        return {"workflows": workflows, "entries": entries, "bookings": bookings}

    def check(self, *, may_stall: bool = False) -> None:
        """The invariants that hold at any time, running or not.

        `may_stall`: processes were stopped at random moments; one of these may be the moment between a body's last look at
        the lease and its first line, against which there is no help.
        """
        assert not self.rows("PRAGMA integrity_check") or self.rows("PRAGMA integrity_check") == ["ok"]
        self._check_outcomes()
        self._check_journals()
        if not may_stall:
            self._check_bodies()
        self._check_sources()

    def _check_outcomes(self) -> None:
        """A workflow ends once, and its outcome does not change."""
        changes = self.rows("SELECT workflow_id, old, new FROM audit")
        assert not [change for change in changes if change[1] in FINAL or change[2] == "journal entry deleted"]
        ends = Counter(workflow_id for workflow_id, _, new in changes if new in FINAL)
        finals = set(self.rows("SELECT id FROM onward_workflows WHERE status IN ('completed', 'failed', 'cancelled')"))
        assert ends == Counter(finals)
        assert not self.rows(
            "SELECT id FROM onward_workflows WHERE (status IN ('completed', 'failed', 'cancelled'))"
            " <> (finished_at IS NOT NULL)"
        )

    def _check_journals(self) -> None:
        """Journals have no gap, and one entry a key that is not struck out; times never fall."""
        journals: dict[str, list[Any]] = {}
        for row in self.rows(
            "SELECT workflow_id, seq, key, kind, struck, finished_at FROM onward_journal ORDER BY workflow_id, seq"
        ):
            journals.setdefault(row[0], []).append(row)
        for workflow_id, rows in journals.items():
            assert [row[1] for row in rows] == list(range(1, len(rows) + 1)), f"a gap in {workflow_id}: {rows}"
            keys = Counter((row[2], row[3]) for row in rows if not row[4] and row[3] not in ("attempt", "patch"))
            assert set(keys.values()) <= {1}, f"two records of one key in {workflow_id}: {keys}"
            times = [row[5] for row in rows]
            assert times == sorted(times), f"times fall in {workflow_id}: {times}"

    def _check_bodies(self) -> None:
        """No body began after its result had been recorded; every recorded result has a body."""
        recorded = {
            (workflow_id, key): finished_at
            for workflow_id, key, finished_at in self.rows(
                "SELECT workflow_id, key, finished_at FROM onward_journal WHERE kind = 'step' AND struck = 0"
            )
        }
        bodies = self.bodies()
        late = [line for line in bodies if line.at_us > recorded.get((line.workflow, line.key), line.at_us)]
        assert not late, f"bodies that ran although their result was recorded: {late}"
        assert set(recorded) <= {(line.workflow, line.key) for line in bodies}

    def _check_sources(self) -> None:
        """Each workflow that has not ended is claimable, held by a worker with a row, or waits for what can still come."""
        with closing(self.connect()) as conn:
            conn.execute("BEGIN")
            open_rows = conn.execute(
                "SELECT id, status, next_run_at, worker, waiting_for FROM onward_workflows"
                " WHERE status NOT IN ('completed', 'failed', 'cancelled')"
            ).fetchall()
            workers = {row[0] for row in conn.execute("SELECT id FROM onward_workers WHERE is_dead = 0")}
            children = {
                row[0]
                for row in conn.execute("SELECT DISTINCT parent_id FROM onward_workflows WHERE finished_at IS NULL")
            }
            unread = {
                (row[0], row[1], row[2])
                for row in conn.execute("SELECT workflow_id, kind, name FROM onward_mailbox WHERE is_read = 0")
            }
        for workflow_id, status, next_run_at, worker, waiting_for in open_rows:
            match status:
                case "pending":
                    assert next_run_at is not None, f"{workflow_id} is pending for ever"
                case "running":
                    assert worker in workers, f"{workflow_id} is held by nobody"
                case "waiting":
                    kinds = {item["kind"] for item in json.loads(waiting_for)}
                    names = {item.get("name") for item in json.loads(waiting_for) if item["kind"] == "signal"}
                    assert next_run_at is not None or "signal" in kinds or workflow_id in children, (
                        f"{workflow_id} waits for nothing"
                    )
                    mail = {(kind, name) for to, kind, name in unread if to == workflow_id}
                    lost = [(kind, name) for kind, name in mail if kind != "signal" or name in names]
                    assert next_run_at is not None or not lost, f"{workflow_id} sleeps though {lost} has come"

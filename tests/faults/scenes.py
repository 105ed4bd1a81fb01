"""One database with its ledger and its fault processes, and what must be true of them at any time.

Everything is read by plain SQL on a connection of the test's own (databases.py), and from the ledger: never through the library.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onward.client import Client
from onward.definitions import BoundWorkflow
from tests.faults.databases import Database, make_database
from tests.faults.faultworker import Job
from tests.faults.ledger import Line, read_ledger
from tests.faults.processes import FaultProcess, ForkServers, until

FINAL = ("completed", "failed", "cancelled")


class Scene:
    """A database, and a directory with everything else.

    Args:
        directory: made if it is missing.
        servers: where processes come from.
        database: its kind, or one that is there.
    """

    def __init__(self, directory: Path, servers: ForkServers, database: str | Database = "sqlite") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.database = make_database(database, directory) if isinstance(database, str) else database
        self.ledger_path = directory / "ledger"
        self.lease_s = 15.0
        """Of the workers, if they are not told otherwise."""
        self._servers = servers
        self.processes: list[FaultProcess] = []

    @property
    def url(self) -> str:
        """The database's URL."""
        return self.database.url

    # --- making

    def expect_takeovers(self) -> None:
        """Workers of this scene will be killed in front of nobody: see `Database.takeover_lease_s`."""
        self.lease_s = self.database.takeover_lease_s

    def start(self, *workflows: BoundWorkflow[Any]) -> None:
        """Make the tables, with the tests' own tables and triggers, and start these."""
        with Client(self.url) as client:
            is_new = not self.database.exists
            client.counts()
            if is_new:
                self.database.dress()
            client.start_many(workflows)

    def copy(self, name: str) -> Scene:
        """Another scene with a copy of this database, which nobody may have open."""
        directory = self.directory.parent / name
        directory.mkdir(parents=True, exist_ok=True)
        other = Scene(directory, self._servers, self.database.copy(name, directory))
        other.lease_s = self.lease_s
        return other

    def spawn(self, **options: Any) -> FaultProcess:
        """Start a worker (or what the job's options say)."""
        log = self.directory / f"process{len(self.processes) + 1}.log"
        options = {"url": self.url, "lease": self.lease_s, **options}
        process = self._servers.spawn(Job(ledger=str(self.ledger_path), log=str(log), **options))
        self.processes.append(process)
        return process

    def close(self) -> None:
        """End every process that still lives, and remove the database."""
        self.kill_all()
        self.database.remove()

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

    def rows(self, sql: str, *parameters: object) -> list[Any]:
        """Ask the database: tuples, or bare values where there is one column."""
        return self.database.rows(sql, *parameters)

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

    def until_final(self, timeout_s: float = 30.0, *, pause_s: float = 0.01) -> None:
        """Wait until every workflow has ended."""
        sql = "SELECT count(*) FROM onward_workflows WHERE status NOT IN ('completed', 'failed', 'cancelled')"
        try:
            until(lambda: self.rows(sql) == [0], "the end of every workflow", timeout_s=timeout_s, pause_s=pause_s)
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
        assert not self.database.complaints()
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
            (workflow_id, key): finished_at for workflow_id, key, finished_at in self.rows(self.database.recorded)
        }
        bodies = self.bodies()
        late = [line for line in bodies if line.at_us > recorded.get((line.workflow, line.key), line.at_us)]
        assert not late, f"bodies that ran although their result was recorded: {late[:9]}"
        assert set(recorded) <= {(line.workflow, line.key) for line in bodies}

    def _check_sources(self) -> None:
        """Each workflow that has not ended is claimable, held by a worker with a row, or waits for what can still come."""
        with self.database.snapshot() as ask:
            open_rows = ask(
                "SELECT id, status, next_run_at, worker, waiting_for FROM onward_workflows"
                " WHERE status NOT IN ('completed', 'failed', 'cancelled')"
            )
            workers = set(ask("SELECT id FROM onward_workers WHERE is_dead = 0"))
            children = set(ask("SELECT DISTINCT parent_id FROM onward_workflows WHERE finished_at IS NULL"))
            unread = set(ask("SELECT workflow_id, kind, name FROM onward_mailbox WHERE is_read = 0"))
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

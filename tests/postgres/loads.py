"""Many small workflows for workers on PostgreSQL to get through while something is done to the database, and what must have come
of them: each its one right outcome, no body run twice, and not more than a line in the log for each change of state.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from onward.client import Client
from tests.faults import flows
from tests.faults.databases import PostgresDatabase
from tests.faults.kills import ID
from tests.faults.processes import FaultProcess, ForkServers, until
from tests.faults.scenes import Scene

STEPS = 3


class PostgresScene(Scene):
    """A scene whose database is known to be PostgreSQL."""

    def __init__(self, directory: Path, servers: ForkServers, database: PostgresDatabase) -> None:
        super().__init__(directory, servers, database)
        self.postgres = database

    def backends(self, extra: str = "true") -> list[int]:
        """Process ids of the server's sessions of workers and clients in this database."""
        return self.rows(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'"
            f" AND application_name <> 'test' AND {extra}"
        )


def start_trial(scene: PostgresScene) -> None:
    """Start the workflow that has one of everything, with its signal sent."""
    scene.start(flows.trial.using(id=ID).bind(4))
    with Client(scene.url) as client:
        client.signal(ID, flows.go_on, "yes")


def bodies(scene: PostgresScene) -> Counter[tuple[str, str, int]]:
    """How often each try of each step began."""
    return Counter((line.workflow, line.key, line.tries) for line in scene.bodies())


class Load:
    """Three-step workflows, started with growing delays so that they keep workers busy for a while.

    Args:
        scene: where to start them.
        count: how many.
        spread_s: until the last one begins.
    """

    def __init__(self, scene: PostgresScene, count: int, spread_s: float = 0.0) -> None:
        self.scene = scene
        self.count = 0
        self.start_more(count, spread_s)

    def start_more(self, count: int, spread_s: float = 0.0) -> None:
        """So many more, the last one in so many seconds."""
        first, pause = self.count, spread_s / count
        self.count += count
        self.scene.start(
            *(flows.three.using(id=f"w-{n:05}", delay=(n - first) * pause).bind(n) for n in range(first, self.count))
        )

    def ended(self) -> int:
        """How many have ended."""
        statuses = self.scene.statuses()
        return statuses["completed"] + statuses["failed"]

    def torment(self, act: Callable[[], None], times: int, timeout_s: float = 60.0) -> int:
        """Act each time that some more have ended, `times` times as long as there are any; returns how often."""
        share = max(1, self.count // (times + 2))
        for done in range(times):
            wanted = self.ended() + share
            if wanted >= self.count:
                return done
            until(lambda: self.ended() >= wanted, f"{wanted} ended\n{self.scene.describe()}", timeout_s=timeout_s)  # noqa: B023
            act()
        return times

    def check(self, *, once: bool = True, timeout_s: float = 60.0) -> None:
        """All end rightly; with `once` no body ran a second time."""
        self.scene.until_final(timeout_s, pause_s=0.03)
        sql = "SELECT id, status, result, error FROM onward_workflows WHERE type = 'three' ORDER BY id"
        rows = set(self.scene.rows(sql))
        wrong = rows ^ {(f"w-{number:05}", "completed", str(number + 12), None) for number in range(self.count)}
        assert not wrong, f"{sorted(wrong)[:9]}\n{self.scene.describe()}"
        if once:
            bodies = Counter((line.workflow, line.key) for line in self.scene.bodies() if line.workflow[:2] == "w-")
            again = {key: count for key, count in bodies.items() if count > 1}
            assert not again, f"{again}\n{self.scene.describe()}"
            assert len(bodies) == STEPS * self.count
        self.scene.check()


def changes_of_state(worker: FaultProcess) -> list[str]:
    """Each part's warnings and words of recovery in their order: `committer WARNING`, `committer INFO` …"""
    words = re.findall(
        r"(WARNING|INFO) onward\.(committer|dispatcher|lease|store): "
        r"(?=the database|the lease (?:cannot|is renewed)|notifications)", worker.log,
    )  # fmt: skip
    return [f"{part} {level}" for level, part in words]


def check_log(worker: FaultProcess) -> None:
    """A worker that had trouble with its database says so once, and once that it is over, each time."""
    for part in ("committer", "dispatcher", "lease", "store"):
        levels = [one.split()[1] for one in changes_of_state(worker) if one.startswith(part)]
        assert levels == ["WARNING", "INFO"] * (len(levels) // 2) + ["WARNING"] * (len(levels) % 2), worker.log
    assert "Traceback" not in worker.log, worker.log

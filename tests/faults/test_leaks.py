"""What remains in a worker when its workflows have ended, or sleep: nothing of them."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

from onward.client import Client
from tests.faults import flows
from tests.faults.processes import FaultProcess, until
from tests.faults.scenes import Scene

SLEEPER_COUNT = 2_000


def census(worker: FaultProcess) -> dict[str, Any]:
    """Ask a worker with the twist `census` what it has in memory."""
    path = Path(worker.job.twists["census"])
    path.unlink(missing_ok=True)
    worker.send(signal.SIGUSR1)
    until(path.exists, "the census")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_nothing_of_ended_workflows_remains_in_the_worker(scene: Scene) -> None:
    """After two hundred workflows, failed, cancelled and killed-off ones among them, there is no execution and no runner left
    in memory, and as many tasks and threads as before."""
    scene.start(flows.trial.using(id="warm-up").bind(1))
    with scene.worker(twists={"census": str(scene.directory / "census")}) as worker, Client(scene.url) as client:
        client.signal("warm-up", flows.go_on, "yes")
        scene.until_final()
        before = census(worker)
        for number in range(50):
            client.start(flows.three.using(id=f"three-{number}"), number)
            client.start(flows.failing.using(id=f"failing-{number}"), number)
            client.start(flows.listening.using(id=f"listening-{number}"), number)
            client.start(flows.trial.using(id=f"trial-{number}"), number)
            client.signal(f"trial-{number}", flows.go_on, "yes")
        until(lambda: scene.statuses()["waiting"] == 50, "fifty that wait for ever")
        for number in range(50):
            client.handle(f"listening-{number}").cancel()
        scene.until_final(60)
        assert scene.statuses() == {"completed": 50 + 2 * 51, "failed": 50, "cancelled": 50}
        until(lambda: census(worker)["runners"] == 0, "that the last runner is gone", timeout_s=5, pause_s=0.05)
        after = census(worker)
        assert (after["executions"], after["runners"]) == (0, 0)
        assert after["tasks"] == before["tasks"]
        # the pools of step threads grow to their bounds and stay
        pools = ("onward-step", "onward-transaction")
        threads = [[name for name in found["threads"] if not name.startswith(pools)] for found in (before, after)]
        assert threads[0] == threads[1]
    scene.check()


def test_sleeping_workflows_hold_no_execution_in_memory(scene: Scene) -> None:
    """Thousands of sleepers are rows in the database and nothing else."""
    scene.start(*(flows.sleeper.bind(3600.0) for _ in range(SLEEPER_COUNT)))
    with scene.worker(twists={"census": str(scene.directory / "census")}) as worker:
        asleep = "SELECT count(*) FROM onward_workflows WHERE status = 'pending' AND waiting_for IS NOT NULL"
        until(lambda: scene.rows(asleep) == [SLEEPER_COUNT], "that all sleep", timeout_s=60)
        until(lambda: census(worker)["runners"] == 0, "that the last runner is gone", timeout_s=5, pause_s=0.05)
        assert census(worker)["executions"] == 0
    scene.check()

"""Several worker processes on one database: each body once while nothing fails, every outcome right when workers are killed."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.faults import flows
from tests.faults.kills import IS_LONG, Matrix
from tests.faults.processes import ForkServers, until
from tests.faults.scenes import Scene

pytestmark = pytest.mark.slow

WORKER_COUNT = 4
COUNT = 300


def start_many(scene: Scene, count: int) -> None:
    scene.start(*(flows.three.using(id=f"w-{number:05}").bind(number) for number in range(count)))


def check_results(scene: Scene, count: int) -> None:
    rows = scene.rows("SELECT id, status, result FROM onward_workflows ORDER BY id")
    assert rows == [(f"w-{number:05}", "completed", str(number + 12)) for number in range(count)]
    scene.check()


def test_four_workers_drain_one_database_and_run_each_body_once(scene: Scene, kind: str) -> None:
    """With a small share for each claim all of them get work; no body runs twice and none is left out."""
    count, slots = (20_000, 100) if IS_LONG and kind == "postgres" else (COUNT, 10)
    start_many(scene, count)
    begun_at = time.monotonic()
    workers = [scene.spawn(slots=slots) for _ in range(WORKER_COUNT)]
    scene.until_final(300, pause_s=0.05)
    print(f"{count} three-step workflows by {WORKER_COUNT} workers in {time.monotonic() - begun_at:.1f} s")
    for worker in workers:
        worker.stop()
    check_results(scene, count)
    bodies = scene.bodies()
    assert Counter(Counter((line.workflow, line.key) for line in bodies).values()) == {1: 3 * count}
    assert len({line.pid for line in bodies}) == WORKER_COUNT
    assert {line.pid for line in bodies} == {worker.pid for worker in workers}


def test_workers_killed_at_random_change_no_outcome(scene: Scene) -> None:
    """Every worker is killed again and again while the file is drained; a new one comes for each."""
    count = 5 * COUNT if IS_LONG else COUNT
    seed = time.time_ns()
    print(f"random seed {seed}")
    rng = random.Random(seed)
    scene.expect_takeovers()
    start_many(scene, count)
    workers = [scene.spawn(slots=10) for _ in range(WORKER_COUNT)]
    kill_count = 0
    final_count = 0
    while final_count < count:
        # the next kill comes when some more workflows are through
        wanted = min(count, final_count + rng.randint(1, count // 20))

        def final() -> int:
            return sum(scene.statuses()[status] for status in ("completed", "failed"))

        until(lambda: final() >= wanted, f"{wanted} ended workflows", timeout_s=60)  # noqa: B023
        final_count = final()
        if final_count < count:
            victim = rng.randrange(WORKER_COUNT)
            workers[victim].kill()
            kill_count += 1
            workers[victim] = scene.spawn(slots=10)
    for worker in workers:
        worker.kill()
    print(f"{kill_count} kills, {len(scene.bodies())} bodies for {3 * count} steps")
    assert kill_count >= 5
    check_results(scene, count)


def test_a_workflow_gets_to_its_end_however_often_its_workers_die(
    tmp_path: Path, servers: ForkServers, kind: str
) -> None:
    """Each worker dies some dozens of failpoints after its start, life after life: recorded steps make the progress."""
    matrix = Matrix(tmp_path, servers, kind)
    scene = matrix.signalled.copy("deaths")
    seed = time.time_ns()
    print(f"random seed {seed}")
    rng = random.Random(seed)
    deaths = 0
    while not matrix.is_over(scene):
        worker = scene.spawn(failpoint=f"*@{rng.randint(30, 45)}")
        until(lambda: worker.ended is not None or matrix.is_over(scene), "an end")  # noqa: B023
        worker.kill()
        deaths += 1
        scene.check()
    print(f"{deaths} deaths")
    assert deaths >= 3
    assert scene.outcome() == matrix.undisturbed
    scene.close()
    matrix.close()

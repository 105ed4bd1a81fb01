"""SIGKILL in the middle of a worker's duties beside the workflows: burying another, renewing, reconciling, adopting, retiring."""

from __future__ import annotations

import signal
from collections import Counter

import pytest

from tests.faults import flows
from tests.faults.processes import FaultProcess, until
from tests.faults.scenes import Scene

pytestmark = pytest.mark.slow

COUNT = 20
WHEN = pytest.mark.parametrize("when", ["before", "after"])


def start_some(scene: Scene) -> None:
    scene.expect_takeovers()
    scene.start(*(flows.three.using(id=f"w-{number:02}").bind(number) for number in range(COUNT)))


def check_end(scene: Scene) -> None:
    """A last worker brings everything to its right end, and no dead worker is left without having been marked so."""
    with scene.worker() as last:
        scene.until_final()
        sql = "SELECT count(*) FROM onward_workers WHERE is_dead = 0 AND pid <> ?"
        until(lambda: scene.rows(sql, last.pid) == [0], "that every dead worker is marked dead")
    rows = scene.rows("SELECT id, status, result FROM onward_workflows WHERE type = 'three' ORDER BY id")
    assert rows == [(f"w-{number:02}", "completed", str(number + 12)) for number in range(len(rows))]
    scene.check()


def die(process: FaultProcess) -> None:
    assert process.wait() == -signal.SIGKILL, process.log


@WHEN
def test_an_undertaker_that_dies_leaves_the_dead_to_the_next(scene: Scene, when: str) -> None:
    """Rows of a dead worker are released once, by whoever's burial commits; each death counts one crash."""
    start_some(scene)
    die(scene.spawn(failpoint="body:before@5"))
    die(scene.spawn(failpoint=f"bury:{when}-commit"))
    scene.check()
    crashes = Counter(scene.rows("SELECT crashes FROM onward_workflows"))
    assert crashes == ({0: COUNT} if when == "before" else {1: COUNT})
    check_end(scene)


def test_children_that_outlive_a_killed_worker_do_not_prove_it_alive(scene: Scene) -> None:
    """A forked or started child of a step does not keep the lock that says its parent lives; the takeover waits for no lease."""
    gate = scene.directory / "gate"
    scene.start(flows.survived_by_children.using(id="w").bind(str(gate)))
    try:
        die(scene.spawn(lease=60.0))
        with scene.worker(lease=60.0):
            until(lambda: scene.status("w") == "completed", "the takeover", timeout_s=20)
    finally:
        gate.touch()
    assert len(scene.bodies_of("w")) == 2


@WHEN
def test_a_worker_that_dies_while_it_renews_is_taken_over_from_like_any_other(scene: Scene, when: str) -> None:
    """The renewal of a dead worker does not keep its rows."""
    gate = scene.directory / "gate"
    scene.expect_takeovers()
    scene.start(flows.gated.using(id="held").bind(str(gate)))
    die(scene.spawn(failpoint=f"renew:{when}-commit"))
    gate.touch()
    check_end(scene)
    assert scene.bodies_of("held") == ["at_gate", "at_gate", "add_one"]


@WHEN
def test_a_worker_that_dies_while_it_releases_what_it_does_not_hold_loses_nothing(scene: Scene, when: str) -> None:
    """A claim without a reply, then death: the rows come back either way."""
    start_some(scene)
    die(scene.spawn(failpoint=f"reconcile:{when}-commit", twists={"lose-claim-reply": ""}))
    assert scene.bodies() == []
    scene.check()
    check_end(scene)


@WHEN
def test_a_worker_that_dies_while_it_adopts_leaves_the_rows_due_or_waiting(scene: Scene, when: str) -> None:
    """What other code could not replay is tried by this code, at the latest by the next worker that has it."""
    start_some(scene)
    far = scene.database.instant(4_102_444_800_000_000)
    scene.database.update("workflows", f"""diverged_by = '{{"other code": 0}}', next_run_at = {far}""", "id > 'w-05'")
    die(scene.spawn(failpoint=f"adopt:{when}-commit"))
    scene.check()
    check_end(scene)


@WHEN
def test_a_worker_that_dies_at_the_end_of_a_graceful_stop_is_only_a_row_to_tidy_up(scene: Scene, when: str) -> None:
    """Its work was given back before; nothing counts as a crash."""
    gate = scene.directory / "gate"
    start_some(scene)
    scene.start(flows.listening.using(id="listening").bind(1), flows.gated.using(id="held").bind(str(gate)))
    stopping = scene.spawn(failpoint=f"retire:{when}-commit", grace=0.1)
    until(lambda: scene.statuses()["completed"] == COUNT and "at_gate" in scene.bodies_of("held"), "the worker's work")
    until(lambda: scene.status("listening") == "waiting", "that it waits")
    stopping.send(signal.SIGTERM)
    die(stopping)
    assert scene.status("held") == "pending"
    assert scene.rows("SELECT sum(crashes), sum(attempts) FROM onward_workflows") == [(0, 0)]
    scene.check()
    assert len(scene.rows("SELECT id FROM onward_workers")) == (1 if when == "before" else 0)
    gate.touch()
    with scene.worker():
        until(lambda: scene.status("held") == "completed", "the rest")
    scene.check()

"""Code that blocks: on the event loop it is named, and after the lease its worker is not covered up; in a thread it hurts nobody."""

from __future__ import annotations

import inspect
import re

import pytest

from tests.faults import flows
from tests.faults.processes import until
from tests.faults.scenes import Scene

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["at_gate_blocking", "blocking_itself"])
def test_code_that_blocks_the_loop_is_named_in_the_log(scene: Scene, name: str) -> None:
    """After a second the watchdog names the workflow, the file and the line, for a step's body as for a workflow function; and
    the workflow goes on where it was when the block is over."""
    gate = scene.directory / "gate"
    workflow, function = {
        "at_gate_blocking": (flows.gated_blocking, flows.at_gate_blocking.fn),
        "blocking_itself": (flows.blocking_itself, flows.blocking_itself.fn),
    }[name]
    scene.start(workflow.using(id="culprit").bind(str(gate)))
    lines, first = inspect.getsourcelines(function)
    with scene.worker() as worker:
        until(lambda: "has not turned" in worker.log, "a word of the watchdog")
        [warning] = [line for line in worker.log.splitlines() if "has not turned" in line]
        gate.touch()
        scene.until_final()
        subject = {
            "at_gate_blocking": "step at_gate_blocking of workflow culprit",
            "blocking_itself": "workflow culprit",
        }[name]
        found = re.search(r"in (.+): \S+flows\.py:(\d+) in (\w+); blocking work belongs into a `def` step$", warning)
        assert found is not None and (found[1], found[3]) == (subject, name)
        assert first <= int(found[2]) < first + len(lines)
    assert len(scene.bodies()) == 2
    scene.check()


def test_a_loop_blocked_longer_than_the_lease_is_taken_over_from(scene: Scene) -> None:
    """Renewal stops though its thread could go on; another worker finishes, and the blocked one's late result is refused."""
    gate = scene.directory / "gate"
    scene.start(flows.gated_blocking.using(id="culprit").bind(str(gate)), flows.three.using(id="innocent").bind(1))
    blocked = scene.spawn(lease=2.0)
    until(lambda: "at_gate_blocking" in scene.bodies_of("culprit"), "the blocking body")
    other = scene.spawn(lease=2.0)
    until(lambda: scene.status("innocent") == "completed", "that the neighbour goes on elsewhere")
    until(lambda: scene.bodies_of("culprit").count("at_gate_blocking") == 2, "the takeover")
    gate.touch()
    scene.until_final()
    until(lambda: "it goes on under a new id" in blocked.log, "that the blocked worker finds itself dead")
    blocked.stop()
    other.stop()
    scene.check()


def test_a_step_that_blocks_its_thread_leaves_the_rest_alone(scene: Scene) -> None:
    """Everything else goes on while a thread step blocks, nobody is warned, and the lease holds past its length."""
    gate = scene.directory / "gate"
    scene.start(
        flows.gated_in_thread.using(id="blocked").bind(str(gate)),
        *(flows.three.using(id=f"other-{number}").bind(number) for number in range(20)),
    )
    with scene.worker(lease=2.0) as worker:
        until(lambda: scene.statuses()["completed"] == 20, "all others")
        sql = "SELECT expires_at FROM onward_workers"
        [expires_at] = scene.rows(sql)
        until(lambda: scene.rows(sql)[0] > expires_at + 2_500_000, "renewals for longer than the lease")
        assert scene.status("blocked") == "running"
        gate.touch()
        scene.until_final()
        assert "has not turned" not in worker.log
    assert scene.bodies_of("blocked") == ["at_gate_in_thread", "add_one"]
    scene.check()

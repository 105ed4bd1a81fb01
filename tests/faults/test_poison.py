"""One workflow that kills its worker, beside fifty that do nothing wrong."""

from __future__ import annotations

import json
import signal

from tests.faults import flows
from tests.faults.processes import until
from tests.faults.scenes import Scene

INNOCENT_COUNT = 50


def test_a_poison_workflow_fails_alone_and_takes_no_neighbour_along(scene: Scene) -> None:
    """Fifty long workflows are in the middle of a step each time the worker dies; none of them fails. The poison runs alone
    from its second crash on, and ends `failed` with WorkflowCrashed after two crashes alone."""
    gate = scene.directory / "gate"
    scene.expect_takeovers()
    innocents = [flows.gated.using(id=f"innocent-{number:02}").bind(str(gate)) for number in range(INNOCENT_COUNT)]
    poison = flows.poison.using(id="poison").bind()
    scene.start(*innocents[:25], poison, *innocents[25:])
    held_at_deaths: list[set[str]] = []
    while scene.status("poison") != "failed":
        worker = scene.spawn()
        until(
            lambda: worker.ended is not None or scene.status("poison") == "failed",  # noqa: B023
            "the worker's death by the poison, or the poison's end",
        )
        if worker.ended is None:
            break
        assert worker.ended == -signal.SIGKILL
        held_at_deaths.append(set(scene.rows("SELECT id FROM onward_workflows WHERE status = 'running'")))
        scene.check()
        if len(held_at_deaths) == 2:
            gate.touch()
    scene.until_final()
    for process in scene.processes:
        if process.ended is None:
            process.stop()
    assert [len(held) for held in held_at_deaths[:2]] == [INNOCENT_COUNT + 1] * 2
    assert held_at_deaths[2:] == [{"poison"}] * 2
    assert scene.statuses() == {"completed": INNOCENT_COUNT, "failed": 1}
    [error] = scene.rows("SELECT error FROM onward_workflows WHERE id = 'poison'")
    assert json.loads(error)["type"] == "WorkflowCrashed"
    assert scene.bodies_of("poison") == ["kill_worker"] * 4
    assert scene.rows("SELECT sum(attempts) FROM onward_workflows") == [0]
    scene.check()

"""`onward copy` under a running worker, killed at every stage: all workflows end in the other database with their right outcomes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from onward import Client, StoreImporting, StoreMoved
from tests.faults import moving_flows
from tests.faults.processes import until
from tests.postgres.server import drop_schema, new_schema, url_with

HERE = Path(__file__).parent
KILLED = -9
MOVED = 6
STAGES = [
    "copy:mark", "copy:fence", "copy:fenced", "copy:batch", "copy:batched", "copy:batched@2", "copy:verify@3", "copy:open",
    "copy:opened",
]  # fmt: skip
OUTCOMES = {
    "finished": 2,
    "sleeping": 3,
    "waiting": "well 7",
    "running": 20,
    "backing_off": 3,
    "retrying": 200,
    "parent": "done 2",
    "parent/child": "done",
    "parent/start:finished": 2,
    "fresh": 2,
}
TWICE = {"running gated", "retrying shaky"}
"""Bodies that begin twice: one was cut off by the move, one fails its first try."""


class Scene:
    """A directory with the flows, and processes of the command line in it."""

    def __init__(self, place: Path, stack: ExitStack) -> None:
        self.place = place
        self._stack = stack
        shutil.copy(HERE / "moving_flows.py", place / "moving_flows.py")
        self.source = f"sqlite:///{place / 'source.db'}"
        schema = new_schema()
        stack.callback(drop_schema, schema)
        self.target = url_with(schema=schema)

    def onward(self, *arguments: str, failpoint: str = "") -> subprocess.Popen[str]:
        """Start a command."""
        process = subprocess.Popen(
            [sys.executable, "-m", "onward", *arguments],
            cwd=self.place,
            env={**os.environ, "MOVING_PLACE": str(self.place), "ONWARD_FAILPOINT": failpoint},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._stack.callback(_end, process)
        return process

    def copy(self, *options: str, failpoint: str = "") -> tuple[int, str]:
        """Run `onward copy` to its end."""
        process = self.onward("copy", self.source, self.target, *options, failpoint=failpoint)
        text, _ = process.communicate(timeout=120)
        return process.returncode, text

    def worker(self, url: str) -> subprocess.Popen[str]:
        """Start a worker."""
        return self.onward("worker", "moving_flows.py", "--url", url, "--lease", "5s")

    def bodies(self) -> Counter[str]:
        """How often each body has begun."""
        try:
            return Counter((self.place / "bodies").read_text().splitlines())
        except FileNotFoundError:
            return Counter()


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait(60)
    if process.stdout is not None:
        process.stdout.close()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """A new source file, and a name for the target schema."""
    with ExitStack() as stack:
        yield Scene(tmp_path, stack)


def start_all(url: str) -> None:
    """One workflow for each state."""
    flows = (
        moving_flows.finished, moving_flows.sleeping, moving_flows.running, moving_flows.backing_off, moving_flows.retrying,
    )  # fmt: skip
    with Client(url) as client:
        for flow in flows:
            client.start(flow.using(id=flow.name), 1)
        client.start(moving_flows.parent.using(id="parent"), 1)
        client.start(moving_flows.waiting.using(id="waiting"))
        client.signal("waiting", moving_flows.second, 7)  # kept until it is waited for


def wait_until_under_way(scene: Scene, url: str, worker: subprocess.Popen[str]) -> None:
    """Until each of them is in the state that it is named after, and the body of the running one has begun."""
    wanted = {
        "finished": "completed",
        "waiting": "waiting for signal",
        "running": "running",
        "backing_off": "backing off",
        "retrying": "backing off",
        "parent/child": "waiting for signal",
        "parent/start:finished": "completed",
    }
    found: dict[str, str] = {}

    def look() -> bool:
        if worker.poll() is not None:
            raise AssertionError(worker.communicate()[0])
        found.update({info.id: info.state for info in client.list()})
        is_asleep = "sleeping" in found.get("sleeping", "") or found.get("sleeping") == "completed"  # on a slow machine
        are_there = all(words in found.get(workflow_id, "") for workflow_id, words in wanted.items())
        return is_asleep and are_there and scene.bodies()["running gated"] > 0

    with Client(url) as client:
        try:
            until(look, "every state", timeout_s=60)
        except AssertionError as error:
            raise AssertionError(f"{error}: {found}, {scene.bodies()}") from error


def finish_all(scene: Scene, url: str) -> None:
    """A worker in the database brings them all to their ends."""
    (scene.place / "gate").touch()
    worker = scene.worker(url)
    with Client(url) as client:
        client.start(moving_flows.finished.using(id="fresh"), 1)
        client.signal("waiting", moving_flows.go_on, "well")
        client.signal("parent/child", moving_flows.go_on, "done")
        for workflow_id in ("backing_off", "retrying"):
            client.handle(workflow_id).retry()
        for workflow_id, outcome in OUTCOMES.items():
            assert client.handle(workflow_id).result(timeout=60) == outcome
        assert {info.id for info in client.list()} == set(OUTCOMES)
    worker.terminate()
    assert worker.wait(60) == 0


def check_bodies(scene: Scene) -> None:
    """No recorded step has run again."""
    for body, count in scene.bodies().items():
        assert count == (2 if body in TWICE else 1), body


def test_a_database_in_full_work_moves_to_postgresql_and_all_ends_well(scene: Scene) -> None:
    """Its worker is told, and says where the workflows went; nothing is lost and no recorded step runs again."""
    start_all(scene.source)
    worker = scene.worker(scene.source)
    wait_until_under_way(scene, scene.source, worker)
    code, text = scene.copy()
    assert code == 0, text
    said, _ = worker.communicate(timeout=60)
    assert worker.returncode == MOVED
    told = [line for line in said.splitlines() if "WARNING" in line and "were moved to postgresql://" in line]
    assert len(told) == 1, said
    assert "Traceback" not in said
    with Client(scene.source) as client, pytest.raises(StoreMoved):
        client.start(moving_flows.finished.using(id="late"), 1)
    with Client(scene.source) as client, pytest.raises(StoreMoved):
        client.handle("running").result(timeout=60)
    finish_all(scene, scene.target)
    check_bodies(scene)


@pytest.mark.slow
def test_a_copy_that_is_killed_at_every_stage_goes_on_and_all_ends_well(scene: Scene) -> None:
    """Between the kills nobody can work in the target, and from the fence on nobody in the source."""
    start_all(scene.source)
    worker = scene.worker(scene.source)
    wait_until_under_way(scene, scene.source, worker)
    for stage in STAGES:
        code, text = scene.copy(failpoint=stage)
        assert code == KILLED, (stage, text)
        is_fenced = STAGES.index(stage) > STAGES.index("copy:fence")
        if is_fenced:
            with Client(scene.source) as client, pytest.raises(StoreMoved):
                client.signal("waiting", moving_flows.second, 8)
        if is_fenced and stage != "copy:opened":
            with Client(scene.target) as client, pytest.raises(StoreImporting):
                client.start(moving_flows.finished.using(id="fresh"), 1)
        if stage in ("copy:fenced", "copy:open"):  # the first and the last of these: a worker, too
            early = scene.worker(scene.target)
            assert early.wait(60) == MOVED
    assert worker.wait(60) == MOVED
    code, text = scene.copy()
    assert code == 0, text
    assert "complete already" in text
    finish_all(scene, scene.target)
    check_bodies(scene)


def test_a_copy_that_is_given_up_leaves_the_source_as_it_was(scene: Scene) -> None:
    """Killed half-way and aborted: the target is empty, and the workflows end in the source."""
    start_all(scene.source)
    worker = scene.worker(scene.source)
    wait_until_under_way(scene, scene.source, worker)
    code, text = scene.copy(failpoint="copy:batched@2")
    assert code == KILLED, text
    assert worker.wait(60) == MOVED
    code, text = scene.copy("--abort")
    assert code == 0, text
    with Client(scene.target) as client:
        assert client.list() == []
    finish_all(scene, scene.source)
    check_bodies(scene)


def test_workflows_move_back_from_postgresql_to_a_file(scene: Scene) -> None:
    """The other way round, with a worker on the server."""
    back = Scene.__new__(Scene)
    back.__dict__.update(scene.__dict__, source=scene.target, target=f"sqlite:///{scene.place / 'back.db'}")
    start_all(back.source)
    worker = back.worker(back.source)
    wait_until_under_way(back, back.source, worker)
    code, text = back.copy()
    assert code == 0, text
    assert worker.wait(60) == MOVED
    finish_all(back, back.target)
    check_bodies(back)


def test_several_processes_of_one_worker_all_end(scene: Scene) -> None:
    """The parent starts none of them again, and ends with the code that says why."""
    start_all(scene.source)
    worker = scene.onward("worker", "moving_flows.py", "--url", scene.source, "-p", "2")
    wait_until_under_way(scene, scene.source, worker)
    code, text = scene.copy()
    assert code == 0, text
    assert worker.wait(60) == MOVED

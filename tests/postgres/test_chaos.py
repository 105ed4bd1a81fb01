"""Thousands of workflows of every kind, several worker processes and clients, on a server that crashes and restarts while workers are
killed by SIGKILL, all at random: each workflow ends once, as if nothing had been. `make chaos` runs it at full length.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onward.client import Client
from onward.definitions import BoundWorkflow
from onward.errors import StoreError, WorkflowAlreadyEnded
from tests.faults import flows
from tests.faults.databases import IS_LONG, PostgresDatabase
from tests.faults.kills import ID, part_of
from tests.faults.processes import FaultProcess, ForkServers
from tests.postgres.instances import Instance, own_server
from tests.postgres.loads import PostgresScene

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900 if IS_LONG else 240)]

COUNT = 10_000 if IS_LONG else 800
CHAOS_S = 120.0 if IS_LONG else 20.0
WORKER_COUNT = 4 if IS_LONG else 3
LEASE_S = 3.0
SLOTS = 25
RESTART_SHARE = 0.35
"""Of the blows: they hit the server, the others a worker."""


@pytest.fixture
def instance() -> Iterator[Instance]:
    """The server that is hit."""
    with own_server() as made:
        yield made


def kind_of(number: int) -> str:
    """One in a hundred has one of everything, some fail, some wait for a signal or sleep, most have three steps."""
    if number % 100 == 7:
        return "trial"
    return {3: "failing", 5: "listening", 8: "sleeper"}.get(number % 20, "three")


def due_s(number: int) -> float:
    """When this workflow's time comes, after the beginning."""
    return 0.8 * CHAOS_S * number / COUNT


def bound(number: int, delay: float) -> BoundWorkflow[Any]:
    """The workflow of this number."""
    options: dict[str, Any] = {"id": f"c-{number:05}", "delay": delay}
    match kind_of(number):
        case "trial":
            return flows.trial.using(**options).bind(4)
        case "failing":
            return flows.failing.using(**options).bind(number)
        case "listening":
            return flows.listening.using(**options).bind(number)
        case "sleeper":
            return flows.sleeper.using(**options).bind(random.uniform(0.1, 3.0))
        case _:
            return flows.three.using(**options).bind(number)


class Chaos:
    """What is done to the system, and by whom, until `end`."""

    def __init__(self, scene: PostgresScene, instance: Instance, seed: int) -> None:
        self._scene = scene
        self._instance = instance
        self._rng = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.workers: list[FaultProcess] = [self._spawn() for _ in range(WORKER_COUNT)]
        self._is_over = threading.Event()
        self._errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._guarded, args=(run,)) for run in (self._torment, self._call)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """No blow falls any more."""
        self._is_over.set()
        for thread in self._threads:
            thread.join()
        if self._errors:
            raise self._errors[0]

    def _guarded(self, run: Any) -> None:
        try:
            run()
        except BaseException as error:
            self._errors.append(error)

    def _spawn(self) -> FaultProcess:
        return self._scene.spawn(lease=LEASE_S, slots=SLOTS)

    def _torment(self) -> None:
        while not self._is_over.wait(self._rng.uniform(0.1, 2.0)):
            if self._rng.random() < RESTART_SHARE:
                self._instance.restart_immediately()
                self.counts["restarts"] += 1
            else:
                victim = self._rng.randrange(WORKER_COUNT)
                self.workers[victim].kill()
                self.workers[victim] = self._spawn()
                self.counts["kills"] += 1

    def _call(self) -> None:
        """A client that starts the second half, and signals all that listen, each until it is told that it is done."""
        begun_at = time.monotonic()
        with Client(self._scene.url) as client:
            for number in range(COUNT):
                if number >= COUNT // 2:
                    self._insist(lambda: client.start(bound(number, 0)))  # noqa: B023
                if kind_of(number) == "listening" or (kind_of(number) == "trial" and number >= COUNT // 2):
                    self._insist(lambda: client.signal(f"c-{number:05}", flows.go_on, "yes"))  # noqa: B023
                self._is_over.wait(max(0.0, begun_at + due_s(number) - time.monotonic()))

    def _insist(self, call: Any) -> None:
        for pause_s in (0.1, 0.5, 2.0, None):
            try:
                call()
                return
            except WorkflowAlreadyEnded:  # the reply to its signal was lost; with it, the workflow went on to its end
                self.counts["signals that had arrived"] += 1
                return
            except StoreError:
                if pause_s is None:
                    raise
                self.counts["client calls made again"] += 1
                time.sleep(pause_s)


def test_chaos_changes_no_outcome(
    tmp_path: Path, servers: ForkServers, instance: Instance, undisturbed: PostgresScene
) -> None:
    """Random kills of workers and immediate restarts of the server, under load: every outcome is right, and there is only one."""
    seed = time.time_ns()
    print(f"random seed {seed}")
    scene = PostgresScene(tmp_path / "scene", servers, PostgresDatabase(instance.url()))
    try:
        scene.start(*(bound(number, due_s(number)) for number in range(COUNT // 2)))
        with Client(scene.url) as client:
            for number in range(COUNT // 2):
                if kind_of(number) == "trial":  # which would time out without its signal
                    client.signal(f"c-{number:05}", flows.go_on, "yes")
        begun_at = time.monotonic()
        chaos = Chaos(scene, instance, seed)
        try:
            threading.Event().wait(CHAOS_S)
        finally:
            chaos.end()
        statuses = scene.statuses()
        chaos_s = time.monotonic() - begun_at
        scene.until_final(300 if IS_LONG else 60, pause_s=0.2)
        drained_s = time.monotonic() - begun_at - chaos_s
        for worker in chaos.workers:
            worker.stop()
        report(scene, chaos, statuses, chaos_s, drained_s)
        check(scene, undisturbed)
    finally:
        scene.kill_all()
        scene.postgres.disconnect()


def report(scene: PostgresScene, chaos: Chaos, then: Counter[str], chaos_s: float, drained_s: float) -> None:
    """Print what a person wants to know."""
    bodies = Counter((line.workflow, line.key, line.tries) for line in scene.bodies())
    [entries] = scene.rows("SELECT count(*) FROM onward_journal WHERE kind = 'step'")
    [mail] = scene.rows("SELECT count(*) FROM onward_journal WHERE kind = 'signal'")
    back = "SELECT count(*) FROM audit WHERE old = 'running' AND new = 'pending'"
    print(
        f"{chaos_s:.0f} s of chaos with {WORKER_COUNT} workers: {dict(chaos.counts)}\n"
        f"ended within it: {sum(then[status] for status in ('completed', 'failed'))}, the rest {drained_s:.1f} s later\n"
        f"outcomes: {dict(scene.statuses())}; {entries} recorded steps, {mail} signals\n"
        f"bodies that ran: {bodies.total()}, of which {sum(count - 1 for count in bodies.values())} again after a crash; "
        f"given back or taken over: {scene.rows(back)[0]} times"
    )


def check(scene: PostgresScene, undisturbed: PostgresScene) -> None:
    """Every workflow in its one right outcome, every recorded step once, every booking once."""
    scene.check()
    found = {
        row[0]: row[1:]
        for row in scene.rows("SELECT id, status, result, error FROM onward_workflows WHERE parent_id IS NULL")
    }
    wrong = {}
    for number in range(COUNT):
        status, result, error = found.pop(f"c-{number:05}")
        match kind_of(number):
            case "three":
                is_right = (status, result) == ("completed", str(number + 12))
            case "failing":
                is_right = status == "failed" and f"no {number}" in error
            case "listening":
                is_right = (status, result) == ("completed", '"yes"')
            case _:
                is_right = status == "completed"
        if not is_right:
            wrong[number] = (kind_of(number), status, result, error)
    assert not wrong, f"{len(wrong)} wrong outcomes: {dict(list(wrong.items())[:5])}"
    assert not found, f"nobody started {list(found)[:5]}"
    outcome, wanted = scene.outcome(), part_of(undisturbed.outcome(), ID)
    trials = [number for number in range(COUNT) if kind_of(number) == "trial"]
    for number in trials:
        assert part_of(outcome, f"c-{number:05}") == wanted
    assert outcome["bookings"] == [4] * len(trials)

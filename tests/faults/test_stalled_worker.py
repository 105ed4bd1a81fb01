"""A worker that is stopped (SIGSTOP) past its lease: another finishes its work, and what it does when it wakes is refused.

On SQLite a worker is dead when the kernel has freed its lock file. One that still holds it has only stalled: it is taken over
from when its lease has run out and the same run-out lease is seen again a second later.
"""

from __future__ import annotations

import signal
import time

import pytest

from onward.client import Client
from tests.faults import flows
from tests.faults.processes import FaultProcess, until
from tests.faults.scenes import Scene

pytestmark = pytest.mark.slow

LEASE_S = 2.0
HELD = {"async": flows.gated, "thread": flows.gated_in_thread, "queued": flows.gated_in_thread}
"""What the stalled worker holds; it has one thread, so that the body of one of these waits for its turn there."""


def test_a_stalled_worker_loses_its_work_and_every_late_write_is_refused(scene: Scene) -> None:
    """Another worker runs the stalled one's workflows to their end; woken, the first cannot change anything nor begin a body
    that still waited for a thread; it says so once, takes a new id and goes on working."""
    gate = scene.directory / "gate"
    scene.start(*(workflow.using(id=name).bind(str(gate)) for name, workflow in HELD.items()))
    stalled = scene.spawn(lease=LEASE_S, threads=1)
    until(lambda: len(scene.bodies()) == len(HELD) - 1, "the bodies at the gate")
    [first_id] = scene.rows("SELECT id FROM onward_workers")
    stop_between_writes(stalled, scene)
    stopped_at = time.monotonic()
    with scene.worker(lease=LEASE_S) as other:

        def begun_by_other() -> int:
            return sum(line.pid == other.pid for line in scene.bodies())

        until(lambda: begun_by_other() == len(HELD), "the takeover of a stalled worker's rows")
        took_s = time.monotonic() - stopped_at
        print(f"a stalled worker with a lease of {LEASE_S:g} s was taken over from after {took_s:.1f} s")
        gate.touch()
        scene.until_final()
        before = scene.outcome()
        stalled.send(signal.SIGCONT)
        until(lambda: "it goes on under a new id" in stalled.log, "that the woken worker finds itself dead")
    assert took_s > LEASE_S / 2, "nobody is taken for dead before the lease is over"
    assert scene.outcome() == before
    with Client(scene.url) as client:
        handle = client.start(flows.three, 5)
        assert handle.result(timeout=20) == 17
    assert {line.pid for line in scene.bodies() if line.workflow == handle.id} == {stalled.pid}
    [(second_id, pid)] = scene.rows("SELECT id, pid FROM onward_workers WHERE is_dead = 0")
    assert (second_id != first_id, pid) == (True, stalled.pid)
    stalled.stop()
    scene.check()
    warnings = [line for line in stalled.log.splitlines() if " WARNING " in line]
    for name in HELD:
        assert sum(f"workflow {name} belongs to another worker" in line for line in warnings) <= 1
    assert sum("taken for dead" in line for line in warnings) == 1
    assert not [line for line in warnings if "has not turned" in line], "a stopped process is no blocked loop"


def test_a_worker_stopped_for_less_than_its_lease_keeps_its_work(scene: Scene) -> None:
    """A pause within the lease costs nothing: no body runs twice."""
    gate = scene.directory / "gate"
    scene.start(flows.gated.using(id="one").bind(str(gate)))
    paused = scene.spawn(lease=15.0)
    until(lambda: scene.bodies(), "the body at the gate")
    stop_between_writes(paused, scene)
    with scene.worker(lease=LEASE_S) as other:
        beats = scene.rows("SELECT expires_at FROM onward_workers WHERE pid = ?", other.pid)
        sql = "SELECT expires_at FROM onward_workers WHERE pid = ?"
        until(lambda: scene.rows(sql, other.pid)[0] > beats[0] + 2_000_000, "three beats of the other worker")
        paused.send(signal.SIGCONT)
        gate.touch()
        scene.until_final()
    assert [line.pid for line in scene.bodies()] == [paused.pid, paused.pid]
    paused.stop()
    scene.check()


def test_a_worker_that_finds_itself_dead_while_the_database_is_busy_still_takes_a_new_id(scene: Scene) -> None:
    """The new registration is tried until the database takes it: a worker never stays behind without a lease."""
    scene.start()
    with scene.worker(lease=LEASE_S, twists={"busy-registration": "2 3 4"}) as worker:
        scene.database.update("workers", "is_dead = true")
        until(lambda: "cannot be registered" in worker.log, "that the worker cannot register")
        with Client(scene.url) as client:
            assert client.start(flows.three, 5).result(timeout=20) == 17
        assert worker.log.count("cannot be registered") == 1


def stop_between_writes(worker: FaultProcess, scene: Scene) -> None:
    """SIGSTOP, at a moment at which the worker does not hold SQLite's write lock (nobody could write any more)."""
    worker.send(signal.SIGSTOP)
    while not scene.database.is_free_of_writers():
        worker.send(signal.SIGCONT)
        worker.send(signal.SIGSTOP)

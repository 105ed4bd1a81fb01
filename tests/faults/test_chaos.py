"""Workers stopped, woken and killed at random moments for a while: the outcome of every workflow is the undisturbed one."""

from __future__ import annotations

import random
import signal
import threading
import time
from pathlib import Path

import pytest

from onward.client import Client
from tests.faults import flows
from tests.faults.databases import IS_LONG
from tests.faults.kills import ID, Matrix, part_of
from tests.faults.processes import FaultProcess, ForkServers
from tests.faults.scenes import Scene

pytestmark = pytest.mark.slow

COUNT = 400 if IS_LONG else 60
WORKER_COUNT = 3
LEASE_S = 2.0


def test_random_stops_and_kills_change_no_outcome(
    tmp_path: Path, servers: ForkServers, scene: Scene, kind: str
) -> None:
    """Whatever is stopped past its lease, woken in the middle of something, or killed: each workflow ends once and alike."""
    matrix = Matrix(tmp_path, servers, kind)
    seed = time.time_ns()
    print(f"random seed {seed}")
    rng = random.Random(seed)
    ids = [f"t{number:03}" for number in range(COUNT)]
    scene.start(*(flows.trial.using(id=one, delay=number * 0.1).bind(4) for number, one in enumerate(ids)))
    with Client(scene.url) as client:
        for one in ids:
            client.signal(one, flows.go_on, "yes")
    workers = [scene.spawn(lease=LEASE_S, slots=20) for _ in range(WORKER_COUNT)]
    is_over = threading.Event()
    torment = threading.Thread(target=_torment, args=(scene, workers, rng, is_over))
    torment.start()
    try:
        scene.until_final(100 if not IS_LONG else 400)
    finally:
        is_over.set()
        torment.join()
    for worker in workers:
        worker.stop()
    scene.check(may_stall=True)
    wanted = matrix.undisturbed
    matrix.close()
    found = scene.outcome()
    for one in ids:
        assert part_of(found, one) == part_of(wanted, ID)
    assert found["bookings"] == wanted["bookings"] * COUNT


def _torment(scene: Scene, workers: list[FaultProcess], rng: random.Random, is_over: threading.Event) -> None:
    """Stop one worker for a while, short or past its lease, or kill one; then the next."""
    stops = kills = 0
    while not is_over.wait(rng.uniform(0.02, 0.5)):
        index = rng.randrange(len(workers))
        if rng.random() < 0.5:
            workers[index].kill()
            workers[index] = scene.spawn(lease=LEASE_S, slots=20)
            kills += 1
        else:
            workers[index].send(signal.SIGSTOP)
            is_over.wait(rng.choice([0.05, 0.3, LEASE_S + 2.0]))
            workers[index].send(signal.SIGCONT)
            stops += 1
    print(f"{stops} stops, {kills} kills")

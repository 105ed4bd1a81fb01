"""Workers that die, are cut off, or have a wrong clock: who notices, when, and what becomes of their work."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from onward.client import Client
from tests.faults import flows
from tests.faults.databases import IS_LONG, PostgresDatabase
from tests.faults.processes import FaultProcess, ForkServers, until
from tests.postgres.loads import Load, PostgresScene, bodies, check_log, start_trial
from tests.postgres.proxy import proxy_to

pytestmark = pytest.mark.slow

LEASE_S = 60.0 if IS_LONG else 12.0
OBSERVERS = 3
SLOTS = 60
"""Of each observer: none can take all the work of a victim."""


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, servers: ForkServers) -> Iterator[PostgresScene]:
    """A database with workers that are older than the lease of the victims: their word about a free lock counts."""
    scene = PostgresScene(tmp_path_factory.mktemp("watched"), servers, PostgresDatabase())
    scene.start()
    for _ in range(OBSERVERS):
        scene.spawn(lease=LEASE_S, slots=SLOTS)
    until(lambda: len(workers(scene)) == OBSERVERS, "the observers")
    age = "SELECT min(onward.us(clock_timestamp()) - started_at) FROM onward_workers"
    until(lambda: scene.rows(age)[0] > (LEASE_S + 1) * 1e6, "their age", timeout_s=LEASE_S + 30, pause_s=0.2)
    yield scene
    for process in scene.processes:
        if process.ended is None:
            process.stop()
            check_log(process)
    scene.check()
    scene.close()


def workers(scene: PostgresScene) -> list[int]:
    """Process ids of the living workers."""
    return scene.rows("SELECT pid FROM onward_workers WHERE is_dead = 0")


def hold(scene: PostgresScene, victim: FaultProcess, count: int) -> list[str]:
    """Workflows in the middle of a step on this worker alone; returns their ids."""
    gate = str(scene.directory / "gate")
    ids = [f"held-{number}" for number in range(count)]
    scene.start(*(flows.gated.using(id=one).bind(gate) for one in ids))
    until(
        lambda: {line.workflow for line in scene.bodies() if line.pid == victim.pid} >= set(ids), "bodies at the gate"
    )
    return ids


def test_a_kill_is_noticed_long_before_the_lease_ends_and_the_work_is_shared(watched: PostgresScene) -> None:
    """Each of the victim's workflows is given back once, by one observer, and claimed once; nobody else's is touched."""
    for observer in watched.processes[:OBSERVERS]:
        observer.send(signal.SIGSTOP)  # so that the victim gets them all
    victim = watched.spawn(lease=LEASE_S, slots=400)
    ids = hold(watched, victim, 150)
    for observer in watched.processes[:OBSERVERS]:
        observer.send(signal.SIGCONT)
    sql = "SELECT expires_at - onward.us(clock_timestamp()) FROM onward_workers WHERE pid = ?"
    until(lambda: watched.rows(sql, victim.pid)[0] > (LEASE_S - 0.5) * 1e6, "a fresh renewal")
    killed_at = time.monotonic()
    victim.kill()
    until(lambda: victim.pid not in workers(watched), "its death")
    noticed_s = time.monotonic() - killed_at
    [left_us] = watched.rows(sql, victim.pid)
    print(
        f"death noticed {noticed_s:.2f} s after kill -9, {left_us / 1e6:.1f} s before the lease of {LEASE_S:g} s ended"
    )
    assert left_us > 0

    def taken() -> Counter[int]:
        return Counter(line.pid for line in watched.bodies() if line.key == "at_gate" and line.pid != victim.pid)

    until(lambda: sum(taken().values()) == len(ids), "the takeover")
    (watched.directory / "gate").touch()
    until(lambda: watched.statuses() == {"completed": len(ids)}, watched.describe())
    given_back = "SELECT count(*) FROM audit WHERE old = 'running' AND new = 'pending' GROUP BY workflow_id"
    assert watched.rows(given_back) == [1] * len(ids)
    claimed = "SELECT count(*) FROM audit WHERE new = 'running' GROUP BY workflow_id"
    assert watched.rows(claimed) == [2] * len(ids)
    print(f"the work went to {len(taken())} workers: {sorted(taken().values())}")
    assert set(taken()) == {observer.pid for observer in watched.processes[:OBSERVERS]}
    assert sum(taken().values()) == len(ids)


def test_a_worker_that_is_cut_off_is_taken_over_from_when_its_lease_ends(scene: PostgresScene) -> None:
    """Nothing arrives any more, either way, and the server does not know: its sessions, and their locks, live on. When the
    network is back, what was under way is refused, and the worker goes on under a new id."""
    gate = scene.directory / "gate"
    scene.start(*(flows.gated.using(id=f"held-{number}").bind(str(gate)) for number in range(5)))
    with proxy_to(scene.url) as proxy:
        cut_off = scene.spawn(url=proxy.url, lease=3.0)
        until(lambda: len(scene.bodies()) == 5, "the bodies at the gate")
        proxy.stop_flow()
        until(lambda: len(scene.backends()) >= 3, "its sessions")
        with scene.worker(lease=3.0) as other:
            until(lambda: sum(line.pid == other.pid for line in scene.bodies()) == 5, "the takeover")
            gate.touch()
            scene.until_final()
            before = scene.outcome()
            proxy.resume_flow()
            until(lambda: "it goes on under a new id" in cut_off.log, "that it finds itself dead")
        assert scene.outcome() == before
        with Client(scene.url) as client:
            handle = client.start(flows.three, 5)
            assert handle.result(timeout=30) == 17
        assert {line.pid for line in scene.bodies() if line.workflow == handle.id} == {cut_off.pid}
        cut_off.stop()
    assert "Traceback" not in cut_off.log
    scene.check()


@pytest.mark.parametrize("hours", [1, -1])
def test_a_worker_whose_own_clock_is_an_hour_off_changes_nothing(
    scene: PostgresScene, undisturbed: PostgresScene, hours: int
) -> None:
    """Leases, timers, delays and the times of all entries are the database's; it works beside a worker with a right clock."""
    now = "SELECT onward.us(clock_timestamp())"
    start_trial(scene)
    [begun] = scene.rows(now)
    load = Load(scene, 40, spread_s=1.0)
    wrong = scene.spawn(lease=5.0, slots=15, twists={"clock-off": str(hours * 3600)})
    right = scene.spawn(lease=5.0, slots=15)
    load.check()
    [ended] = scene.rows(now)
    part = {key: value for key, value in scene.outcome()["entries"].items() if not key[0].startswith("w-")}
    assert part == undisturbed.outcome()["entries"]
    found, wanted = bodies(scene), bodies(undisturbed)
    assert {key: count for key, count in found.items() if key[0][:2] != "w-"} == wanted
    times = scene.rows(
        "SELECT started_at FROM onward_workflows UNION ALL SELECT finished_at FROM onward_workflows"
        " UNION ALL SELECT started_at FROM onward_journal UNION ALL SELECT finished_at FROM onward_journal"
    )
    assert {begun <= at <= ended for at in times if at is not None} == {True}
    early = "SELECT id FROM onward_workflows WHERE type = 'three' AND started_at < created_at"
    assert scene.rows(early) == []
    assert scene.rows("SELECT count(*) FROM onward_workers WHERE is_dead = 0") == [2]
    assert len({line.pid for line in scene.bodies()}) == 2
    for worker in (wrong, right):
        worker.stop()
        check_log(worker)

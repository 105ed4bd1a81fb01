"""A server that crashes, restarts, is replaced by its standby, or takes no writes for a while, under load."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from onward.client import Client
from onward.errors import TransientStoreError
from tests.faults import flows
from tests.faults.databases import IS_LONG, PostgresDatabase
from tests.faults.processes import ForkServers, until
from tests.postgres.instances import Instance, make_instance, server_directories
from tests.postgres.loads import Load, PostgresScene, changes_of_state, check_log

pytestmark = pytest.mark.slow

COUNT = 3000 if IS_LONG else 400
LEASE_S = 60.0
RESTARTS = 12 if IS_LONG else 4


@pytest.fixture
def base() -> Iterator[Path]:
    """Where a test's own servers live."""
    with server_directories() as made:
        yield made


@pytest.fixture
def instance(base: Path) -> Instance:
    """A server that a test may crash."""
    return make_instance(base)


@pytest.fixture
def own_scene(tmp_path: Path, servers: ForkServers, instance: Instance) -> Iterator[PostgresScene]:
    """A scene on it."""
    made = PostgresScene(tmp_path / "scene", servers, PostgresDatabase(instance.url()))
    yield made
    made.kill_all()
    made.postgres.disconnect()


def test_immediate_restarts_under_load_lose_nothing(own_scene: PostgresScene, instance: Instance) -> None:
    """Every connection breaks and every advisory lock falls, all the time: no worker is taken for dead, no body runs twice."""
    load = Load(own_scene, COUNT, spread_s=1.5 * RESTARTS)
    workers = [own_scene.spawn(lease=LEASE_S) for _ in range(3)]
    restarts = load.torment(instance.restart_immediately, RESTARTS)
    load.check()
    print(f"{restarts} restarts")
    assert restarts > 0
    assert own_scene.rows("SELECT sum(is_dead) FROM onward_workers") == [0]
    for worker in workers:
        worker.stop()
        check_log(worker)
        assert any("WARNING" in word for word in changes_of_state(worker)), "it has noticed"


def test_locks_that_fell_with_the_server_prove_nobody_dead(own_scene: PostgresScene, instance: Instance) -> None:
    """A worker that is slow to come back after a restart (here it is stopped) has no lock and renews nothing for seconds; as long
    as its lease holds, an observer leaves it its work."""
    gate = own_scene.directory / "gate"
    own_scene.start(flows.gated.using(id="held").bind(str(gate)))
    slow = own_scene.spawn(lease=LEASE_S)
    until(lambda: own_scene.bodies_of("held"), "the body at the gate")
    with own_scene.worker(lease=LEASE_S) as observer:
        slow.send(signal.SIGSTOP)
        instance.restart_immediately()
        renewed = "SELECT renewed_at FROM onward_workers WHERE pid = ?"
        [before] = own_scene.rows(renewed, observer.pid)
        until(lambda: own_scene.rows(renewed, observer.pid)[0] > before + 6_000_000, "six seconds of the observer")
        assert own_scene.rows("SELECT sum(is_dead) FROM onward_workers") == [0]
        slow.send(signal.SIGCONT)
        gate.touch()
        own_scene.until_final()
    assert {(line.key, line.pid) for line in own_scene.bodies()} == {("at_gate", slow.pid), ("add_one", slow.pid)}
    slow.stop()
    own_scene.check()


def test_a_client_whose_first_call_finds_no_server_can_be_used_when_there_is_one(instance: Instance) -> None:
    """Only that call raises; a long-lived application need not be restarted."""
    instance.crash()
    with Client(instance.url()) as client:
        for _ in range(2):
            with pytest.raises(TransientStoreError):
                client.counts()
        instance.start()
        assert sum(client.counts().values()) == 0


def test_a_failover_to_the_standby_loses_nothing(own_scene: PostgresScene, instance: Instance, base: Path) -> None:
    """The primary dies; the standby, next in the URL, takes no writes until it is promoted. Workers try until it does."""
    standby = instance.standby(base / "b")
    load = Load(own_scene, COUNT, spread_s=2.0)
    both = own_scene.postgres.url_on(instance.url(standby))
    workers = [own_scene.spawn(url=both, lease=LEASE_S) for _ in range(2)]
    until(lambda: load.ended() > COUNT // 4, "some work")
    instance.crash()
    own_scene.postgres.move_to(standby.url())
    for worker in workers:
        until(lambda: changes_of_state(worker), "a word about the database")  # noqa: B023
    standby.promote()
    load.check()
    for worker in workers:
        worker.stop()
        check_log(worker)

"""Poll-only mode behind PgBouncer in transaction mode: nothing that Onward needs lives longer than a transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from onward.client import Client
from tests.faults import flows
from tests.faults.processes import until
from tests.postgres.loads import Load, PostgresScene, bodies, check_log
from tests.postgres.pooler import POOL_SIZE, Pooler, pooler_to

pytestmark = pytest.mark.slow

LEASE_S = 15.0


@pytest.fixture
def pooler(scene: PostgresScene) -> Iterator[Pooler]:
    """In front of the scene's server."""
    with pooler_to(scene.postgres.base_url) as made:
        yield made


@pytest.fixture
def url(scene: PostgresScene, pooler: Pooler) -> str:
    """The scene's database through the pooler, in poll-only mode."""
    return scene.postgres.url_on(pooler.base_url) + "&poll_only=1"


def test_one_of_everything_runs_through_a_pooler(scene: PostgresScene, undisturbed: PostgresScene, url: str) -> None:
    """Start, signal, sleep, retries, children, a transactional step: the outcome and the bodies of a direct connection."""
    scene.start()
    with Client(url) as client, scene.worker(url=url, lease=LEASE_S) as worker:
        handle = client.start(flows.trial.using(id="t"), 4)
        client.signal("t", flows.go_on, "yes")
        assert handle.result(timeout=30).booked == 5
        scene.until_final()
    assert scene.outcome() == undisturbed.outcome()
    assert bodies(scene) == bodies(undisturbed)
    check_log(worker)
    scene.check()


def test_many_workers_share_few_server_connections_and_leave_nothing_on_them(
    scene: PostgresScene, pooler: Pooler, url: str
) -> None:
    """More sessions than the pool has: each body once; no setting, prepared statement, lock or LISTEN stays behind."""
    load = Load(scene, 200)
    workers = [scene.spawn(url=url, lease=LEASE_S, slots=20) for _ in range(3)]
    load.check()
    pools = {row[0]: row for row in pooler.ask("SHOW POOLS")}
    print(f"pool of {scene.postgres.name}: {pools[scene.postgres.name]}")
    assert len(scene.backends()) <= POOL_SIZE
    with Client(url) as client:
        client.counts()
    for worker in workers:
        worker.stop()
        check_log(worker)
    traces = (
        "SELECT (SELECT count(*) FROM pg_prepared_statements) + (SELECT count(*) FROM pg_listening_channels())"
        " + (SELECT count(*) FROM pg_settings WHERE name IN ('enable_seqscan', 'enable_hashjoin', 'jit', 'lock_timeout',"
        " 'statement_timeout', 'plan_cache_mode') AND source = 'session')"
    )
    with scene.postgres.connect_to(pooler.base_url, options="", prepare_threshold=None) as conn:
        for _ in range(2 * POOL_SIZE):
            assert conn.execute(traces.encode()).fetchone() == (0,)
    assert scene.rows("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [0]


def test_a_killed_worker_behind_a_pooler_is_taken_over_from_when_its_lease_ends(scene: PostgresScene, url: str) -> None:
    """There is no lock that would fall sooner; a living one is never taken over from."""
    gate = scene.directory / "gate"
    scene.start(*(flows.gated.using(id=f"held-{number}").bind(str(gate)) for number in range(3)))
    victim = scene.spawn(url=url, lease=2.0)
    until(lambda: len(scene.bodies()) == 3, "the bodies at the gate")
    with scene.worker(url=url, lease=2.0) as other:
        victim.kill()
        until(lambda: sum(line.pid == other.pid for line in scene.bodies()) == 3, "the takeover")
        gate.touch()
        scene.until_final()
    assert Counter(scene.rows("SELECT epoch FROM onward_workflows")) == {3: 3}
    scene.check()


def test_a_pooler_that_restarts_is_waited_for(scene: PostgresScene, pooler: Pooler, url: str) -> None:
    """All its clients lose their connections, and their transactions, at once."""
    load = Load(scene, 200, spread_s=4.0)
    with scene.worker(url=url, lease=60.0) as worker:
        times = load.torment(lambda: _reconnect(pooler, scene.postgres.name), 6)
        load.check()
    assert times > 0
    check_log(worker)


def test_without_poll_only_the_error_says_what_to_add_to_the_url(scene: PostgresScene, pooler: Pooler) -> None:
    """Prepared statements and session settings do not survive a pooler in transaction mode; nothing runs half."""
    Load(scene, 100)
    direct = scene.postgres.url_on(pooler.base_url)
    workers = [scene.spawn(url=direct, lease=LEASE_S) for _ in range(2)]
    until(lambda: any("poll_only=1" in worker.log for worker in workers), "a word about poll_only")
    scene.kill_all()
    scene.check()


def _reconnect(pooler: Pooler, database: str) -> None:
    """Every connection to this database is dropped, on both sides, under whatever uses it."""
    pooler.ask(f"KILL {database}")
    pooler.ask(f"RESUME {database}")

"""Sessions ended or interrupted by an operator (`pg_terminate_backend`, `pg_cancel_backend`), any of them, under load."""

from __future__ import annotations

import random
import time

from tests.faults import flows
from tests.faults.databases import IS_LONG
from tests.faults.processes import until
from tests.postgres.loads import Load, PostgresScene, check_log

COUNT = 1500 if IS_LONG else 300
LEASE_S = 60.0


def test_any_session_may_be_terminated_at_any_time(scene: PostgresScene) -> None:
    """Committer, claims, reads, notifications, lease: each of them again and again; every body runs once."""
    load = Load(scene, COUNT, spread_s=2.0)
    seed = time.time_ns()
    print(f"random seed {seed}")
    rng = random.Random(seed)
    workers = [scene.spawn(lease=LEASE_S) for _ in range(2)]
    ended: list[str] = []

    def terminate_some() -> None:
        found = scene.backends()
        for pid in rng.sample(found, min(3, len(found))):
            ended.extend(scene.rows("SELECT left(query, 40) FROM pg_stat_activity WHERE pid = ?", pid))
            scene.rows("SELECT pg_terminate_backend(?)", pid)

    times = load.torment(terminate_some, 30)
    load.check()
    print(f"{len(ended)} sessions terminated in {times} rounds, last at work on {len(set(ended))} kinds of statements")
    assert times > 1
    for worker in workers:
        worker.stop()
        check_log(worker)


def test_all_sessions_terminated_at_once(scene: PostgresScene) -> None:
    """As a failover of a managed database does it: reconnected within moments, every body once."""
    load = Load(scene, COUNT, spread_s=4.0)
    workers = [scene.spawn(lease=LEASE_S) for _ in range(2)]

    def terminate_all() -> None:
        for pid in scene.backends():
            scene.rows("SELECT pg_terminate_backend(?)", pid)

    times = load.torment(terminate_all, 8)
    load.check()
    print(f"{times} times")
    assert times > 1
    for worker in workers:
        worker.stop()
        check_log(worker)


def test_any_statement_may_be_cancelled(scene: PostgresScene) -> None:
    """`57014`, as by an operator or a statement_timeout: tried again."""
    load = Load(scene, COUNT, spread_s=2.0)
    cancelled = 0

    def cancel_all() -> None:
        nonlocal cancelled
        for _ in range(20):
            for pid in scene.backends("state = 'active'"):
                cancelled += scene.rows("SELECT pg_cancel_backend(?)", pid) == [True]

    with scene.worker(lease=LEASE_S) as worker:
        load.torment(cancel_all, 20)
        load.check()
    print(f"{cancelled} cancellations")
    check_log(worker)


def test_the_session_of_a_transactional_step_may_be_terminated(scene: PostgresScene) -> None:
    """Its transaction is rolled back, another attempt runs the body again, and the effect is there once."""
    gate = scene.directory / "gate"
    scene.start(flows.booking.using(id="w").bind(str(gate)))
    with scene.worker(lease=LEASE_S) as worker:
        until(lambda: scene.bodies_of("w"), "the body at the gate")
        open_ones = scene.backends("state = 'idle in transaction'")
        assert len(open_ones) == 1
        scene.rows("SELECT pg_terminate_backend(?)", open_ones[0])
        gate.touch()
        scene.until_final()
    assert scene.statuses() == {"completed": 1}, scene.describe()
    assert scene.rows("SELECT amount FROM bookings") == [1]
    assert scene.bodies_of("w") == ["book_at_gate", "book_at_gate", "add_one"]
    scene.check()
    check_log(worker)


def test_a_terminated_heartbeat_is_never_taken_for_death(scene: PostgresScene) -> None:
    """The lock that proves a worker alive falls with its lease connection, again and again under the eyes of an observer that is
    older than a lease: nobody takes over, and the work that is held is not begun a second time."""
    gate = scene.directory / "gate"
    scene.start(flows.gated.using(id="held").bind(str(gate)))
    with scene.worker(lease=3.0) as living:
        until(lambda: scene.bodies_of("held"), "the body at the gate")
        with scene.worker(lease=3.0) as observer:
            renewals = "SELECT renewed_at FROM onward_workers WHERE pid = ?"
            [first] = scene.rows("SELECT started_at FROM onward_workers WHERE pid = ?", observer.pid)
            key = "SELECT lock_key FROM onward_workers WHERE pid = ?"
            holder = (
                f"SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND objid::bigint = ({key})"
            )
            terminations, last = 0, 0
            while last < first + 9_000_000:
                for pid in scene.rows(holder, living.pid):
                    terminations += scene.rows("SELECT pg_terminate_backend(?)", pid) == [True]
                until(lambda: scene.rows(renewals, living.pid)[0] > last, "a renewal")  # noqa: B023
                [last] = scene.rows(renewals, living.pid)
                until(lambda: scene.rows(holder, living.pid), "the lock again")
            print(f"{terminations} terminations")
            assert terminations >= 5
            assert scene.rows("SELECT sum(is_dead) FROM onward_workers") == [0]
            gate.touch()
            scene.until_final()
            assert "taken for dead" not in living.log
    assert scene.bodies_of("held") == ["at_gate", "add_one"]
    assert scene.rows("SELECT epoch, crashes FROM onward_workflows") == [(1, 0)]
    scene.check()

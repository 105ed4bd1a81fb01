"""Who is dead on PostgreSQL, and who only looks like it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest

from onward._store.base import Leases
from onward._store.opening import open_store
from onward._store.postgres.leases import LOCK_CLASS, PostgresLeases
from onward.errors import OutcomeUnknown, TransientStoreError
from tests.conformance.support import SECOND, PostgresWorld, row, started_and_claimed, worker_row
from tests.postgres.server import connection, url_with

LEASE_S = 5.0


@pytest.fixture
def world(tmp_path: Path) -> PostgresWorld:
    """An empty schema; the clock stands long after the server's start."""
    return PostgresWorld(tmp_path)


def insides(leases: Leases) -> PostgresLeases:
    assert isinstance(leases, PostgresLeases)
    return leases


def held_locks(leases: Leases) -> list[int]:
    """Which of this process's proofs the server knows."""
    keys = list(insides(leases)._proofs.values())
    with connection() as conn:
        rows = conn.execute(
            "SELECT objid::bigint FROM pg_locks WHERE locktype = 'advisory' AND classid = %s AND objid::bigint = ANY (%s)",
            (LOCK_CLASS, keys),
        )
        return [key for (key,) in rows]


def kill(leases: Leases) -> None:
    """Close the connection as the kernel does for a killed process, and wait until the server has noticed."""
    keys = list(insides(leases)._proofs.values())
    leases.close()
    with connection() as conn:
        for key in keys:  # granted as soon as it falls free, and given back at once
            conn.execute("SELECT pg_advisory_xact_lock(%s, %s)", (LOCK_CLASS, key))


def cut(leases: Leases) -> None:
    """End the lease connection from outside, as an operator or a firewall may."""
    conn: psycopg.Connection[Any] | None = insides(leases)._conn
    assert conn is not None
    with connection() as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", (conn.info.backend_pid,))


async def two_workers(world: PostgresWorld) -> tuple[Any, Leases, Leases]:
    """A victim that holds workflow a, and an observer that is older than the victim's lease."""
    store = await world.open()
    observer = world.worker(store, "w2", lease_s=1000)
    world.clock.advance(LEASE_S + 1)
    victim = world.worker(store, "w1", lease_s=LEASE_S)
    await started_and_claimed(store)
    return store, victim, observer


async def test_a_killed_worker_is_dead_after_two_looks_a_second_apart_long_before_its_lease(
    world: PostgresWorld,
) -> None:
    store, victim, observer = await two_workers(world)
    kill(victim)
    world.clock.advance(1.3)
    assert observer.bury("w2") == 0  # seen free
    world.clock.advance(0.5)
    assert observer.bury("w2") == 0  # too soon after it
    world.clock.advance(0.6)
    assert observer.bury("w2") == 1
    assert (await row(store)).status == "pending"


async def test_a_free_lock_alone_kills_nobody_who_renews(world: PostgresWorld) -> None:
    _, victim, observer = await two_workers(world)
    for _ in range(6):
        cut(victim)
        world.clock.advance(0.9)
        with pytest.raises((TransientStoreError, OutcomeUnknown)):
            victim.renew("w1", int(LEASE_S * SECOND))
        assert observer.bury("w2") == 0
        assert victim.renew("w1", int(LEASE_S * SECOND))
        assert observer.bury("w2") == 0


async def test_a_worker_whose_lease_connection_was_cut_holds_its_lock_again(world: PostgresWorld) -> None:
    _, victim, _ = await two_workers(world)
    before = held_locks(victim)
    cut(victim)
    with pytest.raises((TransientStoreError, OutcomeUnknown)):
        victim.renew("w1", int(LEASE_S * SECOND))
    assert held_locks(victim) == []
    assert victim.renew("w1", int(LEASE_S * SECOND))
    assert held_locks(victim) == before != []


async def test_a_lock_that_is_held_keeps_a_late_worker_alive_until_its_lease_ends(world: PostgresWorld) -> None:
    _, _, observer = await two_workers(world)
    for _ in range(3):
        world.clock.advance(1.4)
        assert observer.bury("w2") == 0
    world.clock.advance(1)
    assert observer.bury("w2") == 1


async def test_an_observer_younger_than_a_lease_judges_by_the_lease_alone(world: PostgresWorld) -> None:
    store = await world.open()
    victim = world.worker(store, "w1", lease_s=LEASE_S)
    observer = world.worker(store, "w2", lease_s=1000)
    await started_and_claimed(store)
    kill(victim)
    for _ in range(3):
        world.clock.advance(1.5)
        assert observer.bury("w2") == 0
    world.clock.advance(1)
    assert observer.bury("w2") == 1


async def test_after_a_restart_of_the_server_free_locks_prove_nothing_for_a_lease(world: PostgresWorld) -> None:
    with connection() as conn:
        found = conn.execute("SELECT (date_part('epoch', pg_postmaster_start_time()) * 1000000)::bigint").fetchone()
    assert found is not None
    world.clock.now = found[0]  # the server has started just now
    store = await world.open()
    observer = world.worker(store, "w2", lease_s=1000)
    victim = world.worker(store, "w1", lease_s=1000)
    await started_and_claimed(store)
    kill(victim)
    for _ in range(4):
        world.clock.advance(2)
        assert observer.bury("w2") == 0


async def test_two_observers_count_their_own_looks(world: PostgresWorld) -> None:
    store, victim, first = await two_workers(world)
    second = world.worker(store, "w3", lease_s=1000)
    world.clock.advance(LEASE_S + 1)
    assert victim.renew("w1", int(LEASE_S * SECOND))
    kill(victim)
    world.clock.advance(2.5)
    assert first.bury("w2") == 0
    world.clock.advance(1.1)
    assert second.bury("w3") == 0
    assert first.bury("w2") == 1


async def test_in_poll_only_mode_there_is_no_lock_and_the_lease_decides(world: PostgresWorld) -> None:
    store = await world.open()
    observer = world.worker(store, "w2", lease_s=1000)
    world.clock.advance(LEASE_S + 1)
    pooled = open_store(url_with(schema=world.schema, poll_only=1), world.clock)
    victim = pooled.leases()
    victim.register(worker_row("w1"), int(LEASE_S * SECOND))
    assert insides(victim)._proofs == {}
    await started_and_claimed(store)
    kill(victim)
    for _ in range(3):
        world.clock.advance(1.5)
        assert observer.bury("w2") == 0
    world.clock.advance(1)
    assert observer.bury("w2") == 1


async def test_the_machines_own_clock_changes_nothing(world: PostgresWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    _, victim, observer = await two_workers(world)
    for hour in (-3600, 3600):
        monkeypatch.setattr("time.time", lambda hour=hour: 1.8e9 + hour)
        world.clock.advance(1)
        assert victim.renew("w1", int(LEASE_S * SECOND))
        assert observer.bury("w2") == 0


async def test_a_retired_worker_gives_its_lock_up(world: PostgresWorld) -> None:
    _, victim, _ = await two_workers(world)
    keys = list(insides(victim)._proofs.values())
    victim.retire("w1")
    with connection() as conn:
        left = conn.execute(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid::bigint = ANY (%s)", (keys,)
        )
        assert left.fetchone() == (0,)

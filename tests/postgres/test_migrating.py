"""The schema under stress: made by several processes at once, by one that is killed half-way, and of another release."""

from __future__ import annotations

import asyncio
import signal

import pytest

from onward._store.opening import open_store
from onward.client import Client
from onward.errors import SchemaError
from tests.faults import flows
from tests.faults.processes import until
from tests.postgres.loads import PostgresScene

HOLD = """
CREATE FUNCTION public.hold() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
    IF EXISTS (SELECT 1 FROM pg_event_trigger_ddl_commands() WHERE object_identity = 'onward.journal') THEN
        PERFORM pg_advisory_xact_lock_shared(42);
    END IF;
END $$;
CREATE EVENT TRIGGER hold ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION public.hold();
"""
BLOCKED = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 42 AND NOT granted"


def test_processes_that_migrate_at_once_make_one_schema(scene: PostgresScene) -> None:
    """Each finds it complete; every migration is recorded once."""
    starters = [scene.spawn(start=f"w-{number}") for number in range(6)]
    assert [starter.wait() for starter in starters] == [0] * 6, starters[0].log
    counts = scene.rows("SELECT count(*) FROM onward.migrations GROUP BY number")
    assert counts and set(counts) == {1}
    assert scene.rows("SELECT id FROM onward.workflows ORDER BY id") == [f"w-{number}" for number in range(6)]


def test_a_process_killed_half_way_through_its_migrations_leaves_nothing(scene: PostgresScene) -> None:
    """One that waited for it meanwhile makes the schema; its own is rolled back by the server."""
    scene.rows(HOLD)
    with scene.postgres.connect() as conn:
        conn.execute("SELECT pg_advisory_lock(42)")
        first = scene.spawn(start="first")
        until(lambda: scene.rows(BLOCKED) == [1], "that it is in the middle")
        second = scene.spawn(start="second")
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        until(lambda: scene.rows(waiting) == [2], "that the second waits for the first")
        first.send(signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL
        assert scene.rows("SELECT to_regclass('onward.migrations') IS NULL") == [True]
        conn.execute("SELECT pg_advisory_unlock(42)")
        assert second.wait() == 0, second.log
    assert scene.rows("SELECT id FROM onward.workflows") == ["second"]
    assert set(scene.rows("SELECT count(*) FROM onward.migrations GROUP BY number")) == {1}


def test_a_schema_of_a_newer_release_is_used_if_it_allows_that_and_refused_if_not(scene: PostgresScene) -> None:
    """Its newest migration names the oldest library that may use it; a worker says so in one line and ends."""
    scene.start(flows.three.using(id="w").bind(1))
    scene.rows(
        "INSERT INTO onward.migrations (number, name, oldest_library, checksum, applied_by)"
        " VALUES (999, 'from_the_future', '0.0.1', 'x', '99.0')"
    )
    with scene.worker():
        scene.until_final()
    scene.rows("UPDATE onward.migrations SET oldest_library = '99.0' WHERE number = 999")
    worker = scene.spawn()
    assert worker.wait() == 70
    assert "99.0" in worker.log
    with Client(scene.url) as client, pytest.raises(SchemaError, match=r"99\.0"):
        client.counts()


def test_a_schema_of_an_older_release_is_migrated_or_refused(scene: PostgresScene) -> None:
    """Without the right to migrate, the error names the command; nothing is touched."""
    store = open_store(scene.url)
    with pytest.raises(SchemaError, match="onward migrate"):
        asyncio.run(store.open(migrate=False))
    assert scene.rows("SELECT count(*) FROM pg_namespace WHERE nspname = 'onward'") == [0]
    scene.start(flows.three.using(id="w").bind(1))
    with scene.worker():
        scene.until_final()


def test_a_changed_migration_is_noticed(scene: PostgresScene) -> None:
    """The checksum of what was applied must be that of this library's file."""
    scene.start()
    scene.rows("UPDATE onward.migrations SET checksum = 'x' WHERE number = 1")
    with Client(scene.url) as client, pytest.raises(SchemaError):
        client.counts()

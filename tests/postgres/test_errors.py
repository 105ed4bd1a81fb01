"""Errors of the server in the middle of a worker's writes, unfriendly defaults, and limits: delays, and nothing else."""

from __future__ import annotations

import os
from collections import Counter
from urllib.parse import urlsplit

import pytest

from tests.faults import flows
from tests.faults.databases import IS_LONG
from tests.faults.processes import until
from tests.postgres.loads import Load, PostgresScene, bodies, changes_of_state, check_log, start_trial

LEASE_S = 60.0
FAULT = """
CREATE SEQUENCE public.fault_count;
CREATE FUNCTION public.fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF nextval('public.fault_count') % 3 <> 0 AND currval('public.fault_count') < TG_ARGV[0]::integer THEN
        RAISE EXCEPTION 'as the test has arranged' USING ERRCODE = TG_ARGV[1];
    END IF;
    RETURN NULL;
END $$;
"""
STATES = {
    "40P01": "deadlock", "40001": "not serializable", "55P03": "a lock in the way", "57014": "cancelled",
    "53100": "disk full", "53200": "out of memory", "53300": "too many connections", "58030": "I/O error",
    "25006": "read-only", "40003": "commit unknown", "08006": "connection failure", "57P03": "starting up",
}  # fmt: skip
EVERY = [(state, table) for state in STATES for table in ("journal", "workflows", "workers")]
SOME = [
    *((state, "workflows") for state in STATES),
    ("40P01", "journal"), ("40001", "journal"), ("53100", "journal"), ("25006", "workers"),
]  # fmt: skip
UNFRIENDLY = {
    "default_transaction_deferrable": "on", "lock_timeout": "1ms", "statement_timeout": "3s",
    "idle_in_transaction_session_timeout": "200ms", "search_path": "pg_catalog", "datestyle": "German",
    "intervalstyle": "iso_8601", "timezone": "Asia/Kathmandu", "bytea_output": "escape", "extra_float_digits": "-5",
    "synchronous_commit": "off", "jit_above_cost": "0", "enable_indexscan": "off", "plan_cache_mode": "force_custom_plan",
}  # fmt: skip


@pytest.mark.parametrize(("state", "table"), EVERY if IS_LONG else SOME)
def test_an_error_of_the_server_delays_and_nothing_else(scene: PostgresScene, state: str, table: str) -> None:
    """Two of three writes to one table fail for a while, whatever the reason given."""
    load = Load(scene, 60, spread_s=0.8)
    scene.rows(FAULT)
    with scene.worker(lease=LEASE_S) as worker:
        scene.rows(
            f"CREATE TRIGGER fault AFTER INSERT OR UPDATE ON onward.{table}"
            f" FOR EACH STATEMENT EXECUTE FUNCTION public.fail('8', '{state}')"
        )
        load.check()
        until(lambda: scene.rows("SELECT last_value FROM public.fault_count") >= [7], "that the faults are over")
    check_log(worker)


def test_an_entry_that_the_database_refuses_fails_its_workflow_alone(scene: PostgresScene) -> None:
    """A constraint of somebody's own on the journal: the neighbours in the same batches know nothing of it. (Another attempt
    would be refused as well.)"""
    load = Load(scene, 40)
    scene.rows("ALTER TABLE onward.journal ADD CHECK (NOT (workflow_id = 'w-00007' AND key = 'add_ten'))")
    with scene.worker(lease=LEASE_S) as worker:
        until(lambda: load.ended() == 40, "the end of all")
        assert "Traceback" not in worker.log
    rows = scene.rows("SELECT id FROM onward_workflows WHERE status = 'completed' ORDER BY id")
    assert rows == [f"w-{number:05}" for number in range(40) if number != 7]
    assert scene.status("w-00007") == "failed"
    scene.check()


@pytest.mark.parametrize("way", ["", "&poll_only=1"], ids=["session", "poll-only"])
@pytest.mark.parametrize("isolation", ["serializable", "repeatable read"])
def test_unfriendly_defaults_of_the_database_change_nothing(
    scene: PostgresScene, undisturbed: PostgresScene, isolation: str, way: str
) -> None:
    """What a DBA or a provider has set for all sessions: isolation, time-outs, formats, plans."""
    for name, value in {**UNFRIENDLY, "default_transaction_isolation": isolation}.items():
        scene.postgres.administer(f"ALTER DATABASE {{}} SET {name} = '{value}'")
    start_trial(scene)
    with scene.worker(url=scene.url + way, lease=LEASE_S) as worker:
        scene.until_final()
    assert scene.outcome() == undisturbed.outcome()
    found, wanted = bodies(scene), bodies(undisturbed)
    assert found - wanted <= Counter({("t", "book", 1): 5}) and wanted - found == Counter()
    scene.check()
    check_log(worker)


def test_a_database_that_turns_read_only_is_waited_for(scene: PostgresScene) -> None:
    """Providers do so when a disk is full. All sessions end; the new ones may not write (25006) until it is over."""
    load = Load(scene, 200, spread_s=2.0)
    with scene.worker(lease=LEASE_S) as worker:
        until(lambda: load.ended() > 20, "some work")
        scene.postgres.administer("ALTER DATABASE {} SET default_transaction_read_only = on")
        for pid in scene.backends():
            scene.rows("SELECT pg_terminate_backend(?)", pid)
        sessions = "SELECT sessions FROM pg_stat_database WHERE datname = current_database()"
        [before] = scene.rows(sessions)
        until(lambda: scene.rows(sessions)[0] > before + 10, "that new sessions are tried")
        assert load.ended() < load.count
        scene.postgres.administer("ALTER DATABASE {} RESET default_transaction_read_only")
        load.check()
    check_log(worker)


def test_a_server_without_connections_to_spare_is_waited_for(scene: PostgresScene) -> None:
    """`53300`: what the worker gets is enough for its lease, and for its work as soon as there are more."""
    role = f"onward_test_{os.getpid()}"
    load = Load(scene, 60)
    scene.rows(f"DROP ROLE IF EXISTS {role}; CREATE ROLE {role} LOGIN BYPASSRLS CONNECTION LIMIT 2")
    try:
        for schema in ("onward", "public"):
            scene.rows(
                f"GRANT ALL ON SCHEMA {schema} TO {role}; GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {role};"
                f"GRANT ALL ON ALL SEQUENCES IN SCHEMA {schema} TO {role}"
            )
        parts = urlsplit(scene.url)
        url = parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}").geturl()
        with scene.worker(url=url, lease=LEASE_S) as worker:
            until(lambda: "too many connections" in worker.log and changes_of_state(worker), "a word about connections")
            scene.rows(f"ALTER ROLE {role} CONNECTION LIMIT 40")
            load.check()
        check_log(worker)
    finally:
        scene.kill_all()
        scene.rows(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_row_that_a_stranger_has_locked_keeps_nobody_else(scene: PostgresScene) -> None:
    """An application's open transaction on one workflow's row: all others go on, that one as soon as it is over."""
    load = Load(scene, 100)
    gate = scene.directory / "gate"
    scene.start(flows.gated.using(id="locked").bind(str(gate)))
    with scene.worker(lease=LEASE_S) as worker:
        until(lambda: scene.bodies_of("locked"), "the body at the gate")
        with scene.postgres.connect() as stranger:
            stranger.execute("BEGIN")
            stranger.execute("UPDATE onward.workflows SET tags = tags WHERE id = 'locked'")
            gate.touch()
            until(lambda: load.ended() == 100, "all others")
            load.start_more(50)
            until(lambda: load.ended() == 150, "more of them")
            assert scene.bodies_of("locked") == ["at_gate"]
            stranger.execute("COMMIT")
        load.check()
    assert scene.bodies_of("locked") == ["at_gate", "add_one"]
    check_log(worker)

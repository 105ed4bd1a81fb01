"""`onward doctor` on PostgreSQL: what is wrong with the server, the way to it, the schema and our rights is a finding with a cure,
and nothing is changed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from psycopg import sql

from onward._store.checks import findings_of
from onward._store.diagnosis import Diagnosis, Finding
from onward._store.opening import open_store
from onward._store.postgres import condition, diagnosis
from onward._store.postgres.objects import own_objects
from onward._store.postgres.roles import RIGHTS
from onward.cli.group import onward
from onward.errors import ConfigurationError
from tests.conformance.support import PostgresWorld, start, started_and_claimed, worker_row
from tests.postgres.instances import own_server
from tests.postgres.pooler import pooler_to
from tests.postgres.roles import drop_roles, login_name, make_roles
from tests.postgres.server import connection, drop_schema, new_schema, server_url, url_with


@pytest.fixture
def schema() -> Iterator[str]:
    """A schema that was migrated."""
    name = new_schema()
    asyncio.run(migrated(url_with(schema=name)))
    yield name
    drop_schema(name)
    drop_roles(name)


async def migrated(url: str) -> None:
    store = open_store(url)
    await store.open()
    await store.close()


def look(url: str) -> Diagnosis:
    return asyncio.run(open_store(url).diagnose())


def found(url: str, check: str) -> Finding:
    """The finding of this check; the worst one where there are several."""
    order = ("fail", "warn", "ok")
    findings = [one for one in findings_of(look(url)) if one.check == check]
    return min(findings, key=lambda one: order.index(one.level))


def in_schema(schema: str, statement: str) -> None:
    with connection() as conn:
        conn.execute(sql.SQL(statement).format(s=sql.Identifier(schema)))


def test_a_database_that_is_well_has_nothing_to_look_at(schema: str) -> None:
    result = CliRunner().invoke(onward, ["doctor", "--strict", "--url", url_with(schema=schema)])
    assert result.exit_code == 0, result.output
    assert "all is well" in result.stdout
    for check in (
        "server",
        "clock-offset",
        "pooler",
        "durability",
        "connections",
        "schema",
        "rights",
        "vacuum",
        "horizon",
    ):
        assert f"ok    {check} " in result.stdout
    assert "notifications arrive" in result.stdout


def test_it_creates_nothing(schema: str) -> None:
    absent = new_schema()
    finding = found(url_with(schema=absent), "schema")
    assert finding.is_unusable
    assert "has no Onward schema" in finding.text
    assert finding.cure.startswith("run: onward migrate")
    with connection() as conn:
        assert conn.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (absent,)).fetchone() is None


def test_a_database_that_is_not_there_is_an_error_and_a_server_that_is_not_there_a_finding(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="createdb"):
        look(server_url().replace("/postgres?", "/nothing?"))
    finding = found(f"postgresql://postgres@/postgres?host={tmp_path}", "access")
    assert (finding.level, finding.is_unusable) == ("fail", True)


def test_a_missing_index_is_named_with_the_statement_that_makes_it(schema: str) -> None:
    in_schema(schema, "DROP INDEX {s}.workflows_due")
    finding = found(url_with(schema=schema), "indexes")
    assert (finding.level, finding.is_unusable) == ("fail", False)
    assert "workflows_due" in finding.text
    assert finding.cure.startswith(f"CREATE INDEX CONCURRENTLY workflows_due ON {schema}.workflows (queue, priority")
    with connection() as conn:
        conn.execute(finding.cure.encode())
    assert found(url_with(schema=schema), "schema").level == "ok"


def test_an_index_whose_making_was_interrupted_is_named(schema: str) -> None:
    with connection() as conn:
        conn.execute(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass", (f"{schema}.workflows_held",)
        )
    finding = found(url_with(schema=schema), "indexes")
    assert finding.text == "index workflows_held is not valid: its making was interrupted"
    with connection() as conn:
        conn.execute(finding.cure.encode())
    assert found(url_with(schema=schema), "schema").level == "ok"


def test_a_trigger_that_is_off_is_named(schema: str) -> None:
    in_schema(schema, "ALTER TABLE {s}.outbox DISABLE TRIGGER deliver_outbox")
    finding = found(url_with(schema=schema), "schema")
    assert finding.text.startswith("trigger deliver_outbox is off: signals")
    with connection() as conn:
        conn.execute(finding.cure.encode())
    assert found(url_with(schema=schema), "schema").level == "ok"


@pytest.mark.parametrize(
    ("statement", "name", "is_unusable"),
    [
        ("DROP FUNCTION {s}.result", "function result", False),
        ("DROP VIEW {s}.overview", "view overview", False),
        ("DROP TABLE {s}.waiters", "table waiters", True),
    ],
)
def test_what_somebody_has_removed_is_named(schema: str, statement: str, name: str, is_unusable: bool) -> None:
    in_schema(schema, statement)
    finding = found(url_with(schema=schema), "schema")
    assert (finding.level, finding.is_unusable) == ("fail", is_unusable)
    assert f"somebody has removed {name}" in finding.text


def test_a_schema_that_needs_a_newer_library_cannot_be_used(schema: str) -> None:
    in_schema(
        schema,
        "INSERT INTO {s}.migrations (number, name, oldest_library, checksum, applied_by) VALUES (99, 'x', '99.0.0', '', '')",
    )
    assert found(url_with(schema=schema), "schema").is_unusable


# ---------------------------------------------------------------------- rights


async def _with_roles(schema: str) -> None:
    make_roles(schema, open_store(url_with(schema=schema)).roles_sql())


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("migrator", "owns the tables"),
        ("worker", "what a worker does"),
        ("client", "what a client does"),
        ("reader", "only read"),
    ],
)
def test_it_says_what_the_role_is_good_for(schema: str, kind: str, words: str) -> None:
    asyncio.run(_with_roles(schema))
    finding = found(url_with(schema=schema, user=login_name(schema, kind)), "rights")
    assert finding.level == "ok"
    assert words in finding.text


def test_a_role_that_lacks_rights_is_told_which_and_where_they_come_from(schema: str) -> None:
    asyncio.run(_with_roles(schema))
    in_schema(
        schema,
        "REVOKE DELETE ON {s}.mailbox FROM " + f"{schema}_client; REVOKE SELECT ON {{s}}.journal FROM {schema}_client",
    )
    finding = found(url_with(schema=schema, user=login_name(schema, "client")), "rights")
    assert (finding.level, finding.is_unusable) == ("fail", True)
    assert finding.text == "this role lacks SELECT on journal; DELETE on mailbox"
    assert "onward migrate --roles" in finding.cure


def test_a_role_with_rights_and_without_a_policy_would_see_an_empty_database(schema: str) -> None:
    asyncio.run(_with_roles(schema))
    in_schema(schema, f"DROP POLICY {schema}_worker ON {{s}}.workflows")
    finding = found(url_with(schema=schema, user=login_name(schema, "worker")), "rights")
    assert (finding.level, finding.is_unusable) == ("fail", True)
    assert finding.text == "row-level security hides every row of workflows from this role"


# ---------------------------------------------------------------------- the server


def test_a_role_that_may_only_read_is_no_place_for_a_worker(schema: str) -> None:
    finding = found(url_with(schema=schema, options="-c default_transaction_read_only=on"), "server")
    assert finding.level == "fail"
    assert "lets this role read only" in finding.text


def test_a_standby_is_named_with_the_way_to_the_primary() -> None:
    with own_server() as primary:
        standby = primary.standby(primary.directory.with_name("standby"))
        finding = found(standby.url(), "server")
    assert "is a standby" in finding.text
    assert "target_session_attrs=read-write" in finding.cure


def test_commits_that_do_not_wait_for_the_disk_are_a_warning(schema: str) -> None:
    finding = found(url_with(schema=schema, options="-c synchronous_commit=off"), "durability")
    assert finding.level == "warn"
    assert "tx=" in finding.text


@pytest.mark.parametrize("name", ["fsync", "full_page_writes"])
def test_a_server_that_can_lose_data_fails(name: str) -> None:
    settings = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on", name: "off"}
    [finding] = condition.durability(settings)
    assert (finding.level, finding.cure) == ("fail", f"ALTER SYSTEM SET {name} = on; SELECT pg_reload_conf();")


def test_a_limit_of_connections_that_is_nearly_reached_is_told(schema: str) -> None:
    asyncio.run(_with_roles(schema))
    user = login_name(schema, "worker")
    with connection() as conn:
        conn.execute(f"ALTER ROLE {user} CONNECTION LIMIT 4".encode())
    url = url_with(schema=schema, user=user)
    with connection(user=user), connection(user=user):
        finding = found(url, "connections")
        assert (finding.level, finding.data["used"], finding.data["limit"]) == ("ok", 3, 4)
        with connection(user=user):
            finding = found(url, "connections")
    assert finding.level == "fail"
    assert "4 of 4 connections used (this role's CONNECTION LIMIT)" in finding.text


def test_a_long_transaction_is_named_with_its_process(schema: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(condition, "LONG_S", -1)
    with psycopg.connect(server_url(), application_name="report") as conn:
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        conn.execute("SELECT 1")
        finding = found(url_with(schema=schema), "horizon")
        pid = conn.info.backend_pid
    assert finding.level == "warn"
    assert f"pid {pid} (postgres, report, idle in transaction)" in finding.text


@pytest.mark.parametrize(
    ("what", "seconds", "age", "level"),
    [
        ("transaction", 299, 10**9, None),
        ("transaction", 301, 5, "warn"),
        ("transaction", 3601, 5, "fail"),
        ("prepared", 400, 5, "warn"),
        ("standby", 400, 5, "warn"),
        ("standby", None, 5, None),
        ("slot", None, 2_000_000, "warn"),
        ("idle slot", None, 2_000_000, "warn"),
        ("idle slot", None, 100, None),
    ],
)
def test_what_holds_vacuum_back_counts_by_its_age(what: str, seconds: int | None, age: int, level: str | None) -> None:
    finding = condition._holder(what, "x", seconds, age)
    assert (None if finding is None else finding.level) == level
    assert finding is None or finding.cure


def test_autovacuum_that_is_off_for_a_table_fails(schema: str) -> None:
    in_schema(schema, "ALTER TABLE {s}.workflows SET (autovacuum_enabled = false)")
    finding = found(url_with(schema=schema), "vacuum")
    assert (finding.level, finding.text) == ("fail", "autovacuum is off for workflows")


def test_many_dead_rows_and_a_coming_wraparound_are_told(schema: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def tables(*args: Any, **values: Any) -> Any:
        return [("workflows", 1000, 60_000, 7200, True, 5), ("journal", 100_000, 60_000, None, True, 1_600_000_000)]

    monkeypatch.setattr(condition, "ask_for", tables)
    database = open_store(url_with(schema=schema))._database  # type: ignore[attr-defined]
    dead, wraparound = asyncio.run(condition.tables(None, database, {}))  # type: ignore[arg-type]
    assert dead.text == f"{schema}.workflows has 60,000 dead rows beside 1,000 live ones (vacuumed 2 h ago)"
    assert wraparound.level == "fail"
    assert "last frozen 1,600,000,000 transactions ago" in wraparound.text


def test_a_clock_that_differs_is_told_and_which_way(schema: str) -> None:
    server = diagnosis.Server("18.0", 180000, "u", "d", 1, False, 1_000_000_000_000_000, 5, None, True, {})
    [behind] = diagnosis._clock(server, 1_000_000_000 - 3600, 0.01)
    assert behind.level == "warn"
    assert behind.text == "this machine's clock is 1 h behind the server's"
    [ahead] = diagnosis._clock(server, 1_000_000_000 + 60, 0.01)
    assert "ahead of the server's" in ahead.text
    [well] = diagnosis._clock(server, 1_000_000_000.5, 0.01)
    assert well.level == "ok"


def test_a_server_that_is_too_old_cannot_be_used(schema: str) -> None:
    with connection() as conn:
        server = diagnosis.Server("13.9", 130009, "u", "d", 1, False, 0, 5, None, True, {})
        [finding] = diagnosis._server(server, conn)  # type: ignore[arg-type]
    assert finding.is_unusable
    assert finding.cure == "Onward needs PostgreSQL 14 or newer"


# ---------------------------------------------------------------------- the way there


def test_poll_only_mode_without_a_pooler_is_a_warning(schema: str) -> None:
    finding = found(url_with(schema=schema, poll_only=1), "pooler")
    assert (finding.level, finding.data) == ("warn", {"pooler": None, "poll_only": True})


@contextmanager
def _living(schema: str) -> Iterator[None]:
    leases = open_store(url_with(schema=schema)).leases()
    leases.register(worker_row("w1"), 3_600_000_000)
    try:
        yield
    finally:
        leases.close()


def test_a_living_worker_is_proved_by_its_lock(schema: str) -> None:
    with _living(schema):
        work = look(url_with(schema=schema)).work
        assert work is not None
        assert work.proofs == {"w1": True}
    work = look(url_with(schema=schema)).work
    assert work is not None
    assert "w1" not in work.proofs or work.proofs["w1"] is False


async def test_a_look_reads_one_snapshot_and_waits_for_nobody(tmp_path: Path) -> None:
    world = PostgresWorld(tmp_path)
    try:
        store = await world.open()
        world.worker(store)
        await start(store, "b")
        await started_and_claimed(store, "a")
        async with await psycopg.AsyncConnection.connect(server_url()) as other:
            await other.execute(sql.SQL("SELECT 1 FROM {}.workflows FOR UPDATE").format(sql.Identifier(world.schema)))
            async with asyncio.timeout(20):
                work = (await store.diagnose()).work
        assert work is not None
        assert {group.status for group in work.groups} == {"pending", "running"}
    finally:
        await world.close()


def test_every_right_that_is_asked_for_is_of_a_table_that_there_is() -> None:
    tables = {own.name for own in own_objects() if own.kind == "table"}
    assert all(set(rights) <= tables for rights in RIGHTS.values())


@pytest.mark.parametrize(
    ("mode", "options", "level", "words"),
    [
        ("transaction", {}, "fail", "a pooler in transaction mode is in between"),
        ("transaction", {"poll_only": 1}, "ok", "poll-only mode behind a pooler in transaction mode"),
        ("session", {}, "ok", "a pooler in session mode is in between; notifications arrive"),
        ("session", {"poll_only": 1}, "warn", "poll-only mode behind a pooler in session mode"),
    ],
)
def test_a_pooler_and_its_mode_are_found_out(
    schema: str, mode: str, options: dict[str, int], level: str, words: str
) -> None:
    joined = "".join(f"&{name}={value}" for name, value in {"schema": schema, **options}.items())
    with pooler_to(server_url(), mode) as pooler:
        finding = found(f"{pooler.base_url}{joined}", "pooler")
    assert (finding.level, finding.data["pooler"]) == (level, mode)
    assert words in finding.text

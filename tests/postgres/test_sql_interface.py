"""The SQL functions: workflows started, signalled, cancelled and asked from plain SQL, in whatever transaction that runs."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from psycopg import errors, sql

from onward import Signal, WorkflowIdConflict, start, step, workflow
from onward._store.opening import open_store
from onward._store.postgres.objects import names_of
from onward._store.postgres.roles import SQL_INTERFACE
from onward._store.postgres.starts import same_arguments
from tests.engine.support import Lab
from tests.postgres.server import connection, drop_schema, new_schema, server_url, url_with

SIGNATURES = {
    "start": (
        (
            "type text, args json DEFAULT '{}'::json, id text DEFAULT NULL::text, queue text DEFAULT 'default'::text, "
            "priority integer DEFAULT 0, partition text DEFAULT NULL::text, delay interval DEFAULT NULL::interval, "
            "run_at timestamp with time zone DEFAULT NULL::timestamp with time zone, timeout interval DEFAULT NULL::interval, "
            "tags json DEFAULT NULL::json, max_attempts integer DEFAULT 5"
        ),
        "text",
    ),
    "signal": ("id text, name text, value json DEFAULT 'null'::json, token text DEFAULT NULL::text", "boolean"),
    "cancel": ("id text", "boolean"),
    "result": ("id text", "json"),
}
"""Programs in other languages call these: an addition goes behind the last parameter and has a default."""

OVERVIEW = (
    "id, type, queue, status, state, step, waiting_for, attempts, max_attempts, crashes, worker, parent_id, tags, progress, "
    "created_at, next_run_at, finished_at, error"
)
go = Signal("go", int)


@step
async def double(n: int) -> int:
    return 2 * n


@workflow
async def flow(n: int = 1, factor: float = 1.0) -> float:
    """One step."""
    return factor * await double(n)


@workflow
async def waits() -> int:
    """For a signal."""
    return await go.wait()


class Shell:
    """A psql of the tests: `{s}` in a statement is the schema."""

    def __init__(self, conn: psycopg.Connection[Any], schema: str) -> None:
        self.conn = conn
        self.schema = sql.Identifier(schema)

    def __call__(self, statement: str, *values: object) -> Any:
        """The first value of the first row."""
        cursor = self.conn.execute(sql.SQL(statement).format(s=self.schema), values)
        row = cursor.fetchone() if cursor.description else None
        return None if row is None else row[0]


@contextmanager
def shell(lab: Lab, **options: Any) -> Iterator[Shell]:
    """Commits each statement by itself."""
    assert lab.schema is not None
    with connection(**options) as conn:
        yield Shell(conn, lab.schema)


async def ended(lab: Lab, workflow_id: str) -> Any:
    """Wait for the end; what `result` says then."""
    await lab.in_status(workflow_id, "completed", "failed", "cancelled")
    with shell(lab) as ask:
        return ask("SELECT {s}.result(%s)", workflow_id)


async def test_the_signatures_stay_as_they_are(lab: Lab) -> None:
    with connection() as conn:
        rows = conn.execute(
            "SELECT p.proname, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid), p.prosecdef, p.proconfig::text "
            "FROM pg_proc AS p WHERE p.pronamespace = %s::regnamespace AND p.proname = ANY (%s)",
            (lab.schema, list(SIGNATURES)),
        ).fetchall()
    assert {name: (arguments, result) for name, arguments, result, *_ in rows} == SIGNATURES
    assert {(is_definer, config) for *_, is_definer, config in rows} == {(True, '{"search_path=pg_catalog, pg_temp"}')}
    types = {name: re.sub(r" with time zone", "tz", arguments) for name, (arguments, _) in SIGNATURES.items()}
    for name, parameters in SQL_INTERFACE.items():
        shown = [one.split(" DEFAULT")[0].split(" ", 1)[1] for one in types[name].split(", ")]
        assert ", ".join(shown) == parameters


async def test_the_columns_of_the_overview_stay_as_they_are(lab: Lab) -> None:
    with shell(lab) as ask:
        cursor = ask.conn.execute(sql.SQL("SELECT * FROM {}.overview").format(ask.schema))
    assert ", ".join(column.name for column in cursor.description or ()) == OVERVIEW


@pytest.mark.parametrize(
    ("args", "result"),
    [("{}", 2.0), ('{"n": 4}', 8.0), ("[4, 0.5]", 4.0), ('{"factor": 3, "n": 2}', 12.0)],
)
async def test_a_worker_runs_what_sql_has_started_and_sql_reads_the_result(lab: Lab, args: str, result: float) -> None:
    with shell(lab) as ask:
        workflow_id = ask("SELECT {s}.start('flow', %s::json)", args)
        assert ask("SELECT {s}.result(%s)", workflow_id) == {"id": workflow_id, "status": "pending"}
        async with lab.working(flow):
            assert await ended(lab, workflow_id) == {"id": workflow_id, "status": "completed", "result": result}
        assert ask("SELECT step FROM {s}.overview WHERE id = %s", workflow_id) == "double"
        assert ask("SELECT state FROM {s}.overview WHERE id = %s", workflow_id) == "completed"


async def test_an_id_that_is_made_is_a_uuid_that_sorts_by_time(lab: Lab) -> None:
    with shell(lab) as ask:
        made = uuid.UUID(ask("SELECT {s}.start('flow')"))
    assert made.version == 7
    assert abs((made.int >> 80) / 1000 - datetime.now(UTC).timestamp()) < 600


async def test_result_tells_of_a_failure_and_of_nothing(lab: Lab) -> None:
    @workflow(max_attempts=1)
    async def fails() -> None:
        raise ValueError("no luck")

    with shell(lab) as ask:
        workflow_id = ask("SELECT {s}.start('fails', max_attempts => 1)")
        async with lab.working(fails):
            assert await ended(lab, workflow_id) == {
                "id": workflow_id, "status": "failed", "error": {"type": "ValueError", "message": "no luck"},
            }  # fmt: skip
        assert ask("SELECT {s}.result('nobody')") is None


async def test_a_worker_hears_of_a_start_at_its_commit_and_of_none_before(lab: Lab) -> None:
    async with lab.running(flow) as client:
        with shell(lab) as ask, ask.conn.transaction():
            workflow_id = ask("SELECT {s}.start('flow', '[5]')")
            assert await lab.store.get(workflow_id) is None
        assert await client.handle(workflow_id, flow).result(timeout=10) == 10


@pytest.mark.parametrize("call", ["start('flow')", "signal('x', 'go')", "cancel('x')"])
async def test_each_commit_tells_the_workers_once_and_a_rollback_nobody(lab: Lab, call: str) -> None:
    with shell(lab) as ask, connection() as listener:
        ask("SELECT {s}.start('flow', id => 'x')")
        listener.execute(sql.SQL("LISTEN {}").format(sql.Identifier(f"onward:{lab.schema}")))
        with ask.conn.transaction(force_rollback=True):
            ask(f"SELECT {{s}}.{call}")
        with ask.conn.transaction():
            ask(f"SELECT {{s}}.{call}")
            ask(f"SELECT {{s}}.{call}")
            listener.execute("SELECT 1")
            assert list(listener.notifies(timeout=0)) == []
        assert [news.channel for news in listener.notifies(timeout=20, stop_after=1)] == [f"onward:{lab.schema}"]
        listener.execute("SELECT 1")
        assert list(listener.notifies(timeout=0)) == []


async def test_a_start_that_is_rolled_back_was_never_there(lab: Lab) -> None:
    with shell(lab) as ask:
        with ask.conn.transaction(force_rollback=True):
            workflow_id = ask("SELECT {s}.start('flow', id => 'x')")
            assert ask("SELECT {s}.result(%s)", workflow_id) == {"id": "x", "status": "pending"}
        assert ask("SELECT {s}.result(%s)", workflow_id) is None


async def test_a_trigger_starts_a_workflow_for_each_row_that_is_committed(lab: Lab) -> None:
    with shell(lab) as ask:
        ask("CREATE TABLE {s}.orders (id integer PRIMARY KEY)")
        ask(
            "CREATE FUNCTION {s}.on_order() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "PERFORM {s}.start('flow', json_build_object('n', NEW.id), id => 'order-' || NEW.id); RETURN NULL; END $$"
        )
        ask("CREATE TRIGGER t AFTER INSERT ON {s}.orders FOR EACH ROW EXECUTE FUNCTION {s}.on_order()")
        async with lab.running(flow) as client:
            ask("INSERT INTO {s}.orders VALUES (1), (2)")
            with ask.conn.transaction(force_rollback=True):
                ask("INSERT INTO {s}.orders VALUES (3)")
            for n in (1, 2):
                assert await client.handle(f"order-{n}", flow).result(timeout=10) == 2 * n
            assert await lab.store.get("order-3") is None


async def test_signals_are_delivered_at_the_commit_each_token_once(lab: Lab) -> None:
    @workflow
    async def takes_two() -> list[int]:
        return [await go.wait(), await go.wait()]

    async with lab.running(takes_two) as client:
        handle = await client.start(takes_two)
        await lab.parked(handle, on="go")
        with shell(lab) as ask:
            with ask.conn.transaction(force_rollback=True):
                assert ask("SELECT {s}.signal(%s, 'go', '0')", handle.id)
            with ask.conn.transaction():
                assert ask("SELECT {s}.signal(%s, 'go', '1', 'a')", handle.id)
                assert ask("SELECT {s}.signal(%s, 'go', '1', 'a')", handle.id)
            ask("SELECT {s}.signal(%s, 'go', '1', token => 'a')", handle.id)
            ask("SELECT {s}.signal(%s, 'go', to_json(2))", handle.id)
            assert await handle.result(timeout=10) == [1, 2]
            assert ask("SELECT {s}.signal(%s, 'go', '3')", handle.id) is False
            with pytest.raises(errors.NoDataFound, match="no workflow 'nobody'"):
                ask("SELECT {s}.signal('nobody', 'go')")


async def test_a_workflow_is_started_and_signalled_in_one_transaction(lab: Lab) -> None:
    with shell(lab) as ask, ask.conn.transaction():
        workflow_id = ask("SELECT {s}.start('waits')")
        assert ask("SELECT {s}.signal(%s, 'go', '7')", workflow_id)
    async with lab.working(waits):
        assert (await ended(lab, workflow_id))["result"] == 7


async def test_cancel_ends_what_runs_and_what_never_began(lab: Lab) -> None:
    async with lab.running(waits) as client:
        handle = await client.start(waits)
        await lab.parked(handle, on="go")
        with shell(lab) as ask:
            assert ask("SELECT {s}.cancel(%s)", handle.id) is True
            assert (await ended(lab, handle.id))["status"] == "cancelled"
            assert ask("SELECT {s}.cancel(%s)", handle.id) is False
            unbegun = ask("SELECT {s}.start('waits', delay => interval '1 hour')")
            assert ask("SELECT {s}.cancel(%s)", unbegun) is True
            assert ask("SELECT {s}.result(%s)", unbegun)["error"]["message"] == "cancelled before it began"
            with pytest.raises(errors.NoDataFound, match="no workflow 'nobody'"):
                ask("SELECT {s}.cancel('nobody')")


async def test_all_options_of_a_start_are_kept(lab: Lab) -> None:
    at = datetime(2090, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    with shell(lab) as ask:
        ask(
            "SELECT {s}.start('flow', '[1]', 'x', queue => 'mail', priority => -3, partition => 'eu', run_at => %s, "
            "timeout => interval '90 seconds', tags => '{{\"team\": \"a\"}}', max_attempts => 2)",
            at,
        )
        ask("SELECT {s}.start('flow', id => 'y', delay => interval '2 hours')")
    row = await lab.store.get("x")
    assert row is not None
    assert (row.queue, row.priority, row.partition, row.max_attempts, row.tags) == (
        "mail",
        -3,
        "eu",
        2,
        '{"team": "a"}',
    )
    assert row.next_run_at == int(at.timestamp()) * 1_000_000 + at.microsecond
    later = await lab.store.get("y")
    assert later is not None
    assert later.next_run_at == later.created_at + 2 * 3600 * 1_000_000
    with shell(lab) as ask:
        assert ask("SELECT timeout_us FROM {s}.workflows WHERE id = 'x'") == 90_000_000


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("start(NULL)", "type must be .*, not null"),
        ("start('a/b')", "type must be .* without / and #, not 'a/b'"),
        ("start('flow', id => 'a/b')", "id must be .* without /, not 'a/b'"),
        ("start('flow', id => '')", "id must be 1 to 200"),
        ("start('flow', queue => NULL)", "queue must be .*, not null"),
        ("start('flow', partition => E'a\\nb')", "partition must be 1 to 200 printable"),
        ("start('flow', NULL)", "args must be a JSON object .*, not null"),
        ("start('flow', '3')", "args must be a JSON object .*, not number"),
        ("start('flow', json_build_array(repeat('x', 2000000)))", "args take 2000004 bytes, more than the 2000000"),
        ("start('flow', tags => '[]')", "tags must be a JSON object of strings"),
        ("start('flow', tags => '{{\"a\": 1}}')", "tags must be a JSON object of strings"),
        ("start('flow', max_attempts => 0)", "max_attempts must lie between"),
        ("start('flow', delay => '1 s', run_at => now())", "not both"),
        ("start('flow', delay => '-1 s')", "no negative delay"),
        ("start('flow', timeout => '0 s')", "timeout must be longer"),
        ("signal('x', 'a/b')", "name must be"),
        ("signal('x', 'a', to_json(repeat('x', 2000000)))", "value takes 2000002 bytes"),
    ],
)
async def test_what_cannot_be_is_refused_with_the_value_and_the_rule(lab: Lab, call: str, message: str) -> None:
    with shell(lab) as ask, pytest.raises(errors.InvalidParameterValue, match=message):
        ask(f"SELECT {{s}}.{call}")


# ---------------------------------------------------------------------- one id, one call


async def test_the_same_start_again_is_the_same_workflow_and_another_one_is_refused(lab: Lab) -> None:
    with shell(lab) as ask:
        for args in ('{"n": 1, "factor": 2}', '{"factor": 2.0, "n": 1}', "[1, 2]"):
            assert ask("SELECT {s}.start('flow', %s::json, id => 'x')", args) == "x"
        assert ask("SELECT count(*) FROM {s}.workflows") == 1
        for kind, args in (("flow", '{"n": 2, "factor": 2}'), ("flow", '{"n": 1}'), ("other", '{"n": 1, "factor": 2}')):
            with pytest.raises(errors.UniqueViolation, match="there is a workflow 'x' already, of type 'flow'"):
                ask("SELECT {s}.start(%s, %s::json, id => 'x')", kind, args)


async def test_what_python_has_started_is_found_from_sql_and_the_other_way_round(lab: Lab) -> None:
    async with lab.client() as client:
        await client.start(flow.using(id="python"), 3, factor=0.5)
        with shell(lab) as ask:
            assert ask("SELECT {s}.start('flow', '[3, 0.5]', id => 'python')") == "python"
            assert ask("SELECT {s}.start('flow', '{{\"factor\": 0.5, \"n\": 3}}', id => 'python')") == "python"
            with pytest.raises(errors.UniqueViolation):
                ask("SELECT {s}.start('flow', '[4, 0.5]', id => 'python')")
            ask("SELECT {s}.start('flow', '[3, 1]', id => 'sql')")
        assert (await client.start(flow.using(id="sql"), 3, 1.0)).id == "sql"
        assert (await client.start(flow.using(id="sql"), n=3, factor=1)).id == "sql"
        with pytest.raises(WorkflowIdConflict):
            await client.start(flow.using(id="sql"), 3, 2.0)
        with pytest.raises(WorkflowIdConflict):
            await client.start(waits.using(id="sql"))


async def test_a_workflow_awaits_one_that_sql_has_started(lab: Lab) -> None:
    @workflow
    async def parent() -> float:
        handle = await start(flow.using(id="shared"), 21)
        return await handle

    with shell(lab) as ask:
        ask("SELECT {s}.start('flow', '[21]', id => 'shared')")
    async with lab.running(parent) as client:
        handle = await client.start(parent)
        await lab.parked(handle)
        async with lab.working(flow):
            assert await handle.result(timeout=10) == 42


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ('{"a": 1, "b": [true]}', '{"b": [true], "a": 1.0}', True),
        ('{"a": 1, "b": 2}', "[1, 2]", True),
        ('{"a": 1, "b": 2}', "[2, 1]", False),
        ("[1]", '{"a": 1, "b": 2}', False),
        ("[]", "{}", True),
        ("[1]", "[true]", False),
        ('{"a": null}', "{}", False),
        ('["1"]', "[1]", False),
        ('[{"a": [0]}]', '[{"a": [false]}]', False),
    ],
)
async def test_sql_and_python_agree_on_what_the_same_arguments_are(
    lab: Lab, one: str, other: str, is_same: bool
) -> None:
    assert same_arguments(one, other) is is_same
    assert same_arguments(other, one) is is_same
    with shell(lab) as ask:
        assert ask("SELECT {s}.same_arguments(%s::json, %s::json)", one, other) is is_same
        assert ask("SELECT {s}.same_arguments(%s::json, %s::json)", other, one) is is_same


async def test_of_two_transactions_that_start_one_id_the_second_waits_and_finds_the_first(lab: Lab) -> None:
    assert lab.schema is not None
    place = sql.Identifier(lab.schema)
    async with (
        await psycopg.AsyncConnection.connect(server_url()) as one,
        await psycopg.AsyncConnection.connect(server_url()) as two,
    ):
        same = sql.SQL("SELECT {}.start('flow', id => 'x')").format(place)
        await one.execute(same)
        second = asyncio.create_task(two.execute(same))
        await lab.until(lambda: _waits(two.info.backend_pid))
        await one.commit()
        assert await (await second).fetchone() == ("x",)
        await two.commit()
    with shell(lab) as ask:
        assert ask("SELECT count(*) FROM {s}.workflows") == 1


async def _waits(pid: int) -> bool:
    with connection() as conn:
        row = conn.execute("SELECT wait_event_type FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchone()
    return row == ("Lock",)


# ---------------------------------------------------------------------- places and rights


async def test_nothing_that_lies_in_the_callers_search_path_is_ever_called(lab: Lab) -> None:
    with shell(lab) as ask:
        ask(
            "CREATE FUNCTION {s}.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE 'caught'; END $$"
        )
        ask("CREATE FUNCTION {s}.json_typeof(json) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'caught'; END $$")
        ask("SET search_path = {s}, pg_catalog")
        workflow_id = ask("SELECT {s}.start('flow', '[]', 'x', delay => interval '1 hour')")
        assert ask("SELECT {s}.signal(%s, 'go')", workflow_id)
        assert ask("SELECT {s}.cancel(%s)", workflow_id)
        assert ask("SELECT {s}.result(%s)", workflow_id)["status"] == "cancelled"


@contextmanager
def role(name: str) -> Iterator[str]:
    """A user without rights."""
    with connection() as conn:
        conn.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
        try:
            yield name
        finally:
            conn.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
            conn.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


async def test_a_user_calls_what_was_granted_to_it_and_reads_no_table(lab: Lab) -> None:
    with role(f"{lab.schema}_web") as name, shell(lab) as admin, shell(lab, user=name) as ask:
        with pytest.raises(errors.InsufficientPrivilege):
            ask("SELECT {s}.start('flow')")
        admin(f"GRANT USAGE ON SCHEMA {{s}} TO {name}")
        with pytest.raises(errors.InsufficientPrivilege):
            ask("SELECT {s}.start('flow')")
        admin(f"GRANT EXECUTE ON FUNCTION {{s}}.start, {{s}}.signal TO {name}")
        workflow_id = ask("SELECT {s}.start('flow')")
        assert ask("SELECT {s}.signal(%s, 'go')", workflow_id)
        for refused in (
            "SELECT {s}.cancel('x')",
            "SELECT {s}.result('x')",
            "SELECT id FROM {s}.workflows",
            "SELECT id FROM {s}.overview",
        ):
            with pytest.raises(errors.InsufficientPrivilege):
                ask(refused)
        admin(f"GRANT SELECT ON ALL TABLES IN SCHEMA {{s}} TO {name}")  # no policy lets it see a row, the view neither
        assert ask("SELECT count(*) FROM {s}.workflows") == 0
        assert ask("SELECT count(*) FROM {s}.overview") == 0
        assert admin("SELECT count(*) FROM {s}.overview") == 1


async def test_what_supabase_grants_its_web_roles_by_default_is_taken_back(lab: Lab) -> None:
    """There, every table and function of the schema `public` is granted to `anon`, by default privileges."""
    schema = new_schema()
    with role("anon") as name, connection() as admin:
        try:
            admin.execute(f"CREATE SCHEMA {schema}; GRANT USAGE ON SCHEMA {schema} TO {name}".encode())
            for what in ("TABLES", "FUNCTIONS"):
                admin.execute(f"ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT ALL ON {what} TO {name}".encode())
            store = open_store(url_with(schema=schema))
            await store.open()
            await store.close()
            with connection(user=name) as conn:
                ask = Shell(conn, schema)
                for refused in ("start('flow')", "signal('x', 'go')", "cancel('x')", "result('x')"):
                    with pytest.raises(errors.InsufficientPrivilege):
                        ask(f"SELECT {{s}}.{refused}")
                for table in (*names_of("table"), *names_of("view")):
                    with pytest.raises(errors.InsufficientPrivilege):
                        ask(f"SELECT 1 FROM {{s}}.{table}")
        finally:
            drop_schema(schema)

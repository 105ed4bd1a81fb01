"""A rolling upgrade: the release before goes on working, beside the new one, on a schema that was only expanded.

The new release is this library with one more migration, which it alone knows; the old one is this library as it is. The upgrade
that PostgreSQL has behind it, from its first schema to its second, is in test_rolling_upgrade_postgres.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import psycopg
import pytest

from onward import AsyncClient, Retry, SchemaError, Signal, step, workflow
from onward._store.opening import open_store
from onward._store.postgres import migrations as postgres_migrations
from onward._store.postgres.address import parse_address
from onward._store.postgres.database import Database
from onward._store.schema import Migration
from onward._store.sqlite import claims, facts, journal, leases, pruning, reads, starts, wakes, within
from onward._store.sqlite import migrations as sqlite_migrations
from onward._version import __version__
from tests.engine.support import MODES, Lab, wait_for

go = Signal("go", str)

KNOWN: dict[str, list[Migration]] = {
    "sqlite": sqlite_migrations.known_migrations(),
    "postgres": postgres_migrations.known_migrations(),
}
EXPANSION = {
    "sqlite": """\
-- oldest library: {oldest}
ALTER TABLE onward_workflows ADD COLUMN region TEXT;
ALTER TABLE onward_workflows ADD COLUMN weight INTEGER NOT NULL DEFAULT 1;
ALTER TABLE onward_journal ADD COLUMN cost INTEGER;
ALTER TABLE onward_mailbox ADD COLUMN source TEXT;
ALTER TABLE onward_waiters ADD COLUMN reason TEXT;
ALTER TABLE onward_step_retries ADD COLUMN worker TEXT;
ALTER TABLE onward_workers ADD COLUMN library TEXT NOT NULL DEFAULT '';
ALTER TABLE onward_prunings ADD COLUMN asked_by TEXT;
CREATE TABLE onward_streams (workflow_id TEXT NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (workflow_id, seq)) STRICT;
CREATE INDEX onward_workflows_region ON onward_workflows (region, queue, priority, next_run_at) WHERE region IS NOT NULL;
DROP VIEW onward_overview;
CREATE VIEW onward_overview AS SELECT id, type, status, region FROM onward_workflows;
""",
    "postgres": """\
-- oldest library: {oldest}
ALTER TABLE onward.workflows ADD COLUMN region text, ADD COLUMN weight integer NOT NULL DEFAULT 1;
ALTER TABLE onward.journal ADD COLUMN cost integer;
ALTER TABLE onward.mailbox ADD COLUMN source text;
ALTER TABLE onward.outbox ADD COLUMN source text;
ALTER TABLE onward.waiters ADD COLUMN reason text;
ALTER TABLE onward.step_retries ADD COLUMN worker text;
ALTER TABLE onward.workers ADD COLUMN library text NOT NULL DEFAULT '';
ALTER TABLE onward.moving ADD COLUMN asked_by text;
CREATE TABLE onward.streams (workflow_id text COLLATE "C" NOT NULL, seq integer NOT NULL, PRIMARY KEY (workflow_id, seq));
CREATE INDEX workflows_region ON onward.workflows (region, queue, priority, next_run_at) WHERE region IS NOT NULL;
DROP VIEW onward.overview;
CREATE VIEW onward.overview AS SELECT id, type, status, region FROM onward.workflows;
""",
}


@pytest.fixture(params=list(KNOWN))
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Lab:
    """An empty database of a kind that outlives a process."""
    return Lab(MODES[request.param], tmp_path / "onward.db")


@contextlib.contextmanager
def new_release(lab: Lab, oldest: str = __version__) -> Iterator[None]:
    """Inside, this library is the new release."""
    store, known = lab.mode.store, KNOWN[lab.mode.store]
    sql = EXPANSION[store].format(oldest=oldest)
    expansion = Migration(len(known) + 1, "regions", oldest, hashlib.sha256(sql.encode()).hexdigest(), sql)
    with mock.patch(f"onward._store.{store}.migrations.known_migrations", return_value=[*known, expansion]):
        yield


async def expand(lab: Lab, oldest: str = __version__) -> None:
    """The new release migrates the database."""
    with new_release(lab, oldest):
        store = open_store(lab.url, lab.clock)
        await store.open()
        await store.close()


def numbers(lab: Lab) -> list[int]:
    """The migrations of the database."""
    return [number for (number,) in lab.sql("SELECT number FROM onward_migrations ORDER BY number")]


def make_table(lab: Lab) -> str:
    """A table of the application's own, beside Onward's."""
    lab.sql("CREATE TABLE booked (name TEXT)")
    return "booked" if lab.schema is None else f"{lab.schema}.booked"


@step(transactional=True)
def book(conn: Any, table: str, name: str) -> str:
    """Writes in the step's own transaction."""
    conn.execute(f"INSERT INTO {table} VALUES ('{name}')")
    return name


@step
async def plain(name: str) -> str:
    """The plainest step."""
    return name


@workflow
async def sleeper(name: str, table: str) -> str:
    """Sleeps for an hour between two steps."""
    first = await plain(name)
    await asyncio.sleep(3600)
    return first + await book(table, name)


@workflow
async def waiter(name: str) -> str:
    """Waits for a signal."""
    return await plain(name) + await go.wait()


@workflow
async def parent(name: str) -> str:
    """Waits for a child that waits."""
    return await waiter.using(id=f"{name}-child")(name)


async def test_workers_and_clients_of_the_old_release_go_on_while_the_schema_is_expanded_under_them(
    lab: Lab,
) -> None:
    started, go_on, tries = asyncio.Event(), asyncio.Event(), 0

    @step
    async def slow() -> str:
        started.set()
        await wait_for(go_on)
        return "slow"

    @step(retry=Retry(tries=3, delay=3600))
    async def unlucky() -> str:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise OSError("down")
        return "lucky"

    @workflow
    async def running() -> str:
        return await slow() + await plain("!")

    @workflow
    async def retrying() -> str:
        return await unlucky()

    @workflow(max_attempts=3)
    async def failing() -> str:
        if lab.clock.now_us() < later:
            raise OSError("not yet")
        return "at last"

    later = lab.clock.now_us() + 1_000_000_000
    table = make_table(lab)
    async with lab.running(sleeper, waiter, parent, running, retrying, failing) as client:
        handles = [
            await client.start(bound)
            for bound in (
                sleeper.using(id="sleeper").bind("a", table),
                waiter.using(id="waiter").bind("b"),
                parent.using(id="parent").bind("c"),
                running.using(id="running").bind(),
                retrying.using(id="retrying").bind(),
                failing.using(id="failing").bind(),
                sleeper.using(id="delayed", delay=7200).bind("d", table),
            )
        ]
        await wait_for(started)
        for name in ("sleeper", "waiter", "parent", "c-child", "retrying"):
            await lab.parked(name)
        await lab.backing_off("failing")
        await expand(lab)
        assert numbers(lab) == [
            *(migration.number for migration in KNOWN[lab.mode.store]),
            len(KNOWN[lab.mode.store]) + 1,
        ]
        go_on.set()
        await client.signal("waiter", go, "x")
        with new_release(lab):
            async with lab.client() as other:  # the new release's client, the old one's worker
                await other.signal("c-child", go, "y")
                await other.start(waiter.using(id="young"), "e")
                assert await other.handle("running").result(timeout=10) == "slow!"
        await client.signal("young", go, "z")
        handles.append(client.handle("young", waiter))
        lab.clock.advance(7200)
        await lab.parked("delayed", on="sleep")  # it begins only now
        lab.clock.advance(3600)
        results = [await handle.result(timeout=10) for handle in handles]
    assert results == ["aa", "bx", "cy", "slow!", "lucky", "at last", "dd", "ez"]
    assert sorted(lab.sql("SELECT name FROM booked")) == [("a",), ("d",)]
    assert lab.sql("SELECT DISTINCT weight, region FROM onward_workflows") == [(1, None)]


async def test_workers_of_both_releases_drain_one_queue_and_run_each_body_once(lab: Lab) -> None:
    bodies: list[str] = []

    @step
    async def count(name: str) -> str:
        bodies.append(name)
        return name

    @workflow
    async def three(name: str) -> list[str]:
        return [await count(f"{name}-{n}") for n in range(3)]

    await expand(lab)
    async with lab.client() as client:
        handles = await client.start_many(three.using(id=f"w{n}").bind(f"w{n}") for n in range(60))
        async with lab.working(three, slots=3):
            with new_release(lab):
                async with lab.working(three, slots=3):
                    for n, handle in enumerate(handles):
                        assert await handle.result(timeout=10) == [f"w{n}-0", f"w{n}-1", f"w{n}-2"]
    assert sorted(bodies) == sorted(f"w{n}-{k}" for n in range(60) for k in range(3))


async def test_what_one_release_leaves_in_the_middle_the_other_one_finishes(lab: Lab) -> None:
    table = make_table(lab)
    await expand(lab)
    async with lab.client() as client:
        first = await client.start(sleeper.using(id="first"), "a", table)
        async with lab.working(sleeper, waiter):
            await lab.parked(first)
        with new_release(lab):
            second = await client.start(sleeper.using(id="second"), "b", table)
            lab.clock.advance(3601)
            async with lab.working(sleeper, waiter):
                assert await first.result(timeout=10) == "aa"
                await lab.parked(second)
        lab.clock.advance(3601)
        async with lab.working(sleeper, waiter):
            assert await second.result(timeout=10) == "bb"


async def test_what_operators_do_works_with_the_old_release_too(lab: Lab) -> None:
    await expand(lab)
    async with lab.running(waiter) as client:
        handle = await client.start(waiter.using(id="w"), "a")
        await lab.parked(handle)
        assert [info.id for info in await client.list(status="waiting")] == ["w"]
        await handle.cancel()
        await lab.in_status(handle, "cancelled")
        assert await handle.retry()
        await client.signal(handle, go, "b")
        assert await handle.result(timeout=10) == "ab"
        assert len(await handle.journal()) > 2
        lab.clock.advance(1)
        assert (await client.repair.prune(0)).workflows == 1
    diagnosis = await lab.store.diagnose()
    assert {finding.level for finding in diagnosis.findings if finding.check in ("schema", "integrity")} == {"ok"}


async def test_a_schema_that_has_left_the_old_release_behind_refuses_it_and_says_why(lab: Lab) -> None:
    await expand(lab, oldest="99.1.0")
    words = rf"schema {len(KNOWN[lab.mode.store]) + 1} \(regions\), which needs onward >= 99\.1\.0; this is onward {__version__}: upgrade it"
    with pytest.raises(SchemaError, match=words):
        async with lab.worker(waiter):
            pass
    with pytest.raises(SchemaError, match=words):
        await AsyncClient(lab.url).counts()
    with pytest.raises(SchemaError, match=words):
        async with AsyncClient(lab.url, _migrate=False):
            pass
    assert lab.sql("SELECT count(*) FROM onward_workers") == [(0,)]
    assert len(numbers(lab)) == len(KNOWN[lab.mode.store]) + 1


async def test_every_statement_of_the_old_release_fits_the_new_schema_and_keeps_its_plan(lab: Lab) -> None:
    plans = {"sqlite": sqlite_plans, "postgres": postgres_plans}[lab.mode.store]
    before = plans(lab)
    await expand(lab)
    after = plans(lab)
    assert sum(map(bool, before.values())) > 60
    assert after == before


Plans = dict[str, list[str]]
ACCESS = re.compile(r"(Index|Seq|Bitmap|Tid).* Scan|Index Cond|(Insert|Update|Delete) on |Disabled: ")


def sqlite_plans(lab: Lab) -> Plans:
    modules = (claims, facts, journal, leases, pruning, reads, starts, wakes, within)
    statements = {f"{module.__name__}.{name}": sql for module in modules for name, sql in module.SQL.items()}
    with contextlib.closing(sqlite3.connect(lab.path)) as conn:
        return {name: sqlite_plan(conn, sql) for name, sql in statements.items()}


def sqlite_plan(conn: sqlite3.Connection, sql: str) -> list[str]:
    params = dict.fromkeys(re.findall(r":([a-z_]+)", sql), "[]")
    return [detail for *_, detail in conn.execute(f"EXPLAIN QUERY PLAN {sql}", params)]


def postgres_plans(lab: Lab) -> Plans:
    """How each reaches its tables, in a session pinned as the store's are; commands have no plan."""
    database, plans = Database(parse_address(lab.url)), {}
    with psycopg.connect(**database.parameters) as conn:
        conn.execute(database.sql["pin_session"].sql().encode())
        for name, statement in database.sql.items():
            if not re.match(r"\s*(SELECT|WITH|INSERT|UPDATE|DELETE)\b", statement.text):
                continue
            conn.execute(f"PREPARE one AS {statement.sql()}".encode())
            values = f"({', '.join(['NULL'] * len(statement.parameters))})" if statement.parameters else ""
            lines = [line.strip() for (line,) in conn.execute(f"EXPLAIN (COSTS OFF) EXECUTE one {values}".encode())]
            plans[name] = [line for line in lines if ACCESS.search(line)]
            conn.execute("DEALLOCATE one")
    return plans

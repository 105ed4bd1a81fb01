"""The upgrade that PostgreSQL has behind it: a release that knows the first schema alone works on while the later ones are
made.

The old release is this library without its later migrations, and with the one statement that came to need it as it was before:
it compared what was started by digest, for nothing could be started by SQL yet. The new release is this library as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from onward import SchemaError, Signal, WorkflowIdConflict, step, workflow
from onward._store.opening import open_store
from onward._store.postgres import statements
from onward._store.postgres.migrations import known_migrations
from onward._store.statements import load_statements
from tests.engine.support import MODES, Lab, wait_for

FIRST = known_migrations()[:1]
NUMBERS = [migration.number for migration in known_migrations()]
ADDED = " OR (w.digest LIKE 'sql:%' AND onward.same_arguments(w.payload, r.payload::json))"
go = Signal("go", str)


def old_statements(package: str, file: str) -> dict[str, str]:
    """The statements of the old release."""
    return {name: text.replace(ADDED, "") for name, text in load_statements(package, file).items()}


@contextlib.contextmanager
def old_release() -> Iterator[None]:
    """Inside, this library is the old release; what is made in it stays so."""
    with (
        mock.patch("onward._store.postgres.migrations.known_migrations", return_value=FIRST),
        mock.patch("onward._store.postgres.statements.load_statements", old_statements),
    ):
        yield


class OldLab(Lab):
    """A database that the old release has made, with the first schema."""

    def __init__(self, path: Path) -> None:
        with old_release():
            super().__init__(MODES["postgres"], path)

    async def open(self) -> None:
        with old_release():
            await super().open()

    async def upgrade(self) -> None:
        """The new release migrates it."""
        store = open_store(self.url, self.clock)
        await store.open()
        await store.close()

    def numbers(self) -> list[int]:
        """The migrations of the database."""
        return [number for (number,) in self.sql("SELECT number FROM onward_migrations ORDER BY number")]


@pytest.fixture
def lab(tmp_path: Path) -> OldLab:
    return OldLab(tmp_path / "onward.db")


@step
async def plain(name: str) -> str:
    """The plainest step."""
    return name


@workflow
async def waiter(name: str) -> str:
    """Waits for a signal."""
    return await plain(name) + await go.wait()


@workflow
async def sleeper(name: str) -> str:
    """Sleeps for an hour between two steps."""
    first = await plain(name)
    await asyncio.sleep(3600)
    return first + await plain(name)


def test_the_old_release_needs_nothing_of_the_second_schema() -> None:
    added = ("same_arguments", "random_hex", "tell_workers", "onward.start(", "onward.signal(", "onward.cancel(")
    for file in statements.FILES:
        for name, text in old_statements(statements.PACKAGE, file).items():
            assert not [word for word in added if word in text], name
    assert any(ADDED in text for text in load_statements(statements.PACKAGE, "starts").values())


async def test_workflows_in_flight_under_the_old_release_end_beside_the_second_schema(lab: OldLab) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    @step
    async def slow() -> str:
        started.set()
        await wait_for(go_on)
        return "slow"

    @workflow
    async def running() -> str:
        return await slow() + await plain("!")

    with old_release():
        client = lab.client()
        old_worker = lab.working(waiter, sleeper, running)
        await client.__aenter__()
        await old_worker.__aenter__()
    async with contextlib.AsyncExitStack() as ends:
        ends.push_async_exit(client)
        ends.push_async_exit(old_worker)
        handles = [
            await client.start(waiter.using(id="waiter"), "a"),
            await client.start(sleeper.using(id="sleeper"), "b"),
            await client.start(running.using(id="running")),
        ]
        await wait_for(started)
        await lab.parked("waiter")
        await lab.parked("sleeper")
        assert lab.numbers() == [1]
        await lab.upgrade()
        assert lab.numbers() == NUMBERS
        go_on.set()
        # What only the new schema has, to the old release's worker: SQL starts a workflow and signals another.
        lab.sql(f"SELECT {lab.schema}.signal('waiter', 'go', '\"x\"')")
        lab.sql(f"SELECT {lab.schema}.start('sleeper', '[\"c\"]', id => 'by-sql')")
        handles.append(client.handle("by-sql", sleeper))
        assert await handles[2].result(timeout=10) == "slow!"
        await lab.parked("by-sql", on="sleep")
        # The same id again, by a client of the old release: the workflow that it has started itself, and a conflict else.
        assert (await client.start(sleeper.using(id="sleeper"), "b")).id == "sleeper"
        with pytest.raises(WorkflowIdConflict):
            await client.start(sleeper.using(id="sleeper"), "other")
        lab.clock.advance(3600)
        assert [await handle.result(timeout=10) for handle in handles] == ["ax", "bb", "slow!", "cc"]


async def test_what_the_old_release_leaves_in_the_middle_the_new_one_finishes(lab: OldLab) -> None:
    with old_release():
        async with lab.running(waiter, sleeper) as client:
            await client.start(waiter.using(id="waiter"), "a")
            await client.start(sleeper.using(id="sleeper"), "b")
            await lab.parked("waiter")
            await lab.parked("sleeper")
    async with lab.running(waiter, sleeper) as client:
        assert lab.numbers() == NUMBERS
        await client.signal("waiter", go, "x")
        lab.clock.advance(3600)
        assert await client.handle("waiter", waiter).result(timeout=10) == "ax"
        assert await client.handle("sleeper", sleeper).result(timeout=10) == "bb"


async def test_workers_of_both_releases_drain_one_queue_and_run_each_body_once(lab: OldLab) -> None:
    bodies: list[str] = []

    @step
    async def count(name: str) -> str:
        bodies.append(name)
        return name

    @workflow
    async def three(name: str) -> list[str]:
        return [await count(f"{name}-{n}") for n in range(3)]

    with old_release():
        old_worker = lab.working(three, slots=3)
        await old_worker.__aenter__()
    async with contextlib.AsyncExitStack() as ends:
        ends.push_async_exit(old_worker)
        async with lab.client() as client, lab.working(three, slots=3):
            assert lab.numbers() == NUMBERS
            handles = await client.start_many(three.using(id=f"w{n}").bind(f"w{n}") for n in range(60))
            for n, handle in enumerate(handles):
                assert await handle.result(timeout=10) == [f"w{n}-0", f"w{n}-1", f"w{n}-2"]
    assert sorted(bodies) == sorted(f"w{n}-{k}" for n in range(60) for k in range(3))


async def test_the_new_release_refuses_the_first_schema_where_it_must_not_migrate(lab: OldLab) -> None:
    with pytest.raises(SchemaError, match=r"lacks migration 2; run: onward migrate"):
        async with lab.client(_migrate=False):
            pass
    assert lab.numbers() == [1]

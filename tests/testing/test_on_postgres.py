"""The environment on PostgreSQL: time leaps there as well, and a death is seen when the lease has run out in that time."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from onward import step, workflow
from onward.testing import Environment, replay
from tests.postgres.server import drop_schema, new_schema, url_with
from tests.testing import flows

T0 = datetime(2030, 1, 1, tzinfo=UTC)
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def url() -> Iterator[str]:
    """A schema of the test's own."""
    schema = new_schema()
    yield url_with(schema=schema)
    drop_schema(schema)


async def test_time_leaps_and_stubs_answer(url: str) -> None:
    async with Environment(url=url, now=T0) as env:
        env.stub(flows.send, returns="sent")
        assert await env.run(flows.onboarding, "ada") == ["sent", "sent"]
        assert env.now == T0 + timedelta(days=3)


async def test_signals_children_and_exports(url: str) -> None:
    async with Environment(url=url) as env:
        handle = await env.start(flows.approval, 3)
        await env.signal(handle, flows.approved, True)
        assert await handle.result() == "yes"
        assert replay(flows.approval, await handle.export()).result == "yes"
        assert len(await env.run(flows.parent, 2)) == 2


async def test_crashes_are_taken_over_from_when_the_lease_is_over(url: str) -> None:
    async with Environment(url=url, now=T0) as env:
        env.crash_during(flows.charge)
        env.crash_at("write:after-commit", number=2)
        assert await env.run(flows.purchase, 5) == "charged 5; welcome to shop"
        assert [call.key for call in env.calls()][:2] == ["charge", "charge"]
        assert timedelta(seconds=15) < env.now - T0 < timedelta(minutes=1)


async def test_a_transactional_step_is_committed_once_whenever_the_worker_dies(url: str) -> None:
    @step(transactional=True)
    def look(connection: psycopg.Connection[tuple[int]]) -> int:
        row = connection.execute("SELECT 41 + 1").fetchone()
        assert row is not None
        return row[0]

    @workflow
    async def flow() -> int:
        return await look()

    for point in ("step:before-commit", "step:after-commit"):
        async with Environment(url=url) as env:
            env.crash_at(point)
            assert await env.run(flow) == 42
            assert len(env.calls(look)) == (2 if point == "step:before-commit" else 1)


async def test_an_async_transactional_step_runs_in_the_environment(url: str) -> None:
    @step(transactional=True)
    async def look(connection: psycopg.AsyncConnection[tuple[int]]) -> int:
        row = await (await connection.execute("SELECT 41 + 1")).fetchone()
        assert row is not None
        return row[0]

    @workflow
    async def flow() -> int:
        return await look()

    async with Environment(url=url) as env:
        assert await env.run(flow) == 42
        assert len(env.calls(look)) == 1

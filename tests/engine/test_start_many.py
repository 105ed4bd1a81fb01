"""`start_many`: many starts in one call, each of which stands for itself."""

from __future__ import annotations

import asyncio

import pytest

from onward import AsyncClient, BoundWorkflow, CodecError, ConfigurationError, WorkflowIdConflict, _requests, workflow
from onward._engine import connection
from tests.engine.support import Lab

order: list[int] = []


@workflow
async def flow(text: str) -> str:
    """Gives back what it got."""
    return text


@workflow
async def noted(number: int) -> None:
    """Notes when it ran: what workflow code must not do, but a test may."""
    order.append(number)


class RefusesPoison:
    """A codec that takes everything else."""

    def encode(self, text: str) -> str:
        if "poison" in text:
            raise RuntimeError("no")
        return text

    def decode(self, text: str) -> str:
        return text


async def test_what_the_codec_refuses_is_refused_alone_and_the_first_error_is_raised(plain_lab: Lab) -> None:
    """All others are started before it is."""
    plain_lab.codec = RefusesPoison()
    async with plain_lab.client() as client:
        texts = [f"poison {n}" if n in (7, 20) else str(n) for n in range(30)]
        with pytest.raises(CodecError, match="codec cannot encode"):
            await client.start_many(flow.using(id=f"w-{n}").bind(text) for n, text in enumerate(texts))
        assert {info.id for info in await client.list()} == {f"w-{n}" for n in range(30) if n not in (7, 20)}


async def test_a_value_that_is_no_json_stops_the_call_before_anything_is_written(plain_lab: Lab) -> None:
    """Also as the last of very many."""
    async with plain_lab.client() as client:
        good = [flow.bind("x") for _ in range(connection.SHARE + 1)]
        with pytest.raises(CodecError):
            await client.start_many([*good, flow.bind("\ud800")])
        assert await client.counts() == {}


async def test_more_than_one_share_is_started_in_order(plain_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Handles stand in the order of the call; ids repeated in it give one workflow."""
    monkeypatch.setattr(connection, "SHARE", 10)
    async with plain_lab.client() as client:
        ids = [f"w-{n}" for n in range(35)]
        handles = await client.start_many(flow.using(id=id).bind("x") for id in [*ids, *ids])
        assert [handle.id for handle in handles] == [*ids, *ids]
        assert [handle.created for handle in handles[:35]] == [True] * 35
        assert sum((await client.counts()).values()) == 35
        with pytest.raises(WorkflowIdConflict, match="w-12"):
            await client.start_many(flow.using(id=f"w-{n}").bind("y") for n in (40, 12, 13, 41))
        assert sum((await client.counts()).values()) == 37


async def test_what_is_there_what_conflicts_and_what_is_new_across_shares(
    plain_lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first refusal is raised after all others are started; without it each handle says whether it was created."""
    monkeypatch.setattr(connection, "SHARE", 50)
    monkeypatch.setattr(_requests, "SHARE", 35)
    async with plain_lab.client() as client:
        await client.start_many(flow.using(id=f"w-{n}").bind("x") for n in range(0, 300, 4))
        bounds = [flow.using(id=f"w-{n}" if n % 2 == 0 else None).bind("x") for n in range(300)]
        handles = await client.start_many(bounds)
        assert [handle.created for handle in handles] == [n % 4 != 0 for n in range(300)]
        assert [handle.id for handle in handles[::2]] == [f"w-{n}" for n in range(0, 300, 2)]
        assert len({handle.id for handle in handles}) == 300
        with pytest.raises(WorkflowIdConflict, match="w-40"):
            await client.start_many(
                flow.using(id=f"w-{n}").bind("y" if n in (40, 130) else "x") for n in range(0, 600, 2)
            )
        assert sum((await client.counts()).values()) == 300 + 150


async def test_options_of_each_one_are_kept(plain_lab: Lab) -> None:
    """Whether many are alike or each is different."""
    async with plain_lab.client() as client:
        await client.start_many(
            flow.using(
                id=f"w-{n}",
                queue=f"q{n % 2}",
                priority=n,
                partition=f"p{n}" if n % 3 else None,
                tags={"n": str(n)} if n % 5 else None,
                max_attempts=n + 1,
                delay=n * 100,
                timeout=60 if n % 7 else None,
            ).bind(str(n))
            for n in range(20)
        )
        for info in await client.list():
            n = int(info.id.removeprefix("w-"))
            assert (info.queue, info.priority, info.partition) == (f"q{n % 2}", n, f"p{n}" if n % 3 else None)
            assert dict(info.tags) == ({"n": str(n)} if n % 5 else {})
            assert info.max_attempts == n + 1
            assert info.next_run_at is not None
            assert (info.next_run_at - info.created_at).total_seconds() == n * 100


async def test_one_batch_runs_in_the_order_of_the_call(plain_lab: Lab) -> None:
    """Ids sort in the order of their making, and the rows of one moment are claimed in the order of their ids."""
    order.clear()
    async with plain_lab.client() as client:
        handles = await client.start_many(noted.bind(number) for number in range(300))
    async with plain_lab.running(noted, slots=8) as client:
        await client.handle(handles[-1].id).result(timeout=30)
        await asyncio.gather(*(client.handle(handle.id).result(timeout=30) for handle in handles))
    assert order == list(range(300))


async def test_a_client_that_is_closed_meanwhile_says_so(plain_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call does not wait for ever for what was never queued."""
    monkeypatch.setattr(connection, "SHARE", 1)
    client: AsyncClient = plain_lab.client()
    await client.counts()
    many: list[BoundWorkflow[str]] = [flow.bind("x") for _ in range(1000)]
    call = asyncio.ensure_future(client.start_many(many))
    await asyncio.sleep(0)
    await client.close()
    with pytest.raises(ConfigurationError, match="closed"):
        await call

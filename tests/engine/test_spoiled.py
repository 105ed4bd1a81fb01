"""Rows that somebody has spoiled, and rows that were there when workers died: each suffers alone."""

from __future__ import annotations

import asyncio

import pytest

from onward import Signal, step, workflow
from tests.engine.support import Lab, held, holds_nothing, wait_for

go = Signal("go", int)


@step
async def work(n: int) -> int:
    """A recorded step."""
    return n


@workflow
async def flow(n: int) -> int:
    """One step, one wait."""
    return await work(n) + await go.wait()


@pytest.mark.parametrize(
    "spoil",
    [
        "UPDATE onward_workflows SET payload = '{broken' WHERE id = 'bad'",
        "UPDATE onward_workflows SET payload = '[1, 2, 3]' WHERE id = 'bad'",
        "UPDATE onward_workflows SET payload = '{\"n\": \"text\"}' WHERE id = 'bad'",
        "UPDATE onward_workflows SET seed = 'xyz' WHERE id = 'bad'",
        "UPDATE onward_workflows SET tags = '{broken' WHERE id = 'bad'",
        "UPDATE onward_journal SET result = '{broken' WHERE workflow_id = 'bad'",
        "UPDATE onward_journal SET result = '\"text\"' WHERE workflow_id = 'bad'",
        "UPDATE onward_journal SET kind = 'nonsense' WHERE workflow_id = 'bad'",
        "UPDATE onward_journal SET error = '{broken', result = NULL WHERE workflow_id = 'bad'",
        "UPDATE onward_mailbox SET payload = '{broken' WHERE workflow_id = 'bad'",
        "UPDATE onward_mailbox SET kind = 'nonsense' WHERE workflow_id = 'bad'",
        "UPDATE onward_workflows SET waiting_for = '{broken' WHERE id = 'bad'",
    ],
    ids=lambda spoil: spoil[7:60],
)
async def test_a_row_spoiled_by_hand_suffers_alone_and_people_can_still_read_it(sqlite_lab: Lab, spoil: str) -> None:
    lab = sqlite_lab
    async with lab.client() as client:
        async with lab.working(flow):
            bad = await client.start(flow.using(id="bad", max_attempts=1), 1)
            good = await client.start(flow.using(id="good"), 1)
            await lab.parked(bad, on="go")
            await lab.parked(good, on="go")
        for handle in (bad, good):
            await client.signal(handle, go, 41)
        lab.sql(spoil)
        async with lab.working(flow):
            assert await good.result(timeout=5) == 42
            later = await client.start(flow, 1)
            await client.signal(later, go, 1)
            assert await later.result(timeout=5) == 2
            if "waiting_for" in spoil:
                assert await bad.result(timeout=5) == 42
            else:  # put aside with its error: failed, or put back because no code fits it
                rows = lab.sql("SELECT status, error FROM onward_workflows WHERE id = 'bad'")
                assert rows[0][0] in ("failed", "pending")
                assert rows[0][1]
        assert {info.id for info in await client.list()} >= {"bad", "good"}
        info = await bad.info()
        assert info.status in ("failed", "completed", "pending")
        kinds = [entry.kind for entry in await bad.journal()]
        assert kinds[0] == ("nonsense" if "journal SET kind" in spoil else "step")


async def test_a_workflow_whose_runs_crashed_twice_runs_alone(sqlite_lab: Lab) -> None:
    lab = sqlite_lab
    begun, finish = asyncio.Event(), asyncio.Event()
    held_beside: list[list[str]] = []

    @step
    async def long(name: str) -> str:
        begun.set()
        held_beside.append(sorted(held(worker)))
        await finish.wait()
        return name

    @workflow
    async def flow(name: str) -> str:
        return await long(name)

    async with lab.client() as client:
        poison = await client.start(flow.using(id="poison"), "poison")
        lab.sql("UPDATE onward_workflows SET crashes = 2 WHERE id = 'poison'")
        async with lab.working(flow) as worker:
            await wait_for(begun)
            neighbours = await client.start_many(flow.using(id=f"n{n}").bind(f"n{n}") for n in range(3))
            begun.clear()
            await asyncio.sleep(0.03)
            assert held_beside == [["poison"]]
            finish.set()
            assert await poison.result(timeout=10) == "poison"
            assert (await poison.info()).crashes == 0  # a newly recorded step is progress
            for neighbour in neighbours:
                await neighbour.result(timeout=10)
            await holds_nothing(worker)
    assert all("poison" not in names for names in held_beside[1:])


async def test_a_quarantined_workflow_waits_until_its_worker_holds_nothing_else(sqlite_lab: Lab) -> None:
    lab = sqlite_lab
    begun, finish = asyncio.Event(), asyncio.Event()
    order: list[str] = []

    @step
    async def note(name: str) -> None:
        order.append(name)
        if name == "long":
            begun.set()
            await finish.wait()

    @workflow
    async def flow(name: str) -> None:
        await note(name)

    async with lab.client() as client, lab.working(flow):
        long = await client.start(flow, "long")
        await wait_for(begun)
        poison = await client.start(flow.using(id="poison", delay=60), "poison")
        lab.sql("UPDATE onward_workflows SET crashes = 3 WHERE id = 'poison'")
        lab.clock.advance(60)
        innocent = await client.start(flow, "innocent")
        await innocent.result(timeout=10)
        finish.set()
        await long.result(timeout=10)
        await poison.result(timeout=10)
    assert order == ["long", "innocent", "poison"]

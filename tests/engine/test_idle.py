"""What a worker asks of its database while there is nothing to do."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from onward import workflow
from onward._engine import dispatcher
from onward._store.memory.store import MemoryStore
from tests.engine.support import Lab

QUEUES = tuple(f"q{number}" for number in range(20))


@workflow(queue="q7")
async def flow(text: str) -> str:
    """Gives back what it got."""
    return text


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the store was asked what, by its method's name."""
    counted: Counter[str] = Counter()

    def counting(name: str, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any, **options: Any) -> Any:
            counted[name] += 1
            return await method(*args, **options)

        return call

    for name in ("claim", "next_due", "adopt_diverged"):
        monkeypatch.setattr(MemoryStore, name, counting(name, getattr(MemoryStore, name)))
    return counted


@pytest.mark.parametrize("plain_lab", ["memory"], indirect=True)
async def test_the_slow_poll_is_one_question_however_many_queues_there_are(
    plain_lab: Lab, asked: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is claimed unless there is something to claim."""
    monkeypatch.setattr(dispatcher, "POLL_S", 0.01)
    async with plain_lab.running(flow, queues=QUEUES) as client:
        while asked["next_due"] < 3:
            await asyncio.sleep(0)
        before = asked["claim"]
        while asked["next_due"] < 10 or asked["adopt_diverged"] < 10:
            await asyncio.sleep(0)
        assert asked["claim"] == before <= 2 * len(QUEUES)
        assert await (await client.start(flow, "x")).result(timeout=10) == "x"


@pytest.mark.parametrize("plain_lab", ["memory"], indirect=True)
async def test_a_hint_that_means_nothing_here_costs_no_claims_where_there_are_many_queues(
    plain_lab: Lab, asked: Counter[str]
) -> None:
    """What others commit is mostly not for this worker."""
    async with plain_lab.running(flow, queues=QUEUES) as client:
        await (await client.start(flow, "x")).result(timeout=10)
        before = asked["claim"]
        for number in range(20):
            questions = asked["next_due"]
            await client.start(flow.using(queue="elsewhere"), str(number))
            while asked["next_due"] == questions:
                await asyncio.sleep(0)
        assert asked["claim"] <= before + len(QUEUES)

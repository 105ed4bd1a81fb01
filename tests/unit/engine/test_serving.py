"""Tasks for bodies: shared by those that never wait, one's own from the first wait on."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any

from onward._engine.serving import Serving

place = contextvars.ContextVar("place", default="outside")


class Item:
    """One body: what it does."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.work = work
        self.task: asyncio.Future[Any] | None = None


async def run(item: Item) -> None:
    await item.work()


def serving(errors: list[BaseException] | None = None) -> Serving[Item]:
    context = contextvars.copy_context()
    context.run(place.set, "lifespan")
    return Serving(run, context, (errors if errors is not None else []).append)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_bodies_that_never_wait_share_a_task_once_that_is_known_of_their_kind() -> None:
    tasks: list[asyncio.Task[Any] | None] = []

    async def quick() -> None:
        tasks.append(asyncio.current_task())

    one = serving()
    one.start(Item(quick), "quick")
    await turns()
    for _ in range(3):
        one.start(Item(quick), "quick")
    assert len(tasks) == 1  # nothing runs before the call has returned
    await turns()
    assert len(tasks) == 4
    assert tasks[1] is tasks[2] is tasks[3] is not tasks[0]


async def test_each_body_has_a_context_of_its_own() -> None:
    seen: list[str] = []

    async def change() -> None:
        seen.append(place.get())
        place.set("changed")
        await asyncio.sleep(0)
        seen.append(place.get())

    async def look() -> None:
        seen.append(place.get())

    one = serving()
    for work in (look, look, change, look):
        one.start(Item(work), "any")
        await turns()
    assert seen == ["lifespan", "lifespan", "lifespan", "changed", "lifespan"]
    assert place.get() == "outside"


async def test_a_body_that_waits_keeps_its_task_and_the_others_are_served_by_another() -> None:
    gate, done = asyncio.Event(), []
    tasks: dict[str, asyncio.Task[Any] | None] = {}

    def body(name: str, *, waits: bool) -> Item:
        async def work() -> None:
            tasks[name] = asyncio.current_task()
            if waits:
                await gate.wait()
                assert asyncio.current_task() is tasks[name]
            done.append(name)

        return Item(work)

    one = serving()
    one.start(body("first", waits=False), "kind")
    await turns()
    for name, waits in (("a", False), ("waiter", True), ("b", False)):
        one.start(body(name, waits=waits), "kind")
    await turns()
    assert done == ["first", "a", "b"]
    assert tasks["a"] is tasks["waiter"] is not tasks["b"]
    gate.set()
    await turns()
    assert done == ["first", "a", "b", "waiter"]


async def test_a_cancellation_hits_the_waiting_body_alone() -> None:
    ends: list[str] = []

    async def waiter() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ends.append("cancelled")

    async def quick() -> None:
        ends.append("quick")

    one, item = serving(), Item(waiter)
    one.start(Item(quick), "kind")
    await turns()
    one.start(item, "kind")
    one.start(Item(quick), "kind")
    await turns()
    assert item.task is not None
    item.task.cancel()
    await turns()
    assert ends == ["quick", "quick", "cancelled"]


async def test_a_body_that_cancels_its_own_task_and_ends_does_not_cancel_the_next() -> None:
    ends: list[str] = []

    async def selfish() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    async def waits() -> None:
        await asyncio.sleep(0)
        ends.append("next")

    async def quick() -> None:
        ends.append("quick")

    one = serving()
    one.start(Item(quick), "kind")
    await turns()
    one.start(Item(selfish), "kind")
    one.start(Item(waits), "kind")
    await turns()
    assert ends == ["quick", "next"]


async def test_a_timeout_works_in_the_first_turn_and_in_later_ones() -> None:
    ends: list[str] = []

    async def slow() -> None:
        async with asyncio.timeout(None):
            pass
        try:
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        except TimeoutError:
            ends.append("timed out")

    one = serving()
    for _ in range(2):
        one.start(Item(slow), "slow")
    await turns(10)
    assert ends == ["timed out", "timed out"]


async def test_an_error_that_leaves_a_coroutine_is_told_and_the_rest_is_served() -> None:
    errors: list[BaseException] = []
    ends: list[str] = []

    async def quick() -> None:
        ends.append("quick")

    async def broken() -> None:
        raise LookupError("a bug")

    one = serving(errors)
    one.start(Item(quick), "kind")
    await turns()
    one.start(Item(broken), "kind")
    one.start(Item(quick), "kind")
    await turns()
    assert ends == ["quick", "quick"]
    assert [str(error) for error in errors] == ["a bug"]

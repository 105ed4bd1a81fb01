"""Steps in workflows: run once, in order or at once, their values and errors the same live and on replay."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass

import pytest

from onward import StepFailed, call, current_step, progress, step, workflow
from tests.engine.support import Lab, keys, wait_for


async def test_async_and_plain_steps_run_once_and_give_their_results_to_the_workflow(lab: Lab) -> None:
    bodies: list[str] = []

    @step
    async def add(a: int) -> int:
        bodies.append("add")
        return a + 1

    @step
    def double(a: int) -> int:
        bodies.append(threading.current_thread().name.rpartition("_")[0])
        return a * 2

    @workflow
    async def flow(a: int) -> int:
        return await double(await add(a))

    async with lab.running(flow) as client:
        handle = await client.start(flow, 20)
        assert await handle.result(timeout=10) == 42
        entries = await handle.journal()
    assert bodies == ["add", "onward-step"]
    assert [(entry.seq, entry.key, entry.kind, entry.result) for entry in entries] == [
        (1, "add", "step", 21),
        (2, "double", "step", 42),
    ]
    assert entries[0].finished_at <= entries[1].finished_at


async def test_steps_gathered_run_at_the_same_time(lab: Lab) -> None:
    meeting = threading.Barrier(4)

    @step
    def meet(n: int) -> int:
        meeting.wait(10)
        return n

    @workflow
    async def flow() -> list[int]:
        return await asyncio.gather(*(meet(n) for n in range(4)))

    async with lab.running(flow) as client:
        assert await (await client.start(flow)).result(timeout=10) == [0, 1, 2, 3]


async def test_a_task_group_runs_steps_and_gives_their_results(lab: Lab) -> None:
    @step
    async def square(n: int) -> int:
        return n * n

    @workflow
    async def flow() -> list[int]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(square(n)) for n in range(3)]
        return [task.result() for task in tasks]

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        assert await handle.result(timeout=10) == [0, 1, 4]
        assert sorted(keys(await handle.journal())) == ["square", "square#2", "square#3"]


async def test_a_timeout_around_a_step_ends_the_wait_and_not_the_workflow(lab: Lab) -> None:
    begun = asyncio.Event()
    was_cancelled = asyncio.Event()

    @step
    async def slow() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            was_cancelled.set()
            raise

    @step
    async def note() -> str:
        return "too slow"

    @workflow
    async def flow() -> str:
        try:
            async with asyncio.timeout(60):
                await slow()
        except TimeoutError:
            return await note()
        return "in time"

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await wait_for(begun)
        lab.clock.advance(61)
        assert await handle.result(timeout=10) == "too slow"
        await wait_for(was_cancelled)
        assert keys(await handle.journal()) == ["timeout", "note"]


async def test_a_steps_error_is_the_same_live_and_on_replay(lab: Lab) -> None:
    seen: list[tuple[str, str, str, str]] = []

    @step
    async def charge() -> None:
        raise ValueError("no money")

    @workflow
    async def flow() -> str:
        try:
            await charge()
        except StepFailed as error:
            seen.append((type(error).__name__, error.key, error.type_name, error.message))
            assert "no money" in error.traceback
            await asyncio.sleep(3600)
            return str(error)
        return ""

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await lab.parked(handle)
        lab.clock.advance(3600)
        assert await handle.result(timeout=10) == "step 'charge' failed: ValueError: no money"
    assert len(seen) >= 2
    assert set(seen) == {("StepFailed", "charge", "ValueError", "no money")}


class CardDeclined(Exception):
    """An error with data."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


async def test_errors_named_in_raises_come_back_as_themselves(lab: Lab) -> None:
    seen: list[int] = []

    @step(raises=CardDeclined)
    async def charge() -> None:
        raise CardDeclined(51)

    @workflow
    async def flow() -> int:
        try:
            await charge()
        except CardDeclined as error:
            seen.append(error.code)
            await asyncio.sleep(3600)
            return error.code
        return 0

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        await lab.parked(handle)
        lab.clock.advance(3600)
        assert await handle.result(timeout=10) == 51
    assert set(seen) == {51}


async def test_a_workflow_gets_what_the_journal_keeps_and_never_the_bodys_own_object(lab: Lab) -> None:
    kept: list[list[int]] = []

    @step
    async def numbers() -> list[int]:
        kept.append([1])
        return kept[0]

    @step
    async def grow() -> None:
        kept[0].append(2)

    @workflow
    async def flow() -> list[int]:
        mine = await numbers()
        await grow()
        return mine

    async with lab.running(flow) as client:
        assert await (await client.start(flow)).result(timeout=10) == [1]


async def test_a_body_gets_its_arguments_as_they_were_at_the_call(lab: Lab) -> None:
    seen: list[list[int]] = []

    @step
    async def look(items: list[int]) -> None:
        seen.append(list(items))

    @workflow
    async def flow() -> None:
        items = [1]
        pending = look(items)
        items.append(2)
        await pending

    async with lab.running(flow) as client:
        await (await client.start(flow)).result(timeout=10)
    assert seen == [[1]]


@dataclass
class Order:
    """A value with hints."""

    id: int
    lines: list[str]


async def test_values_go_through_their_type_hints(lab: Lab) -> None:
    @step
    async def load(order_id: int) -> Order:
        return Order(order_id, ["tea"])

    @workflow
    async def flow(order: Order) -> Order:
        loaded = await load(order.id + 1)
        assert isinstance(loaded, Order)
        return loaded

    async with lab.running(flow) as client:
        assert await (await client.start(flow, Order(1, []))).result(timeout=10) == Order(2, ["tea"])


async def test_call_records_any_callable_under_its_name(lab: Lab) -> None:
    def fetch(url: str) -> str:
        return url.upper()

    @workflow
    async def flow() -> str:
        return await call(fetch, "x")

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        assert await handle.result(timeout=10) == "X"
        assert keys(await handle.journal()) == ["fetch"]


async def test_a_body_knows_its_key_and_an_idempotency_key_that_no_other_call_has(lab: Lab) -> None:
    @step
    async def who() -> tuple[str, str, str, int]:
        info = current_step()
        return info.workflow_id, info.key, info.idempotency_key, info.try_number

    @workflow
    async def flow() -> list[tuple[str, str, str, int]]:
        return [await who(), await who(), await who.using(key="mine")()]

    async with lab.running(flow) as client:
        handle = await client.start(flow.using(id="w"))
        assert await handle.result(timeout=10) == [
            ("w", "who", "w/who", 1),
            ("w", "who#2", "w/who#2", 1),
            ("w", "mine", "w/mine", 1),
        ]


async def test_progress_is_visible_once_it_is_committed_and_its_last_word_stays(lab: Lab) -> None:
    go = asyncio.Event()

    @step
    async def work() -> None:
        await go.wait()

    @workflow
    async def flow() -> None:
        progress({"done": 0})
        await work()
        progress({"done": 1})

    async with lab.running(flow) as client:
        handle = await client.start(flow)

        async def is_shown() -> bool:
            return bool((await lab.info(handle)).progress == {"done": 0})

        await lab.until(is_shown)
        assert (await lab.info(handle)).status == "running"
        go.set()
        await handle.result(timeout=10)
        assert (await handle.info()).progress == {"done": 1}


async def test_a_call_that_is_never_awaited_is_reported_and_never_run(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    bodies: list[str] = []

    @step
    async def forgotten() -> None:
        bodies.append("ran")

    @workflow
    async def flow() -> str:
        forgotten()  # type: ignore[unused-coroutine]  # the mistake that is reported
        return "done"

    async with lab.running(flow) as client:
        assert await (await client.start(flow)).result(timeout=10) == "done"
    assert bodies == []
    assert "called but never awaited, so never run: forgotten" in caplog.text


async def test_leftover_tasks_are_closed_and_their_late_results_dropped(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    begun = asyncio.Event()

    @step
    async def endless() -> None:
        begun.set()
        await asyncio.Event().wait()

    @step
    async def wait_for_it() -> None:
        await begun.wait()

    @workflow
    async def flow() -> str:
        left = asyncio.create_task(endless(), name="left")
        await wait_for_it()
        return left.get_name()

    async with lab.running(flow) as client:
        handle = await client.start(flow)
        assert await handle.result(timeout=10) == "left"
        assert keys(await handle.journal()) == ["wait_for_it"]
    assert "1 of its tasks were unfinished" in caplog.text

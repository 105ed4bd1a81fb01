"""Sets of awaitables have one order on every replay, whatever the addresses; what cannot be ordered is refused with the cure."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from onward._engine.replay.commands import RunStep
from onward.context import Signal
from onward.definitions import step, workflow
from onward.errors import NotAllowedInWorkflow
from tests.unit.replay.driver import Run

word = Signal("word", str)


@step
def work(x: int) -> int:
    return x


def _shift_the_heap(amount: int) -> list[Any]:
    """Make the addresses of what comes next differ from those of the run before."""
    junk: list[Any] = [bytearray(64 + i % 512) for i in range(amount)]
    del junk[:: 1 + amount % 7]
    return [*junk, *(object() for _ in range(amount))]


def _orders(definition: Any, drive: Any = lambda run: run.work()) -> set[tuple[str, ...]]:
    orders = set()
    held: list[Any] = []
    for amount in range(0, 400, 13):
        held.append(_shift_the_heap(amount))
        run = Run(definition)
        drive(run)
        held.append(run.core)
        orders.add(tuple(f"{c.key}{c.args}" for c in run.taken if isinstance(c, RunStep)))
    return orders


def test_tasks_in_the_sets_of_wait_come_in_one_order() -> None:
    async def one(x: int) -> int:
        await asyncio.sleep(0)
        return x

    @workflow
    async def races() -> None:
        done, _ = await asyncio.wait([asyncio.create_task(one(x)) for x in range(12)])
        for task in done:
            await work(task.result())

    assert len(_orders(races)) == 1


def test_the_cleanup_of_an_aborted_task_group_comes_in_one_order() -> None:
    async def one(x: int) -> None:
        try:
            await asyncio.sleep(100)
        finally:
            await work(x)

    async def fails() -> None:
        await asyncio.sleep(1)
        raise ValueError

    @workflow
    async def aborts() -> None:
        async with asyncio.TaskGroup() as group:
            for x in range(12):
                group.create_task(one(x))
            group.create_task(fails())

    assert len(_orders(aborts)) == 1


def test_step_calls_and_signal_waits_given_to_as_completed_begin_in_one_order() -> None:
    @workflow
    async def completes() -> None:
        for item in asyncio.as_completed([*(work(x) for x in range(12)), *(word.wait() for _ in range(5))]):
            await item

    def drive(run: Run) -> None:
        assert run.core.wants_signal("word") is not None
        run.close()

    assert len(_orders(completes, drive)) == 1


def test_tasks_calls_and_futures_of_the_loop_hash_by_their_order_of_creation() -> None:
    @workflow
    async def hashes() -> list[int]:
        loop = asyncio.get_running_loop()
        base = hash(asyncio.current_task())
        made: list[Any] = [loop.create_future(), loop.create_task(asyncio.sleep(0)), work(1), loop.create_future()]
        await asyncio.gather(*made[1:3])
        return [hash(item) - base for item in made]

    assert Run(hashes).work().result == [-2, 1, 2, -3], "futures apart from the rest"


def test_executions_of_different_seeds_hash_apart() -> None:
    @workflow
    async def hashes() -> int:
        return hash(asyncio.current_task())

    seeds = [f"{i:02x}" * 16 for i in range(64)]
    assert len({Run(hashes, seed=seed).result for seed in seeds}) == 64


def test_bare_coroutines_in_as_completed_are_refused_with_the_cure() -> None:
    async def one(x: int) -> int:
        return await work(x)

    @workflow
    async def completes() -> None:
        for item in asyncio.as_completed([one(1), one(2)]):
            await item

    run = Run(completes)
    assert isinstance(run.error, NotAllowedInWorkflow)
    assert "wrap each in create_task, in a list" in str(run.error)


def test_tasks_in_as_completed_are_allowed() -> None:
    async def one(x: int) -> int:
        return await work(x)

    @workflow
    async def completes() -> list[int]:
        tasks = [asyncio.create_task(one(x)) for x in (1, 2)]
        return [await item for item in asyncio.as_completed(tasks)]

    assert Run(completes).work().result == [1, 2]


@pytest.mark.parametrize("kind", ["gather", "Future"])
def test_a_future_that_hashes_by_address_is_refused_by_wait_with_the_cure(kind: str) -> None:
    @workflow
    async def waits(kind: str) -> None:
        task = asyncio.create_task(asyncio.sleep(1))
        other: Any = asyncio.gather(task) if kind == "gather" else asyncio.Future()
        await asyncio.wait([other, task])

    run = Run(waits, kind)
    assert isinstance(run.error, NotAllowedInWorkflow)
    assert "create_task()" in str(run.error)


def test_task_names_are_the_same_on_every_replay() -> None:
    @workflow
    async def names() -> list[str]:
        return [asyncio.create_task(asyncio.sleep(0)).get_name() for _ in range(2)]

    assert Run(names).result == Run(names).result == ["Task-2", "Task-3"]

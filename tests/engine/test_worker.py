"""A worker as its users see it: what it claims and in which order, what steps find around them, how it starts and stops."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import AsyncIterator
from contextvars import ContextVar

import pytest

from onward import ConfigurationError, DefinitionError, Signal, Worker, step, workflow
from onward._engine.resting import Rest
from onward._engine.runner import Runner
from onward._engine.steps import Steps
from tests.engine.support import Lab, engine_of, held, holds_nothing, keys, turns, wait_for

go = Signal("go", int)
pool: ContextVar[str] = ContextVar("pool")


async def test_lower_priorities_run_first_and_equal_ones_in_the_order_of_starting(lab: Lab) -> None:
    order: list[str] = []

    @step
    async def note(name: str) -> None:
        order.append(name)

    @workflow
    async def flow(name: str) -> None:
        await note(name)

    async with lab.client() as client:
        handles = [
            await client.start(flow.using(priority=priority), name)
            for name, priority in (("c", 5), ("a", -1), ("b1", 0), ("b2", 0))
        ]
        async with lab.working(flow, slots=1):
            for handle in handles:
                await handle.result(timeout=10)
    assert order == ["a", "b1", "b2", "c"]


async def test_a_worker_takes_workflows_of_its_queues_only(lab: Lab) -> None:
    @workflow(queue="mail")
    async def flow() -> str:
        return "done"

    async with lab.client() as client:
        mine = await client.start(flow)
        others = await client.start(flow.using(queue="reports"))
        async with lab.working(flow, queues="mail"):
            assert await mine.result(timeout=10) == "done"
            assert (await others.info()).status == "pending"
        async with lab.working(flow, queues=["mail", "reports"]):
            assert await others.result(timeout=10) == "done"


async def test_types_that_a_worker_does_not_know_are_left_alone(lab: Lab) -> None:
    @workflow
    async def known() -> str:
        return "done"

    @workflow
    async def unknown() -> str:
        return "done"

    async with lab.running(known) as client:
        left = await client.start(unknown)
        assert await (await client.start(known)).result(timeout=10) == "done"
        assert (await left.info()).status == "pending"


async def test_a_worker_never_works_on_more_executions_than_it_has_slots(lab: Lab) -> None:
    """Those that only wait for the commit of their last operation do not count: the next claim follows that flush at once."""
    running: set[int] = set()
    most: list[int] = []

    @step
    async def work(n: int) -> int:
        running.add(n)
        most.append(len(running))
        ahead = engine_of(worker).dispatcher._ahead
        assert sum(one.state != "leaving" and one.row.id not in ahead for one in held(worker).values()) <= 2
        await asyncio.sleep(0)
        running.discard(n)
        return n

    @workflow
    async def flow(n: int) -> int:
        return await work(n)

    async with lab.client() as client, lab.working(flow, slots=2) as worker:
        handles = await client.start_many(flow.bind(n) for n in range(10))
        assert [await handle.result(timeout=10) for handle in handles] == list(range(10))
    assert max(most) <= 2


async def test_at_most_so_many_plain_steps_run_at_once(lab: Lab) -> None:
    lock = threading.Lock()
    count = 0
    most = 0

    @step
    def work() -> None:
        nonlocal count, most
        with lock:
            count += 1
            most = max(most, count)
        threading.Event().wait(0.002)
        with lock:
            count -= 1

    @workflow
    async def flow() -> None:
        await asyncio.gather(*(work() for _ in range(8)))

    async with lab.running(flow, threads=2) as client:
        await (await client.start(flow)).result(timeout=10)
    assert most == 2


async def test_context_variables_of_the_lifespan_are_seen_by_every_step_and_it_is_left_last(lab: Lab) -> None:
    events: list[str] = []
    begun = asyncio.Event()

    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        task = asyncio.current_task()
        token = pool.set("the pool")
        events.append("entered")
        yield
        assert asyncio.current_task() is task
        pool.reset(token)
        events.append("left")

    @step
    async def in_loop() -> str:
        return pool.get()

    @step
    def in_thread() -> str:
        return pool.get()

    @step
    async def last() -> str:
        begun.set()
        await turns()
        events.append(f"last step with {pool.get()}")
        return "ok"

    @workflow
    async def flow() -> list[str]:
        assert pool.get("nothing") == "nothing"  # workflow code has a context of its own
        return [await in_loop(), await in_thread(), await last()]

    async with lab.client() as client:
        async with lab.working(flow, lifespan=lifespan):
            handle = await client.start(flow)
            await wait_for(begun)
        async with lab.working(flow, lifespan=lifespan()):
            assert await handle.result(timeout=10) == ["the pool", "the pool", "ok"]
    assert events[:3] == ["entered", "last step with the pool", "left"]


async def test_a_worker_that_stops_lets_running_steps_end_and_gives_the_rest_back_unspent(lab: Lab) -> None:
    bodies: list[str] = []
    begun, finish = asyncio.Event(), asyncio.Event()

    @step
    async def first() -> str:
        bodies.append("first")
        begun.set()
        await finish.wait()
        return "first"

    @step
    async def second() -> str:
        bodies.append("second")
        return "second"

    @workflow
    async def flow() -> str:
        return await first() + await second()

    async with lab.client() as client:
        async with lab.working(flow) as worker:
            handle = await client.start(flow)
            await wait_for(begun)
            worker.stop()
            await turns()
            finish.set()
        info = await lab.info(handle)
        assert (info.status, info.attempts, info.crashes, info.worker) == ("pending", 0, 0, None)
        assert keys(await handle.journal()) == ["first"]
        assert bodies == ["first"]
        async with lab.working(flow):
            assert await handle.result(timeout=10) == "firstsecond"
    assert bodies == ["first", "second"]


async def test_a_step_that_does_not_end_within_the_grace_is_cancelled_and_runs_again_elsewhere(lab: Lab) -> None:
    bodies: list[str] = []
    begun = asyncio.Event()

    @step
    async def slow() -> str:
        bodies.append("slow")
        begun.set()
        if len(bodies) == 1:
            await asyncio.Event().wait()
        return "done"

    @workflow
    async def flow() -> str:
        return await slow()

    async with lab.client() as client:
        async with lab.working(flow, grace=0.01):
            handle = await client.start(flow)
            await wait_for(begun)
        info = await lab.info(handle)
        assert (info.status, info.attempts, info.crashes) == ("pending", 0, 0)
        async with lab.working(flow):
            assert await handle.result(timeout=10) == "done"
    assert bodies == ["slow", "slow"]


async def test_run_works_until_it_is_told_to_stop(lab: Lab) -> None:
    @workflow
    async def flow() -> str:
        return "done"

    worker = lab.worker(flow)
    running = asyncio.create_task(worker.run())
    async with lab.client() as client:
        assert await (await client.start(flow)).result(timeout=10) == "done"
    worker.stop()
    await asyncio.wait_for(running, 10)


async def test_a_run_that_is_cancelled_stops_gracefully_and_then_is_cancelled(lab: Lab) -> None:
    begun, finish = asyncio.Event(), asyncio.Event()

    @step
    async def work() -> str:
        begun.set()
        await finish.wait()
        return "done"

    @workflow
    async def flow() -> str:
        return await work()

    running = asyncio.create_task(lab.worker(flow).run())
    async with lab.client() as client:
        handle = await client.start(flow)
        await wait_for(begun)
        running.cancel()
        await turns()
        finish.set()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert keys(await handle.journal()) == ["work"]


async def test_two_workers_on_one_database_share_the_work_and_run_no_body_twice(lab: Lab) -> None:
    bodies: list[tuple[int, int]] = []

    @step
    async def work(n: int, k: int) -> int:
        bodies.append((n, k))
        await asyncio.sleep(0)
        return k

    @workflow
    async def flow(n: int) -> int:
        first = await work(n, 0)
        await asyncio.sleep(0.001)
        return first + sum(await asyncio.gather(*(work(n, k) for k in (1, 2))))

    async with lab.client() as client, lab.working(flow, slots=5), lab.working(flow, slots=5):
        handles = await client.start_many(flow.bind(n) for n in range(40))
        assert await asyncio.gather(*(handle.result(timeout=20) for handle in handles)) == [3] * 40
    assert sorted(bodies) == [(n, k) for n in range(40) for k in range(3)]


async def test_a_worker_without_workflows_or_with_wrong_options_is_refused(plain_lab: Lab) -> None:
    @workflow
    async def flow() -> None:
        return

    def twin() -> object:
        @workflow(name="flow")
        async def other() -> None:
            return

        return other

    url = plain_lab.url
    with pytest.raises(ConfigurationError, match="at least one workflow"):
        Worker(url, workflows=[])
    with pytest.raises(ConfigurationError, match=r"workflows takes several: \[flow\]"):
        Worker(url, workflows=flow)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="decorated with @workflow"):
        Worker(url, workflows=[flow.fn])  # type: ignore[list-item]
    with pytest.raises(DefinitionError, match=r"two workflows are named 'flow'.*test_worker\.py"):
        Worker(url, workflows=[flow, twin()])  # type: ignore[list-item]
    with pytest.raises(ConfigurationError, match="slots"):
        Worker(url, workflows=[flow], slots=0)
    with pytest.raises(ConfigurationError, match="lease"):
        Worker(url, workflows=[flow], lease=1)
    with pytest.raises(ConfigurationError, match="queue"):
        Worker(url, workflows=[flow], queues=[])
    with pytest.raises(ConfigurationError, match="grace"):
        Worker(url, workflows=[flow], grace=-1)


async def test_a_type_hint_that_does_not_resolve_is_an_error_at_the_workers_start(plain_lab: Lab) -> None:
    @workflow
    async def flow(value: Missing) -> None:  # type: ignore[name-defined]  # noqa: F821
        return

    with pytest.raises(DefinitionError, match="Missing"):
        async with plain_lab.worker(flow):
            pass


async def test_an_error_in_lifespan_is_raised_by_the_worker_and_leaves_nothing_behind(lab: Lab) -> None:
    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        raise OSError("no pool")
        yield

    @workflow
    async def flow() -> None:
        return

    with pytest.raises(OSError, match="no pool"):
        async with lab.worker(flow, lifespan=lifespan):
            pass


async def test_a_start_that_is_cancelled_leaves_nothing_behind(lab: Lab) -> None:
    entered, left = asyncio.Event(), asyncio.Event()

    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        entered.set()
        try:
            await asyncio.Event().wait()
            yield
        finally:
            left.set()

    @workflow
    async def flow() -> None:
        return

    worker = lab.worker(flow, lifespan=lifespan)
    starting = asyncio.create_task(worker.__aenter__())
    await wait_for(entered)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert left.is_set()


async def test_a_worker_runs_once_at_a_time_and_may_be_started_again(plain_lab: Lab) -> None:
    @workflow
    async def flow() -> str:
        return "done"

    worker = plain_lab.worker(flow)
    async with worker:
        with pytest.raises(ConfigurationError, match="runs already"):
            await worker.__aenter__()
    async with plain_lab.client() as client:
        handle = await client.start(flow)
        async with plain_lab.worker(flow):
            assert await handle.result(timeout=10) == "done"


async def test_a_claim_whose_reply_was_lost_is_given_back(lab: Lab) -> None:
    @workflow
    async def flow() -> str:
        return "done"

    async with lab.client() as client, lab.working(flow) as worker:
        await holds_nothing(worker)
        engine = engine_of(worker)
        engine.dispatcher._is_alone = True  # claims nothing itself
        handle = await client.start(flow)
        [claimed] = await engine.store.claim(engine.dispatcher._request("default", 1))
        assert claimed.id == handle.id
        engine.dispatcher._is_alone = False
        engine.dispatcher._reconcile_at = 0.0
        engine.dispatcher.poke()
        assert await handle.result(timeout=10) == "done"
        info = await handle.info()
    assert (info.attempts, info.crashes) == (0, 0)


async def test_an_ended_execution_leaves_nothing_for_the_garbage_collector(lab: Lab) -> None:
    """Cycles would keep thousands of dead objects in memory between two collections, and the processor's caches cold."""

    @step
    async def fail() -> None:
        raise ValueError("no")

    @step
    def note() -> str:
        return "noted"

    @workflow
    async def flow(number: int) -> str:
        async with asyncio.TaskGroup() as group:
            group.create_task(note())
            group.create_task(asyncio.sleep(0.001))
        with contextlib.suppress(Exception):
            await fail()
        return await note()

    async with lab.client() as client, lab.working(flow) as worker:
        handle = await client.start(flow, 0)
        await handle.result(timeout=10)
        await holds_nothing(worker)
        gc.collect()
        gc.disable()
        try:
            for number in range(1, 6):
                handle = await client.start(flow, number)
                await handle.result(timeout=10)
            await holds_nothing(worker)
            await turns()
            left = [type(one).__name__ for one in gc.get_objects() if type(one) in (Runner, Steps, Rest)]
        finally:
            gc.enable()
    assert left == []


async def test_a_store_that_was_opened_ahead_is_not_opened_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    @workflow
    async def flow() -> None:
        pass

    worker = Worker(lab.url, workflows=[flow])
    opened: list[bool] = []
    really_open = worker._store.open

    async def open_store(*, migrate: bool = True) -> None:
        opened.append(migrate)
        await really_open(migrate=migrate)

    monkeypatch.setattr(worker._store, "open", open_store)
    await worker._open()
    async with worker:
        assert opened == [True]

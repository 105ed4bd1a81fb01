"""Child workflows: awaited or started, found again after a restart, and what their ends mean to a parent."""

from __future__ import annotations

import asyncio

import pytest

from onward import Signal, WorkflowCancelled, WorkflowFailed, start, step, workflow
from onward._engine.children import Children
from onward._engine.pending import Pending
from onward._engine.replay.commands import StartChild
from tests.engine.support import Lab, keys, wait_for

go = Signal("go", int)


@workflow
async def double(n: int) -> int:
    """The plainest child."""
    return 2 * n


async def test_awaiting_a_child_gives_its_result_and_its_id_comes_from_the_parents(lab: Lab) -> None:
    @workflow
    async def flow() -> int:
        return await double(20) + await double(1)

    async with lab.running(flow, double) as client:
        handle = await client.start(flow.using(id="p"))
        assert await handle.result(timeout=10) == 42
        assert [(entry.key, entry.kind, entry.result) for entry in await handle.journal()] == [
            ("double", "child", 40),
            ("double#2", "child", 2),
        ]
        children = await lab.store.children("p")
    assert [(child.id, child.status, child.parent_id) for child in children] == [
        ("p/double", "completed", "p"),
        ("p/double#2", "completed", "p"),
    ]


async def test_many_children_run_at_once_and_their_parent_is_not_held_meanwhile(lab: Lab) -> None:
    @workflow
    async def child(n: int) -> int:
        return n * await go.wait()

    @workflow
    async def flow() -> int:
        return sum(await asyncio.gather(*(child(n) for n in range(5))))

    async with lab.running(flow, child) as client:
        handle = await client.start(flow.using(id="p"))
        info = await lab.parked(handle, on="child")
        assert info.status == "waiting"
        for child_row in await lab.store.children("p"):
            await client.signal(child_row.id, go, 10)
        assert await handle.result(timeout=10) == 100


async def test_a_woken_parent_does_not_look_again_for_a_child_whose_end_it_has_just_delivered(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its end would be put into the mailbox anew, and a large fan-out would cost the square of its children."""
    ended: set[str] = set()
    started_again: list[str] = []
    real_start, real_ended = Children.start, Pending.child_ended

    def start_noted(self: Children, command: StartChild) -> None:
        if command.key in ended:
            started_again.append(command.key)
        real_start(self, command)

    def ended_noted(self: Pending, key: str) -> None:
        ended.add(key)
        real_ended(self, key)

    monkeypatch.setattr(Children, "start", start_noted)
    monkeypatch.setattr(Pending, "child_ended", ended_noted)

    @workflow
    async def child(n: int) -> int:
        return n if n < 10 else await go.wait()

    @workflow
    async def flow() -> int:
        return sum(await asyncio.gather(*(child(n) for n in range(15))))

    async with lab.running(flow, child) as client:
        handle = await client.start(flow.using(id="p"))

        async def ten_have_ended() -> bool:
            return len(await handle.journal()) >= 10

        await lab.until(ten_have_ended)
        for child_row in await lab.store.children("p"):
            if child_row.status == "waiting":
                await client.signal(child_row.id, go, 1)
        assert await handle.result(timeout=30) == sum(range(10)) + 5
    assert len(ended) == 15
    assert started_again == []


async def test_a_started_child_goes_on_by_itself_and_can_be_awaited_later(lab: Lab) -> None:
    @step
    async def note(text: str) -> str:
        return text

    @workflow
    async def flow() -> list[object]:
        handle = await start(double, 4)
        noted = await note(handle.id)
        return [noted, await handle, await handle.result()]

    async with lab.running(flow, double) as client:
        handle = await client.start(flow.using(id="p"))
        assert await handle.result(timeout=10) == ["p/start:double", 8, 8]
        entries = await handle.journal()
    assert [(entry.key, entry.kind) for entry in entries] == [
        ("start:double", "start"),
        ("note", "step"),
        ("result:double", "child"),
    ]


async def test_a_parent_may_end_before_a_child_that_it_only_started(lab: Lab) -> None:
    @workflow
    async def child() -> int:
        return await go.wait()

    @workflow
    async def flow() -> str:
        return (await start(child)).id

    async with lab.running(flow, child) as client:
        child_id = await (await client.start(flow)).result(timeout=10)
        await client.signal(child_id, go, 7)
        assert await client.handle(child_id, child).result(timeout=10) == 7


async def test_a_child_is_started_once_however_often_its_parent_is_replayed(lab: Lab) -> None:
    bodies: list[str] = []

    @step
    async def work() -> str:
        bodies.append("work")
        return "done"

    @workflow
    async def child() -> str:
        await go.wait()
        return await work()

    @workflow
    async def flow() -> str:
        return await child()

    async with lab.client() as client:
        for _ in range(3):
            async with lab.working(flow, child):
                handle = await client.start(flow.using(id="p"))
                await lab.parked("p/child", on="go")
                await lab.parked(handle, on="child")
        async with lab.working(flow, child):
            await client.signal("p/child", go, 1)
            assert await handle.result(timeout=10) == "done"
        assert await client.counts() == {"completed": 2}
    assert bodies == ["work"]


async def test_a_childs_end_while_no_worker_runs_reaches_its_parent(lab: Lab) -> None:
    @workflow
    async def child() -> int:
        return await go.wait()

    @workflow
    async def flow() -> int:
        return await child()

    async with lab.client() as client:
        async with lab.working(flow, child):
            handle = await client.start(flow.using(id="p"))
            await lab.parked(handle, on="child")
            await lab.parked("p/child", on="go")
        await client.signal("p/child", go, 5)
        async with lab.working(child):
            assert await client.handle("p/child", child).result(timeout=10) == 5
        async with lab.working(flow):
            assert await handle.result(timeout=10) == 5


async def test_a_failed_child_raises_in_its_parent_and_may_be_handled(lab: Lab) -> None:
    @workflow(max_attempts=1)
    async def child() -> None:
        raise ValueError("no")

    @workflow
    async def flow() -> str:
        try:
            await child()
        except WorkflowFailed as error:
            return f"{error.workflow_id} {error.type_name} {error.message}"
        return ""

    async with lab.running(flow, child) as client:
        handle = await client.start(flow.using(id="p"))
        assert await handle.result(timeout=10) == "p/child ValueError no"


async def test_a_childs_error_that_escapes_fails_the_parent_at_once_since_it_has_had_its_attempts(lab: Lab) -> None:
    @workflow(max_attempts=1)
    async def child() -> None:
        raise ValueError("no")

    @workflow
    async def flow() -> None:
        await child()

    async with lab.running(flow, child) as client:
        handle = await client.start(flow)
        with pytest.raises(WorkflowFailed, match="no"):
            await handle.result(timeout=10)


async def test_a_cancelled_child_raises_that_in_its_parent(lab: Lab) -> None:
    @workflow
    async def child() -> int:
        return await go.wait()

    @workflow
    async def flow() -> str:
        try:
            await child()
        except WorkflowCancelled as error:
            return error.workflow_id
        return ""

    async with lab.running(flow, child) as client:
        handle = await client.start(flow.using(id="p"))
        await lab.parked("p/child", on="go")
        await client.handle("p/child").cancel()
        assert await handle.result(timeout=10) == "p/child"


async def test_a_parent_may_wait_for_a_workflow_that_is_not_its_child(lab: Lab) -> None:
    @workflow
    async def shared() -> int:
        return await go.wait()

    @workflow
    async def flow(n: int) -> int:
        return n + await shared.using(id="shared")()

    async with lab.running(flow, shared) as client:
        await client.start(shared.using(id="shared"))
        parents = [await client.start(flow, n) for n in (1, 2)]
        for parent in parents:
            await lab.parked(parent, on="child")
        await client.signal("shared", go, 40)
        assert [await parent.result(timeout=10) for parent in parents] == [41, 42]


async def test_a_parent_gets_the_end_of_a_workflow_that_had_ended_before(lab: Lab) -> None:
    @workflow
    async def flow() -> int:
        return await double.using(id="d")(4)

    async with lab.running(flow, double) as client:
        await (await client.start(double.using(id="d"), 4)).result(timeout=10)
        assert await (await client.start(flow)).result(timeout=10) == 8


async def test_a_child_id_that_belongs_to_another_workflow_is_an_error_of_the_parent(lab: Lab) -> None:
    @workflow
    async def other() -> None:
        return

    @workflow
    async def flow(awaits: bool) -> str:
        try:
            if awaits:
                await double.using(id="taken")(1)
            else:
                await start(double.using(id="taken"), 1)
        except WorkflowFailed as error:
            return error.type_name
        return ""

    async with lab.running(flow, double, other) as client:
        await (await client.start(other.using(id="taken"))).result(timeout=10)
        for awaits in (True, False):
            assert await (await client.start(flow, awaits)).result(timeout=10) == "WorkflowIdConflict"


async def test_a_timeout_around_a_child_leaves_the_child_alone(lab: Lab) -> None:
    @workflow
    async def child() -> int:
        return await go.wait()

    @workflow
    async def flow() -> str:
        try:
            async with asyncio.timeout(60):
                await child()
        except TimeoutError:
            return "too slow"
        return ""

    async with lab.running(flow, child) as client:
        handle = await client.start(flow.using(id="p"))
        await lab.parked(handle, on="child")
        lab.clock.advance(61)
        assert await handle.result(timeout=10) == "too slow"
        assert (await lab.in_status("p/child", "waiting")).status == "waiting"
        assert keys(await handle.journal()) == ["timeout"]


async def test_a_child_inherits_the_queue_of_its_parent_unless_it_has_one(lab: Lab) -> None:
    @workflow(queue="slow")
    async def slow() -> None:
        return

    @workflow
    async def flow() -> None:
        await double(1)
        await slow()

    async with lab.running(flow, double, slow, queues=["special", "slow"]) as client:
        handle = await client.start(flow.using(id="p", queue="special"))
        await handle.result(timeout=10)
    async with lab.client() as client:
        assert (await client.handle("p/double").info()).queue == "special"
        assert (await client.handle("p/slow").info()).queue == "slow"


async def test_children_of_children_have_ids_that_tell_their_place(lab: Lab) -> None:
    @workflow
    async def middle(n: int) -> int:
        return await double(n)

    @workflow
    async def flow() -> int:
        return await middle(3)

    async with lab.running(flow, middle, double) as client:
        assert await (await client.start(flow.using(id="p"))).result(timeout=10) == 6
        assert (await client.handle("p/middle/double").info()).status == "completed"


async def test_a_child_of_a_type_that_no_worker_has_waits_for_one_that_has_it(lab: Lab) -> None:
    begun = asyncio.Event()

    @workflow
    async def flow() -> int:
        begun.set()
        return await double(2)

    async with lab.running(flow) as client:
        handle = await client.start(flow.using(id="p"))
        await wait_for(begun)
        await lab.parked(handle, on="child")
        assert (await client.handle("p/double").info()).status == "pending"
        async with lab.working(double):
            assert await handle.result(timeout=10) == 4

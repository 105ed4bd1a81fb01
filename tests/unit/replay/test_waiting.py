"""Signals and children: matched by key, delivered once, first in first out."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from onward._engine.failures import note
from onward._engine.replay.commands import StartChild, Waiting, WatchChild
from onward._store.records import Entry
from onward.context import Signal, start
from onward.definitions import step, workflow
from onward.errors import CodecError, ConfigurationError, NotInWorkflow, WorkflowCancelled, WorkflowFailed
from tests.unit.replay.driver import BEGAN, Run, same

approved = Signal("approved", bool)
words = Signal("words", str)


@step
def tick() -> None: ...


@workflow
async def child(n: int) -> int:
    return n


def test_a_signal_wait_is_outstanding_under_its_name_and_number() -> None:
    @workflow
    async def waits() -> list[str]:
        return list(await asyncio.gather(words.wait(), words.wait()))

    run = Run(waits)
    assert run.core.waiting() == [
        Waiting("signal:words", "signal", "words"),
        Waiting("signal:words#2", "signal", "words"),
    ]
    assert run.core.wants_signal("words") == "signal:words"
    assert run.core.wants_signal("approved") is None
    run.signal("words", "a")
    assert run.core.wants_signal("words") == "signal:words#2"
    run.signal("words", "b")
    assert run.result == ["a", "b"]
    assert same(run, run.again())


def test_a_wait_with_a_timeout_raises_timeout_error_by_a_durable_timer() -> None:
    @workflow
    async def waits() -> str:
        try:
            return str(await approved.wait(timeout=60))
        except TimeoutError:
            return "nobody"

    run = Run(waits)
    assert {w.key for w in run.core.waiting()} == {"timeout", "signal:approved"}
    run.fire()
    assert run.result == "nobody"
    run = Run(waits)
    run.signal("approved", True)
    assert run.result == "True"


def test_a_payload_of_another_type_is_a_codec_error_at_the_await() -> None:
    @workflow
    async def waits() -> None:
        await approved.wait()

    run = Run(waits)
    run.signal("approved", "yes")
    assert isinstance(run.error, CodecError)


def test_a_message_whose_wait_is_cancelled_in_the_same_drain_goes_to_the_next_wait_without_an_entry() -> None:
    @workflow
    async def races() -> list[str]:
        gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def first() -> str:
            gate.set_result(None)
            return await words.wait()

        loser = asyncio.create_task(first())
        await gate
        await asyncio.sleep(0)

        # one entry wakes `loser`; its cancellation comes from a callback that runs before it
        inner = loser._fut_waiter  # type: ignore[attr-defined]  # to be called back before the task is
        callbacks = list(inner._callbacks)
        for callback, _ in callbacks:
            inner.remove_done_callback(callback)
        inner.add_done_callback(lambda _: loser.cancel())
        for callback, context in callbacks:
            inner.add_done_callback(callback, context=context)
        await asyncio.wait([loser])
        assert loser.cancelled()
        return [await words.wait(), await words.wait()]

    run = Run(races)
    run.signal("words", "kept")
    assert run.keys == ["signal:words#3"], "the second wait was served from what the first left"
    run.signal("words", "next")
    assert run.result == ["kept", "next"]
    assert same(run, run.again())


def test_a_cancelled_wait_is_not_outstanding() -> None:
    @workflow
    async def waits() -> None:
        try:
            await words.wait(timeout=5)
        except TimeoutError:
            await tick()

    run = Run(waits)
    run.fire()
    assert run.core.wants_signal("words") is None
    assert run.keys == ["tick"]
    run.close()


def test_a_signal_needs_a_printable_name() -> None:
    for name in ("", "a\nb", "x" * 201):
        with pytest.raises(ConfigurationError, match="1 to 200 printable"):
            Signal(name, bool)
    with pytest.raises(NotInWorkflow, match="only a workflow can wait"):
        approved.wait()  # type: ignore[unused-coroutine]  # it raises


def test_awaiting_a_child_starts_it_under_an_id_made_from_the_key_and_gives_its_result() -> None:
    @workflow
    async def parent() -> int:
        return await child(1) + await child.using(priority=5)(n=2)

    run = Run(parent)
    [command] = run.commands
    assert isinstance(command, StartChild)
    assert (command.key, command.child_id, command.payload) == ("child", "w1/child", '{"n":1}')
    assert (command.watch, command.confirm) == (True, False)
    assert run.core.waiting() == [Waiting("child", "child", "w1/child")]
    assert run.core.wants_child("w1/child") == "child"
    run.feed("child", "child", result=10)
    second = run.commands[-1]
    assert isinstance(second, StartChild)
    assert (second.child_id, second.options.priority, second.payload) == ("w1/child#2", 5, '{"n":2}')
    assert run.again().commands == [second]
    run.feed("child", "child#2", result=20)
    assert run.result == 30
    assert same(run, run.again())


def test_child_ids_of_a_later_run_name_the_run_and_a_given_id_is_used_as_it_is() -> None:
    @workflow
    async def parent() -> None:
        await asyncio.gather(child(1), child.using(id="mine")(2))

    run = Run(parent, run=3)
    assert [c.child_id for c in run.commands if isinstance(c, StartChild)] == ["w1/3/child", "mine"]
    run.close()


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        (note("KeyError", "'x'", status="failed"), WorkflowFailed),
        (note("Cancelled", "cancelled", status="cancelled"), WorkflowCancelled),
    ],
)
def test_a_childs_end_by_error_arrives_as_workflow_failed(record: str, kind: type[Exception]) -> None:
    @workflow
    async def parent() -> str:
        try:
            await child(1)
        except WorkflowFailed as error:
            return type(error).__name__ + " " + error.workflow_id
        return "no"

    run = Run(parent)
    run.core.deliver(Entry(1, "child", "child", BEGAN, error=record))
    assert run.result == f"{kind.__name__} w1/child"


def test_start_gives_a_handle_once_the_start_is_durable_and_the_handle_waits_for_the_end() -> None:
    @workflow
    async def parent() -> list[Any]:
        handle = await start(child, 7)
        await tick()
        return [handle.id, await handle.result(), await handle]

    run = Run(parent)
    [command] = run.commands
    assert isinstance(command, StartChild)
    assert (command.key, command.child_id, command.watch, command.confirm) == (
        "start:child",
        "w1/start:child",
        False,
        True,
    )
    assert run.core.wants_child("w1/start:child") is None, "its end is not waited for yet"
    assert run.core.wants("start:child")
    run.feed("start", "start:child", result="w1/start:child")
    run.step("tick")
    assert run.commands[-1] == WatchChild("result:child", 2, "w1/start:child")
    assert run.core.wants_child("w1/start:child") == "result:child"
    run.feed("child", "result:child", result=49)
    assert run.result == ["w1/start:child", 49, 49], "the second await is served without an entry"
    assert same(run, run.again())


def test_start_takes_a_bound_workflow_and_refuses_what_is_none() -> None:
    @workflow
    async def parent() -> None:
        await start(child.using(id="given").bind(3))

    run = Run(parent)
    [command] = run.commands
    assert isinstance(command, StartChild)
    assert (command.child_id, command.payload) == ("given", '{"n":3}')
    run.close()

    @workflow
    async def wrong() -> None:
        await start(len)  # type: ignore[call-overload]  # the mistake under test

    assert "takes a function under @workflow" in str(Run(wrong).error)
    with pytest.raises(NotInWorkflow, match=r"client\.start"):
        start(child, 1)  # type: ignore[unused-coroutine]  # it raises


def test_a_refused_start_is_an_error_at_the_await() -> None:
    @workflow
    async def parent() -> str:
        try:
            await start(child, 1)
        except WorkflowFailed as error:
            return error.type_name
        return "started"

    run = Run(parent)
    run.core.deliver(Entry(1, "start:child", "start", BEGAN, error=note("WorkflowIdConflict", "taken")))
    assert run.result == "WorkflowIdConflict"


def test_several_waits_for_one_child_are_served_oldest_first() -> None:
    @workflow
    async def parent() -> list[int]:
        handle = await start(child, 1)
        return list(await asyncio.gather(handle.result(), handle.result()))

    run = Run(parent)
    run.feed("start", "start:child", result="w1/start:child")
    assert run.core.wants_child("w1/start:child") == "result:child"
    run.feed("child", "result:child", result=1)
    assert run.core.wants_child("w1/start:child") == "result:child#2"
    run.feed("child", "result:child#2", result=1)
    assert run.result == [1, 1]


def test_a_cancelled_await_of_a_child_leaves_it_alone() -> None:
    @workflow
    async def parent() -> str:
        try:
            async with asyncio.timeout(5):
                await child(1)
        except TimeoutError:
            return "went on"
        return "no"

    run = Run(parent)
    run.fire()
    assert run.result == "went on"
    assert run.core.wants_child("w1/child") is None

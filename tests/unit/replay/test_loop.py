"""The replay loop lets nothing in from outside, steps aside for the real loop, and is bounded."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from onward._engine.replay import private
from onward._engine.replay.loop import Limits
from onward.context import current, now
from onward.definitions import step, workflow
from onward.errors import NotAllowedInWorkflow, NotInWorkflow, WorkflowStuck
from tests.unit.replay.driver import Run


@step
def tick() -> None: ...


def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


FORBIDDEN: dict[str, Callable[[], Any]] = {
    "run_in_executor": lambda: asyncio.to_thread(len, ""),
    "create_connection": lambda: asyncio.open_connection("localhost", 1),
    "create_server": lambda: asyncio.start_server(lambda r, w: None, "localhost", 1),
    "create_datagram_endpoint": lambda: _loop().create_datagram_endpoint(asyncio.DatagramProtocol),
    "create_unix_connection": lambda: _loop().create_unix_connection(asyncio.Protocol, "x"),
    "subprocess_exec": lambda: asyncio.create_subprocess_exec("true"),
    "subprocess_shell": lambda: asyncio.create_subprocess_shell("true"),
    "getaddrinfo": lambda: _loop().getaddrinfo("localhost", 1),
    "sock_recv": lambda: _loop().sock_recv(None, 1),  # type: ignore[arg-type]  # never looked at
    "add_reader": lambda: _loop().add_reader(0, bool),
    "add_signal_handler": lambda: _loop().add_signal_handler(2, bool),
    "call_soon_threadsafe": lambda: _loop().call_soon_threadsafe(bool),
    "set_task_factory": lambda: _loop().set_task_factory(None),
    "set_default_executor": lambda: _loop().set_default_executor(None),  # type: ignore[arg-type]  # as above
    "run_until_complete": lambda: _loop().run_until_complete(asyncio.sleep(0)),
    "run_forever": lambda: _loop().run_forever(),
    "stop": lambda: _loop().stop(),
    "close": lambda: _loop().close(),
    "shutdown_asyncgens": lambda: _loop().shutdown_asyncgens(),
    "set_debug": lambda: _loop().set_debug(True),
}


@pytest.mark.parametrize("name", sorted(FORBIDDEN))
def test_what_reaches_outside_is_refused_with_the_cure(name: str) -> None:
    @workflow
    async def reaches() -> None:
        await FORBIDDEN[name]()

    run = Run(reaches)
    assert isinstance(run.error, NotAllowedInWorkflow)
    assert f"{name}() is not allowed in a workflow" in str(run.error)
    assert "do this in a step" in str(run.error)


def test_every_method_of_an_event_loop_is_either_the_replay_loops_own_or_refused() -> None:
    run = Run(ticks)
    for name in dir(asyncio.AbstractEventLoop):
        if not name.startswith("_"):
            assert getattr(type(run.core.loop), name) is not getattr(asyncio.AbstractEventLoop, name), name
    run.close()


@workflow
async def ticks() -> None:
    await tick()


def test_eager_tasks_are_refused_and_other_options_unknown() -> None:
    @workflow
    async def eager() -> None:
        asyncio.get_running_loop().create_task(asyncio.sleep(0), eager_start=True)  # type: ignore[call-arg]  # of 3.14

    assert isinstance(Run(eager).error, NotAllowedInWorkflow)

    @workflow
    async def unknown() -> None:
        asyncio.get_running_loop().create_task(asyncio.sleep(0), colour="red")  # type: ignore[call-arg]  # the mistake

    assert isinstance(Run(unknown).error, TypeError)

    @workflow
    async def allowed() -> str:
        task = asyncio.get_running_loop().create_task(asyncio.sleep(0, "x"), name="n", eager_start=None)  # type: ignore[call-arg]  # of 3.14
        return await task

    assert Run(allowed).result == "x"


def test_a_workflow_runs_from_a_plain_callback_of_a_real_loop_and_leaves_it_as_it_was() -> None:
    seen: list[Any] = []

    async def main() -> None:
        real = asyncio.get_running_loop()
        done = real.create_future()
        hooks = sys.get_asyncgen_hooks()

        def callback() -> None:
            seen.append(Run(ticks).work().ending)
            assert asyncio.get_running_loop() is real
            assert sys.get_asyncgen_hooks() == hooks
            done.set_result(None)

        real.call_soon(callback)
        await done

    asyncio.run(main())
    assert seen


def test_a_workflow_runs_from_within_a_task_of_a_real_loop() -> None:
    async def main() -> None:
        task = asyncio.current_task()
        Run(ticks).work()
        assert asyncio.current_task() is task

    asyncio.run(main())


def test_where_the_current_task_is_kept_per_thread_it_is_put_aside_and_put_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    swaps: list[tuple[Any, Any, Any]] = []
    outer: list[Any] = [None]

    def swap(loop: Any, task: Any) -> Any:
        before, outer[0] = outer[0], task
        swaps.append((loop, task, asyncio._get_running_loop()))
        return before

    monkeypatch.setattr(private, "_TASK_IS_PER_THREAD", True)
    monkeypatch.setattr(private, "_swap_current_task", swap)

    async def main() -> None:
        real, task = asyncio.get_running_loop(), asyncio.current_task()
        outer[0] = task
        run = Run(ticks)
        assert swaps == [(real, None, real), (real, task, real)], "each while the real loop is the running one"
        assert outer[0] is task
        run.close()

    asyncio.run(main())


def test_an_execution_cannot_be_activated_from_its_own_workflow() -> None:
    holder: list[Run] = []

    @workflow
    async def nested() -> None:
        await tick()
        holder[0].core.deliver(holder[0].history[0])

    holder.append(Run(nested))
    holder[0].step("tick")
    assert "running already" in str(holder[0].error)


def test_the_cyclic_collector_is_off_while_workflow_code_runs_and_as_before_afterwards() -> None:
    @workflow
    async def looks() -> bool:
        return gc.isenabled()

    assert Run(looks).result is False
    assert gc.isenabled()
    gc.disable()
    try:
        Run(looks)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_drain_that_never_rests_ends_as_stuck_and_names_the_line() -> None:
    @workflow
    async def spins() -> None:
        await tick()
        while now():
            await asyncio.sleep(0)  # here

    run = Run(spins, limits=Limits(handles=1000))
    run.step("tick")
    assert isinstance(run.error, WorkflowStuck)
    line = _line_of("await asyncio.sleep(0)  # here")
    assert run.error.location == f"{__file__}:{line}"
    assert run.error.location in str(run.error)
    assert "1,000 callbacks" in str(run.error)


def test_a_drain_is_bounded_in_seconds_too() -> None:
    @workflow
    async def spins() -> None:
        while True:
            await asyncio.sleep(0)

    assert isinstance(Run(spins, limits=Limits(seconds=0.01, handles=10**9)).error, WorkflowStuck)


def test_without_a_limit_of_seconds_only_the_number_of_callbacks_counts() -> None:
    @workflow
    async def works() -> int:
        for _ in range(5000):
            await asyncio.sleep(0)
        return 1

    assert Run(works, limits=Limits(seconds=None)).result == 1
    assert isinstance(Run(works, limits=Limits(seconds=None, handles=4000)).error, WorkflowStuck)


def _line_of(text: str) -> int:
    with open(__file__, encoding="utf-8") as source:
        return next(number for number, line in enumerate(source, 1) if line.strip().startswith(text))


def test_a_durable_call_in_a_callback_is_refused() -> None:
    errors: list[BaseException] = []

    @workflow
    async def main() -> None:
        def callback() -> None:
            try:
                tick()  # type: ignore[unused-coroutine]  # it raises
            except NotInWorkflow as error:
                errors.append(error)

        asyncio.get_running_loop().call_soon(callback)
        await tick()

    run = Run(main)
    assert "in a callback" in str(errors[0])
    run.close()


def test_a_thread_started_by_workflow_code_is_outside_of_the_workflow() -> None:
    seen: list[type] = []

    def look() -> None:
        try:
            current()
        except NotInWorkflow as error:
            seen.append(type(error))

    @workflow
    async def main() -> None:
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()

    Run(main)
    assert seen == [NotInWorkflow]


def test_a_durable_call_awaited_outside_of_its_execution_is_refused() -> None:
    leaked: list[Any] = []

    @workflow
    async def leaks() -> None:
        leaked.append(tick())
        await tick()

    run = Run(leaks)

    async def outside() -> None:
        with pytest.raises(NotInWorkflow, match="outside of it"):
            await leaked[0]

    asyncio.run(outside())
    assert run.issued() == ["tick#2"]
    run.close()


def test_errors_in_callbacks_are_logged_when_live_and_silent_on_replay(caplog: pytest.LogCaptureFixture) -> None:
    @workflow
    async def main() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await tick()

    run = Run(main).work()
    [record] = caplog.records
    assert record.name == "onward.workflow"
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError
    caplog.clear()
    run.again()
    assert caplog.records == []


def test_a_workflow_may_set_its_own_exception_handler() -> None:
    @workflow
    async def main() -> list[str]:
        seen: list[str] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: seen.append(type(context["exception"]).__name__))
        assert loop.get_exception_handler() is not None
        loop.call_soon(lambda: 1 / 0)
        await tick()
        return seen

    assert Run(main).work().result == ["ZeroDivisionError"]


def test_a_cancelled_handle_does_not_run() -> None:
    @workflow
    async def main() -> list[int]:
        seen: list[int] = []
        loop = asyncio.get_running_loop()
        loop.call_soon(seen.append, 1).cancel()
        timer = loop.call_later(5, seen.append, 2)
        assert timer.when() == 5
        timer.cancel()
        timer.cancel()
        assert timer.cancelled()
        loop.call_soon(seen.append, 3)
        await tick()
        return seen

    assert Run(main).work().result == [3]


def test_queues_locks_and_events_of_asyncio_work_unchanged() -> None:
    @workflow
    async def main() -> list[int]:
        queue: asyncio.Queue[int] = asyncio.Queue(maxsize=1)
        lock = asyncio.Lock()
        out: list[int] = []

        async def produce() -> None:
            for x in range(3):
                await tick()
                await queue.put(x)

        async def consume() -> None:
            for _ in range(3):
                async with lock:
                    out.append(await queue.get())

        await asyncio.gather(produce(), consume())
        return out

    assert Run(main).work().result == [0, 1, 2]


def test_workflow_code_does_not_see_the_workers_context_variables() -> None:
    from contextvars import ContextVar

    variable: ContextVar[str] = ContextVar("variable", default="unset")
    variable.set("of the worker")

    @workflow
    async def looks() -> str:
        before = variable.get()
        variable.set("of the workflow")
        return before

    assert Run(looks).result == "unset"
    assert variable.get() == "of the worker"

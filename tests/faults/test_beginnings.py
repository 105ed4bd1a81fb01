"""The very beginning of a step's body: what held when the runner asked for it may hold no more when its turn comes."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import Any

from onward._engine.bodies import Bodies, Body
from onward._engine.replay.commands import RunStep
from onward._engine.specs import StepSpec
from onward._engine.stepinfo import StepInfo
from onward._store.records import Entry
from onward.definitions import step

ran: list[str] = []


class Host:
    """Notes what it is told."""

    def info_of(self, body: Body) -> StepInfo:
        return StepInfo(workflow_id="w", key=body.command.key, idempotency_key="w/key", try_number=body.tries)

    def __init__(self) -> None:
        self.told: asyncio.Queue[tuple[str, BaseException | None]] = asyncio.Queue()

    def body_done(self, body: Body, result: Any, error: BaseException | None) -> None:
        self.told.put_nowait(("done", error))

    def body_unbegun(self, body: Body) -> None:
        self.told.put_nowait(("unbegun", None))

    def transaction_done(self, body: Body, entry: Entry | None, error: BaseException | None) -> None:
        raise AssertionError("no transaction here")


@step
async def in_loop(name: str) -> None:
    ran.append(name)


@step
def in_thread(name: str, gate: threading.Event | None) -> None:
    ran.append(name)
    if gate is not None:
        assert gate.wait(20)


def make_body(spec: StepSpec, host: Host, *args: object) -> Body:
    ran.clear()
    command = RunStep("key", 0, spec, args, {}, None, None)
    return Body(command, host, 1, 0)


def test_a_task_that_starts_after_the_lease_was_lost_does_not_begin_its_body() -> None:
    """The lease is asked for again in the body's own first turn, not only when it was started."""

    async def main() -> None:
        holds = True
        bodies, host = Bodies(1, contextvars.copy_context(), lambda: holds), Host()
        bodies.start(make_body(in_loop.spec, host, "a"))
        holds = False
        assert await host.told.get() == ("unbegun", None)
        assert (ran, bodies.running) == ([], set())
        bodies.close()

    asyncio.run(main())


def test_bodies_that_wait_for_a_thread_do_not_begin_once_the_lease_is_lost_or_nobody_wants_them() -> None:
    """A pool that is busy for longer than the lease never runs what has been taken over meanwhile."""

    async def main() -> None:
        holds = True
        bodies, host, gate = Bodies(1, contextvars.copy_context(), lambda: holds), Host(), threading.Event()
        first, dropped, lost = (
            make_body(in_thread.spec, host, name, gate if name == "first" else None)
            for name in ("first", "dropped", "lost")
        )
        for body in (first, dropped, lost):
            bodies.start(body)
        dropped.is_dropped = True
        holds = False
        gate.set()
        assert await host.told.get() == ("done", None)
        assert [await host.told.get() for _ in range(2)] == [("unbegun", None)] * 2
        assert (ran, bodies.running) == (["first"], set())
        bodies.close()

    asyncio.run(main())


def test_a_body_that_is_cancelled_before_its_first_turn_is_told_to_its_host() -> None:
    """asyncio never runs a line of such a task; the workflow that waits for the step's end would wait for ever."""

    async def main() -> None:
        bodies, host = Bodies(1, contextvars.copy_context()), Host()
        body = make_body(in_loop.spec, host, "a")
        bodies.start(body)
        body.cancel()
        word, error = await host.told.get()
        assert word == "done" and isinstance(error, asyncio.CancelledError)
        assert (ran, bodies.running) == ([], set())
        bodies.close()

    asyncio.run(main())

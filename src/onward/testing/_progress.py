"""How an environment goes on: wait until everything is at rest, then let the time leap to the next thing that is due.

At rest means: the worker claims and writes nothing, no body runs but such as sleep in the environment's time, and no row of
the database is due or held by a dead worker. Only then does the time move, and only while somebody waits for something
(`Environment.result`, `run`, `settle`, `advance`). Nothing here polls: the worker says when it has nothing to do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from onward._store.base import Store
from onward._store.records import Filter
from onward.info import WorkflowInfo
from onward.testing._errors import Deadlock, OutOfPatience

if TYPE_CHECKING:
    from onward.testing._clock import Alarms, LeapingClock
    from onward.testing._life import Life

GRACE_S = 0.1
"""How long somebody else may take to send what is waited for, before that counts as never."""
MOST_SHOWN = 10


class Progress:
    """Brings an environment on.

    Args:
        clock: its time. alarms: the bodies that sleep in it.
        present: the worker as it is, dead or alive, if there is one.
        living: gives a worker that is alive, starting one if there is none.
        store: gives the store of the environment's client, which is open.
        check: raises what the environment has to raise.
        awaits_renewal: whether the worker is to die at the renewal of its lease, which comes within a second.
        patience_s: of the machine's time, after which something that runs counts as hung; None: never.
    """

    def __init__(
        self,
        clock: LeapingClock,
        alarms: Alarms,
        present: Callable[[], Life | None],
        living: Callable[[], Awaitable[Life]],
        store: Callable[[], Awaitable[Store]],
        check: Callable[[], None],
        awaits_renewal: Callable[[], bool],
        patience_s: float | None,
    ) -> None:
        self._clock = clock
        self._alarms = alarms
        self._present = present
        self._living = living
        self._store = store
        self._check = check
        self._awaits_renewal = awaits_renewal
        self._patience_s = patience_s
        self._changed = asyncio.Event()
        self._news = 0
        self._turn = asyncio.Lock()

    def changed(self) -> None:
        """Something may have come to rest, or may go on."""
        self._changed.set()

    def committed(self) -> None:
        """Somebody has written something."""
        self._news += 1
        self._changed.set()

    # ------------------------------------------------------------------ going on

    async def until(self, is_done: Callable[[], Awaitable[bool]], limit_us: int | None = None) -> bool:
        """Go on until `is_done`. With a limit the time does not move beyond it: then False. Raises Deadlock."""
        while self._awaits_renewal() or not await is_done():
            async with self._turn:
                if await self._leap(limit_us, is_done) or await is_done():
                    continue
            if limit_us is not None:
                await self.advance_to(limit_us)
                return await is_done()
            if not await self._hear_news():
                raise Deadlock(await self.describe())
        return True

    async def settle(self) -> None:
        """Let everything run that can run now; the time does not move."""
        async with self._turn:
            await self._rest()

    async def advance_to(self, at_us: int) -> None:
        """Let the time pass until then, and everything happen that is due on the way."""
        async with self._turn:
            while await self._leap(at_us):
                pass
            if at_us > self._clock.now_us():
                self._move_to(at_us)
                await self._rest()

    async def _hear_news(self) -> bool:
        """Whether somebody writes something within a moment."""
        news = self._news
        try:
            async with asyncio.timeout(GRACE_S):
                while news == self._news:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    async def _leap(self, limit_us: int | None, is_done: Callable[[], Awaitable[bool]] | None = None) -> bool:
        """Come to rest, and let the time leap to what is due next; False if there is nothing within the limit."""
        due = await self._rest(is_done)
        if due is None or (limit_us is not None and due > limit_us):
            return False
        self._move_to(due)
        return True

    def _move_to(self, at_us: int) -> None:
        self._clock.move_to(at_us)
        self._alarms.ring()
        life = self._present()
        if life is not None and life.engine is not None and not life.is_dead:
            life.engine.dispatcher.time_moved()

    # ------------------------------------------------------------------ coming to rest

    async def _rest(self, is_done: Callable[[], Awaitable[bool]] | None = None) -> int | None:
        """Wait until nothing can run; returns when the next thing is due, or now if `is_done` before that."""
        seen, asked = -1, -1
        loop = asyncio.get_running_loop()
        give_up_at = None
        while True:
            self._changed.clear()
            self._check()
            if is_done is not None and not self._awaits_renewal() and await is_done():
                return self._clock.now_us()
            life = self._present()
            if life is None or life.is_dead:
                if is_done is not None and await is_done():  # perhaps this very death was waited for
                    return self._clock.now_us()
                life = await self._living()
            news = self._news
            if seen != news:
                seen = news
                give_up_at = None if self._patience_s is None else loop.time() + self._patience_s
            if self._is_quiet(life):
                due, is_orphaned = await self._look(life)
                if self._news == news and self._is_quiet(life):
                    is_due = due is not None and due <= self._clock.now_us()
                    if not is_due and not is_orphaned and not self._awaits_renewal():
                        return due
                    if asked != news and life.engine is not None:
                        asked = news
                        life.engine.dispatcher.compare()
            try:
                async with asyncio.timeout_at(give_up_at):
                    await self._changed.wait()
            except TimeoutError:
                raise OutOfPatience(await self._describe_hung(life)) from None

    def _is_quiet(self, life: Life) -> bool:
        """Whether this worker has nothing to do, as far as it knows."""
        engine = life.engine
        if life.is_dead or engine is None or not engine.committer.is_idle or not engine.dispatcher.is_resting:
            return False
        asleep = self._alarms.asleep()
        return all(one in asleep for one in engine.dispatcher.in_flight())

    async def _look(self, life: Life) -> tuple[int | None, bool]:
        """When the next thing is due; and whether a row is held by somebody who is not this worker."""
        engine = life.engine
        assert engine is not None
        store, dispatcher = await self._store(), engine.dispatcher
        held = dispatcher.held_ids
        times = [self._alarms.next_at, dispatcher.next_event_at]
        for alone in (False,) if held else (False, True):  # a row in quarantine waits until nothing else is held
            types = tuple(engine.options.workflows)
            times.append(await store.next_due(dispatcher.queues, types, engine.code_version, alone=alone))
        running = (await store.counts()).get("running", 0)
        return min((at for at in times if at is not None), default=None), running > len(held)

    # ------------------------------------------------------------------ telling why not

    async def describe(self) -> str:
        """Why nothing goes on."""
        life, store = await self._living(), await self._store()
        types = () if life.engine is None else tuple(life.engine.options.workflows)
        rows = await store.list(Filter(status=("pending", "waiting", "running"), limit=MOST_SHOWN + 1))
        lines = [f"  {_why(WorkflowInfo.of(row), types)}" for row in rows[:MOST_SHOWN]]
        if not lines:
            return "nothing will ever happen here by itself: every workflow has ended"
        more = "\n  …" if len(rows) > MOST_SHOWN else ""
        return (
            "nothing will ever go on here by itself:\n"
            + "\n".join(lines)
            + more
            + "\nSend the signal before you wait for "
            "the result (await env.signal(handle, signal, value)), or give the wait a timeout"
        )

    async def _describe_hung(self, life: Life) -> str:
        flying = [] if life.engine is None else life.engine.dispatcher.in_flight()
        asleep = self._alarms.asleep()
        running = [
            f"step {key!r} of {workflow_id!r}" for workflow_id, key in flying if (workflow_id, key) not in asleep
        ]
        what = f"running: {', '.join(running[:MOST_SHOWN])}" if running else "no step runs here"
        return (
            f"nothing has happened for {self._patience_s:g} s; {what}. Stub a step that waits for something else "
            "(env.stub(step, returns=…)), or give the environment more patience: Environment(patience=…)"
        )


def _why(info: WorkflowInfo, types: tuple[str, ...]) -> str:
    if info.type not in types:
        return f"{info.id} is a {info.type!r}, which this environment does not know: Environment(workflows=[…])"
    return f"{info.id} ({info.type}) is {info.state}"

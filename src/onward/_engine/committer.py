"""Group commit: gathers the operations of all executions (or of all client calls) while the previous flush is in flight.

There is no fixed delay: an operation that finds the store idle goes out at once, and under load a batch grows by itself to
what arrived during one commit. Every operation has an owner, who is told its outcome after the commit, in order.

The prefix rule: the operations of one owner commit in order or not at all. Once one is refused, the owner is dropped, and
all its later operations, queued ones too, are never written. A batch that the database refuses as a whole is split between
owners only, so that a poisonous operation fails alone. While the database is away the batch waits and is written again;
after an unknown commit it is written with `retry=True`, which looks before it writes.

What the store answers with `BUSY` (a stranger's open transaction holds the row) is put aside with everything else of its owner,
and written apart from the others after a growing pause, so that one open transaction never holds up a whole worker.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable
from typing import Protocol

from onward._engine import failpoints
from onward._store.base import Store
from onward._store.operations import LEASE_LOST, Busy, LeaseLostOutcome, Op, Outcome
from onward._store.transfer import MOVING
from onward.errors import FatalStoreError, OnwardError, OutcomeUnknown, StoreConflict, StoreError, TransientStoreError

log = logging.getLogger("onward.committer")

MAX_BATCH = 2_000
"""Operations in one transaction: keeps a commit in the low tens of milliseconds."""


BUSY_PAUSE_S, LONGEST_BUSY_PAUSE_S = 0.02, 0.5
"""Before what was busy is written again."""

SHARE = 32
"""Operations whose owners are told in one turn of the loop."""


_LOCKED = "another transaction holds the workflow's row; nothing was written, try again"


class Owner(Protocol):
    """Whoever submits operations: an execution, or one client call."""

    is_dropped: bool

    def settled(self, op: Op, outcome: Outcome) -> None:
        """The operation is committed with this outcome (or was refused by its fence)."""
        ...

    def refused(self, op: Op, error: OnwardError) -> None:
        """The operation cannot be written; it and all later ones of this owner were not."""
        ...


class Committer:
    """The one writer of a worker process or client.

    Args:
        store: an open store.
        patience_s: how long a batch is tried again while the database fails; then its owners are told. None: for ever.
        rng: jitter of the pauses.
        moved: told when the database says that its workflows have moved, before the owners are.
    """

    def __init__(
        self,
        store: Store,
        *,
        patience_s: float | None = None,
        rng: random.Random | None = None,
        moved: Callable[[OnwardError], None] | None = None,
    ) -> None:
        self._store = store
        self._patience_s = patience_s
        self._rng = rng or random.Random()
        self._moved = moved
        self._queue: list[tuple[Op, Owner]] = []
        self._sleep: asyncio.Future[None] | None = None
        """What the task awaits while nothing is to be written."""
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self._is_failing = False
        self._untold: deque[tuple[tuple[Op, Owner], Outcome]] = deque()
        """What is committed, and its owner does not know it yet."""
        self._is_telling = False
        self._aside: dict[int, list[tuple[Op, Owner]]] = {}
        """What was busy, by its owner's id(), in order."""
        self._aside_since: dict[int, float] = {}
        self._aside_pause_s = BUSY_PAUSE_S
        self._aside_timer: asyncio.TimerHandle | None = None
        self._is_recalled = False
        """What stands aside is to be written now."""

    def start(self) -> None:
        """Begin to flush; the committer owns its task until `stop`."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="onward-committer")

    async def stop(self) -> None:
        """Write what is queued, then end. Operations that the database refuses to take are lost, as in a crash."""
        if self._task is None:
            return
        try:
            await self._idle.wait()
        finally:
            self.abandon()
            await self.bury()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is queued or on its way."""
        return self._idle.is_set()

    def abandon(self) -> None:
        """End at once: what is queued is never written, as in a crash."""
        if self._aside_timer is not None:
            self._aside_timer.cancel()
            self._aside_timer = None
        if self._task is not None:
            self._task.cancel()

    async def bury(self) -> None:
        """After `abandon`: wait for the task's end."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    @property
    def task(self) -> asyncio.Task[None]:
        """The flushing task of a started committer."""
        assert self._task is not None
        return self._task

    def submit(self, op: Op, owner: Owner) -> None:
        """Queue an operation; its owner is called after the commit, on this loop."""
        if self._aside and id(owner) in self._aside:
            self._aside[id(owner)].append((op, owner))
            return
        self._queue.append((op, owner))
        if len(self._queue) == 1:
            self._wake()
            self._idle.clear()

    def _wake(self) -> None:
        sleep, self._sleep = self._sleep, None
        if sleep is not None and not sleep.done():
            sleep.set_result(None)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._queue and not self._is_recalled:
                self._sleep = loop.create_future()
                await self._sleep
            if self._is_recalled:
                await self._flush_aside()
            batch, self._queue = self._queue[:MAX_BATCH], self._queue[MAX_BATCH:]
            if batch:
                await self._flush(batch)
            del batch  # else an idle worker would keep the executions of its last batch
            if not self._queue and not self._aside:
                self._idle.set()

    async def _flush(self, batch: list[tuple[Op, Owner]], *, is_retry: bool = False) -> None:
        delay, deadline = 0.02, None
        while batch := [item for item in batch if not item[1].is_dropped]:
            failpoints.hit("flush:before")
            try:
                outcomes = await self._store.write([op for op, _ in batch], retry=is_retry)
            except StoreConflict as error:
                await self._split(batch, error, is_retry=is_retry)
                return
            except MOVING as error:
                if self._moved is not None:
                    self._moved(error)
                self._refuse(batch, error)
                return
            except (TransientStoreError, OutcomeUnknown, FatalStoreError) as error:
                is_retry = is_retry or isinstance(error, OutcomeUnknown)
                loop = asyncio.get_running_loop()
                if deadline is None and self._patience_s is not None:
                    deadline = loop.time() + self._patience_s
                give_up = self._patience_s is not None and isinstance(error, FatalStoreError)
                if give_up or (deadline is not None and loop.time() >= deadline):
                    self._refuse(batch, error)
                    return
                self._say_failing(error)
                await asyncio.sleep(delay * (0.5 + self._rng.random()))
                delay = min(delay * 2, 2.0)
                continue
            failpoints.hit("flush:after")
            self._say_well()
            if Busy in map(type, outcomes):
                answered = list(zip(batch, outcomes, strict=True))
                self._put_aside([item for item, outcome in answered if type(outcome) is Busy])
                batch = [item for item, outcome in answered if type(outcome) is not Busy]
                outcomes = [outcome for _, outcome in answered if type(outcome) is not Busy]
            self._untold.extend(zip(batch, outcomes, strict=True))
            if not self._is_telling:
                self._tell()
            return

    def _tell(self) -> None:
        """Tell owners their outcomes, in order: a share in each turn of the loop, so that neither a large batch nor a quick
        database keeps everybody else waiting."""
        untold = self._untold
        count = min(SHARE, len(untold))
        self._is_telling = len(untold) > count
        if self._is_telling:
            asyncio.get_running_loop().call_soon(self._tell)
        for _ in range(count):
            (op, owner), outcome = untold.popleft()
            if owner.is_dropped:
                continue
            owner.settled(op, outcome)
            if type(outcome) is LeaseLostOutcome:
                owner.is_dropped = True

    def _put_aside(self, items: list[tuple[Op, Owner]]) -> None:
        """Keep what was busy, and whatever else its owners have queued, for later."""
        now = asyncio.get_running_loop().time()
        owners = {id(owner) for _, owner in items}
        items += [item for item in self._queue if id(item[1]) in owners]
        self._queue = [item for item in self._queue if id(item[1]) not in owners]
        for item in items:
            self._aside.setdefault(id(item[1]), []).append(item)
            self._aside_since.setdefault(id(item[1]), now)
        if self._aside_timer is None:
            pause_s = self._aside_pause_s * (0.5 + self._rng.random())
            self._aside_timer = asyncio.get_running_loop().call_later(pause_s, self._recall)

    def _recall(self) -> None:
        self._aside_timer = None
        self._is_recalled = True
        self._wake()

    async def _flush_aside(self) -> None:
        """Write what stands aside, looking before: nobody knows what became of it meanwhile."""
        self._is_recalled = False
        aside, self._aside = self._aside, {}
        since, now = self._aside_since, asyncio.get_running_loop().time()
        for owner in list(aside):
            if self._patience_s is not None and now - since[owner] > self._patience_s:
                self._refuse(aside.pop(owner), TransientStoreError(_LOCKED))
                del since[owner]
        self._aside_pause_s = min(self._aside_pause_s * 2, LONGEST_BUSY_PAUSE_S)
        await self._flush([item for items in aside.values() for item in items], is_retry=True)
        self._aside_since = {owner: at for owner, at in since.items() if owner in self._aside}
        if not self._aside:
            self._aside_pause_s = BUSY_PAUSE_S

    async def _split(self, batch: list[tuple[Op, Owner]], error: StoreConflict, *, is_retry: bool) -> None:
        """Halve a refused batch between owners, until the poisonous owner stands alone."""
        owners = list(dict.fromkeys(id(owner) for _, owner in batch))
        if len(owners) == 1:
            self._refuse(batch, error)
            return
        first = set(owners[: len(owners) // 2])
        await self._flush([item for item in batch if id(item[1]) in first], is_retry=is_retry)
        await self._flush([item for item in batch if id(item[1]) not in first], is_retry=is_retry)

    def _refuse(self, batch: list[tuple[Op, Owner]], error: OnwardError) -> None:
        for op, owner in batch:
            if not owner.is_dropped:
                owner.refused(op, error)
                owner.is_dropped = True

    def _say_failing(self, error: StoreError) -> None:
        if not self._is_failing:
            self._is_failing = True
            log.warning("the database does not take writes; trying again until it does: %s", error)

    def _say_well(self) -> None:
        if self._is_failing:
            self._is_failing = False
            log.info("the database takes writes again")


class Call:
    """The owner of one client operation: a future of its outcome."""

    __slots__ = ("future", "is_dropped")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.is_dropped = False
        self.future: asyncio.Future[Outcome] = loop.create_future()

    def settled(self, op: Op, outcome: Outcome) -> None:
        """Pass the outcome on."""
        if not self.future.done():
            self.future.set_result(outcome)

    def refused(self, op: Op, error: OnwardError) -> None:
        """Pass the error on."""
        if not self.future.done():
            self.future.set_exception(error)


__all__ = ["LEASE_LOST", "Call", "Committer", "Owner"]

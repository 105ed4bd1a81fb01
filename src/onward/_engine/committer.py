"""Group commit: gathers the operations of all executions (or of all client calls) while the previous flush is in flight.

There is no fixed delay: an operation that finds the store idle goes out at once, and under load a batch grows by itself to
what arrived during one commit. Every operation has an owner, who is told its outcome after the commit, in order.

The prefix rule: the operations of one owner commit in order or not at all. Once one is refused, the owner is dropped, and
all its later operations, queued ones too, are never written. A batch that the database refuses as a whole is split between
owners only, so that a poisonous operation fails alone. While the database is away the batch waits and is written again;
after an unknown commit it is written with `retry=True`, which looks before it writes.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from typing import Protocol

from onward._engine import failpoints
from onward._store.base import Store
from onward._store.operations import LEASE_LOST, LeaseLostOutcome, Op, Outcome
from onward.errors import FatalStoreError, OutcomeUnknown, StoreConflict, StoreError, TransientStoreError

log = logging.getLogger("onward.committer")

MAX_BATCH = 2_000
"""Operations in one transaction: keeps a commit in the low tens of milliseconds."""


SHARE = 256
"""Operations whose owners are told in one turn of the loop."""


class Owner(Protocol):
    """Whoever submits operations: an execution, or one client call."""

    is_dropped: bool

    def settled(self, op: Op, outcome: Outcome) -> None:
        """The operation is committed with this outcome (or was refused by its fence)."""
        ...

    def refused(self, op: Op, error: StoreError) -> None:
        """The operation cannot be written; it and all later ones of this owner were not."""
        ...


class Committer:
    """The one writer of a worker process or client.

    Args:
        store: an open store.
        patience_s: how long a batch is tried again while the database fails; then its owners are told. None: for ever.
        rng: jitter of the pauses.
    """

    def __init__(self, store: Store, *, patience_s: float | None = None, rng: random.Random | None = None) -> None:
        self._store = store
        self._patience_s = patience_s
        self._rng = rng or random.Random()
        self._queue: list[tuple[Op, Owner]] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self._is_failing = False

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
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    @property
    def task(self) -> asyncio.Task[None]:
        """The flushing task of a started committer."""
        assert self._task is not None
        return self._task

    def submit(self, op: Op, owner: Owner) -> None:
        """Queue an operation; its owner is called after the commit, on this loop."""
        self._queue.append((op, owner))
        if len(self._queue) == 1:
            self._wake.set()
            self._idle.clear()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            batch, self._queue = self._queue[:MAX_BATCH], self._queue[MAX_BATCH:]
            if not self._queue:
                self._wake.clear()
            await self._flush(batch)
            del batch  # else an idle worker would keep the executions of its last batch
            if not self._queue:
                self._idle.set()

    async def _flush(self, batch: list[tuple[Op, Owner]], *, is_retry: bool = False) -> None:
        delay, deadline = 0.02, None
        loop = asyncio.get_running_loop()
        while batch := [item for item in batch if not item[1].is_dropped]:
            failpoints.hit("flush:before")
            try:
                outcomes = await self._store.write([op for op, _ in batch], retry=is_retry)
            except StoreConflict as error:
                await self._split(batch, error, is_retry=is_retry)
                return
            except (TransientStoreError, OutcomeUnknown, FatalStoreError) as error:
                is_retry = is_retry or isinstance(error, OutcomeUnknown)
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
            self._settle(batch, outcomes, 0)
            return

    def _settle(self, batch: list[tuple[Op, Owner]], outcomes: Sequence[Outcome], start: int) -> None:
        """Tell the owners, a share in each turn of the loop, so that a large batch does not keep everybody else waiting."""
        end = start + SHARE
        if end < len(batch):
            asyncio.get_running_loop().call_soon(self._settle, batch, outcomes, end)
        for (op, owner), outcome in zip(batch[start:end], outcomes[start:end], strict=True):
            if owner.is_dropped:
                continue
            owner.settled(op, outcome)
            if type(outcome) is LeaseLostOutcome:
                owner.is_dropped = True

    async def _split(self, batch: list[tuple[Op, Owner]], error: StoreConflict, *, is_retry: bool) -> None:
        """Halve a refused batch between owners, until the poisonous owner stands alone."""
        owners = list(dict.fromkeys(id(owner) for _, owner in batch))
        if len(owners) == 1:
            self._refuse(batch, error)
            return
        first = set(owners[: len(owners) // 2])
        await self._flush([item for item in batch if id(item[1]) in first], is_retry=is_retry)
        await self._flush([item for item in batch if id(item[1]) not in first], is_retry=is_retry)

    def _refuse(self, batch: list[tuple[Op, Owner]], error: StoreError) -> None:
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

    def refused(self, op: Op, error: StoreError) -> None:
        """Pass the error on."""
        if not self.future.done():
            self.future.set_exception(error)


__all__ = ["LEASE_LOST", "Call", "Committer", "Owner"]

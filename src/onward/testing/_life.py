"""One life of an environment's worker: from its start to its graceful end, or to its death at a planned crash.

A death within a process is as near to `kill -9` as it gets. From that instant on the store refuses everything that this
worker may still want to write (`_stores.py`), its executions are closed without a word, no body begins, and not a line of an
`async def` body that was waiting runs any more until the environment ends. (A `def` body in its thread cannot be stopped: it
runs to its end, and nobody hears of it.) Then its proof of life is given up, so that the next worker takes over at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from onward._engine.engine import Engine
from onward._engine.seams import Seams
from onward._engine.specs import StepSpec, WorkflowSpec
from onward._store.base import Store
from onward._store.records import Entry
from onward._wrappers import Workflow
from onward.codec import Codec
from onward.errors import NonDeterminismError, OutcomeUnknown
from onward.testing._clock import LeapingClock
from onward.testing._faults import RECORDED, Crashed, Faults, Passing
from onward.testing._stores import Seeds, mortal
from onward.worker import Lifespan, Worker

LEASE = timedelta(days=36500)
"""Leases end by death only: time makes leaps."""
POSTGRES_LEASE = timedelta(seconds=15)
"""There a death is seen at once in nothing that one could hurry: the lease runs out, in the environment's time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all lives of one environment have in common."""

    url: str
    clock: LeapingClock
    codec: Codec | None
    lifespan: Lifespan | None
    seed: int
    faults: Faults
    seeds: Seeds
    step: Callable[[StepSpec, Life], StepSpec]
    workflow: Callable[[WorkflowSpec], WorkflowSpec]
    failed: Callable[[str, BaseException, bool], None]
    """An error has left a workflow function: its id, the error, whether it is the outcome."""
    mismatched: Callable[[str, NonDeterminismError | str], None]
    changed: Callable[[], None]
    """Something may have come to rest, or may go on."""


class Life:
    """One worker of an environment.

    Args:
        around: what it shares with the lives before and after it.
        workflows: what it can run. queues: what it serves at first.
        code_version: what counts as the same code.
    """

    def __init__(
        self,
        around: Surroundings,
        workflows: Iterable[Workflow[..., Any]],
        queues: Iterable[str],
        code_version: str,
    ) -> None:
        self._around = around
        self.is_dead = False
        self.death = ""
        """The point at which it died."""
        self._frozen: list[Coroutine[Any, Any, Any]] = []
        """Bodies that were waiting when it died."""
        self._is_on_postgres = around.url.startswith("postgres")
        self._loop = asyncio.get_running_loop()
        self._thread_id = threading.get_ident()
        seams = Seams(
            seed=around.seed,
            probe=self.hit,
            wrap_store=self._wrapped,
            step=lambda spec: around.step(spec, self),
            workflow=around.workflow,
            mismatched=around.mismatched,
            rested=around.changed,
        )
        self._worker = Worker(
            around.url,
            workflows=workflows,
            queues=queues,
            lease=POSTGRES_LEASE if self._is_on_postgres else LEASE,
            grace=5.0,
            lifespan=around.lifespan,
            name="onward.testing",
            code_version=code_version,
            codec=around.codec,
            checks_replay=True,
            _on_error=around.failed,
            _clock=around.clock,
            _seams=seams,
        )

    def _wrapped(self, store: Store) -> Store:
        return mortal(store, self, self._around.seeds)

    # ------------------------------------------------------------------ life

    async def begin(self) -> None:
        """Start the worker. A crash that is planned for its very beginning leaves it dead."""
        try:
            await self._worker.__aenter__()
        except Crashed:
            await self.end()
        else:
            task = self._worker._task
            assert task is not None
            task.add_done_callback(lambda _: self._around.changed())

    async def end(self) -> None:
        """Stop gracefully, or sweep up after a death."""
        failure = self.failure
        try:
            await self._worker.__aexit__(None, None, None)
        except BaseException as error:
            if error is not failure and not isinstance(error, Crashed):  # else it is told, or was planned
                raise
        if self.is_dead and self._is_on_postgres:
            clock = self._around.clock
            clock.move_to(clock.now_us() + POSTGRES_LEASE // timedelta(microseconds=1) + 1)

    @property
    def engine(self) -> Engine | None:
        """What works, once it does."""
        return self._worker._engine

    @property
    def failure(self) -> BaseException | None:
        """What has ended the worker, other than a planned crash."""
        task = self._worker._task
        if self.is_dead or task is None or not task.done() or task.cancelled():
            return None
        return task.exception()

    def learn(self, workflows: Iterable[Workflow[..., Any]]) -> None:
        """Run these, too."""
        self._worker._learn(workflows)

    def close_frozen(self) -> None:
        """At the end of the environment: let go of the bodies that were waiting when this worker died."""
        for coroutine in self._frozen:
            with contextlib.suppress(Exception):  # its cleanup may want to wait, which it cannot any more
                coroutine.close()
        self._frozen.clear()

    # ------------------------------------------------------------------ death

    def check(self) -> None:
        """Raise `Crashed` if it is dead."""
        if self.is_dead:
            raise Crashed(self.death)

    def hit(self, point: str) -> None:
        """Pass a point, from any thread."""
        self.pass_by(Passing(point))

    def recorded(self, workflow_id: str, entry: Entry) -> None:
        """An entry is committed."""
        self.pass_by(Passing(RECORDED, workflow_id, entry.key))

    def pass_by(self, passing: Passing) -> None:
        """Pass a point: raises `Crashed` where it is to be the last one, OutcomeUnknown where a reply is to be lost."""
        self.check()
        plan = self._around.faults.passed(passing)
        if plan is None:
            return
        if plan.kind == "lost reply":
            raise OutcomeUnknown(f"the reply was lost at {passing.point}, as planned")
        self.die(passing.point)
        raise Crashed(passing.point)

    def die(self, point: str) -> None:
        """Be dead from now on; callable from any thread."""
        self.is_dead, self.death = True, point
        if threading.get_ident() == self._thread_id:
            self._fall()
        else:
            self._loop.call_soon_threadsafe(self._fall)

    def _fall(self) -> None:
        self._worker._abandon()
        self._around.changed()

    async def run_mortally(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run the coroutine of a body, which stops for good where it waits when this worker dies."""
        return await _Mortally(coroutine, self)

    def freeze(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Keep a body that will never go on."""
        self._frozen.append(coroutine)


class _Mortally:
    """Steps a coroutine for the task that awaits it, as long as its worker lives."""

    __slots__ = ("_coroutine", "_life")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], life: Life) -> None:
        self._coroutine = coroutine
        self._life = life

    def __await__(self) -> Any:
        coroutine, life = self._coroutine, self._life
        turn: Callable[[], Any] = lambda: coroutine.send(None)  # noqa: E731  # there are three of them
        while True:
            try:
                awaited = turn()
            except StopIteration as stop:
                return stop.value
            error: BaseException | None = None
            sent = None
            try:
                sent = yield awaited
            except BaseException as thrown:  # a cancellation; it is the coroutine's, unless its process is dead
                error = thrown
            if life.is_dead:
                life.freeze(coroutine)
                raise Crashed(life.death)
            turn = _turn(coroutine, sent, error)


def _turn(coroutine: Coroutine[Any, Any, Any], sent: Any, error: BaseException | None) -> Callable[[], Any]:
    if error is None:
        return lambda: coroutine.send(sent)
    return lambda: coroutine.throw(error)

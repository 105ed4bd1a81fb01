"""The parts of one worker put together, and what its runners may ask of them.

`worker.py` makes an `Engine` for its options, enters `lifespan`, and calls `start` and `stop`. The engine owns the
committer, the lease, the bodies and the dispatcher; runners reach all of them through it. One engine belongs to one event
loop and one store.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import random
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import msgspec

from onward._engine.bodies import Bodies, Transactor
from onward._engine.committer import Call, Committer
from onward._engine.dispatcher import Dispatcher
from onward._engine.lease import LeaseEvents, LeaseKeeper
from onward._engine.replay.commands import Raised
from onward._engine.replay.matching import Execution
from onward._engine.starts import new_seed
from onward._store.base import Store
from onward._store.operations import Fence, FinishOp
from onward._store.records import JOURNAL_FORMAT, Claimed, Entry, WorkerRow
from onward.errors import ConfigurationError, NonDeterminismError, StoreError, WorkflowStuck

if TYPE_CHECKING:
    from onward._engine.runner import Runner
    from onward._engine.specs import WorkflowSpec

VERSION = f"{JOURNAL_FORMAT}/{sys.version_info.major}.{sys.version_info.minor}"
"""What a row keeps of the software that first ran it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """A worker's options, checked by `Worker`; times in seconds."""

    workflows: Mapping[str, WorkflowSpec]
    queues: tuple[str, ...] = ("default",)
    slots: int = 200
    threads: int = 32
    lease_s: float = 15.0
    grace_s: float = 30.0
    hold_s: float = 0.02
    name: str = ""
    host: str = ""
    pid: int = 0
    code_version: str = ""
    only: tuple[str, ...] | None = None
    """Take these workflows and the children they start, nothing else (`onward.run`); the first one stays pending however often
    it fails."""
    checks_replay: bool = False
    """Replay every execution from its journal at each park and at its end, and compare."""
    is_always_parking: bool = False
    """Give every execution back after each entry (a test mode)."""
    on_error: Callable[[str, BaseException, bool], None] | None = None
    """Told of each error that leaves a workflow function: the workflow's id, the error, whether it is its outcome."""
    rng: random.Random = field(default_factory=random.Random)


class Engine:
    """One running worker."""

    def __init__(self, store: Store, options: EngineOptions, context: contextvars.Context) -> None:
        self.store = store
        self.options = options
        self.loop = asyncio.get_running_loop()
        self.log = logging.getLogger("onward.worker")
        self.rng = options.rng
        self.worker_id = ""
        self.version = VERSION
        self.code_version = options.code_version
        self.hold_us = 0 if options.is_always_parking else round(options.hold_s * 1e6)
        self.grace_s = options.grace_s
        self.is_always_parking = options.is_always_parking
        self.now_us = store.now_us
        self.new_seed = new_seed
        self.committer = Committer(store, rng=self.rng)
        self.bodies = Bodies(options.threads, context, self.may_begin_bodies, self._failed_with)
        self.dispatcher = Dispatcher(self)
        self.lease = LeaseKeeper(
            store,
            options.lease_s,
            LeaseEvents(
                dead=self._declared_dead,
                buried=self._buried,
                renewed=self.dispatcher.lease_renewed,
                failed=self._failed_with,
            ),
        )
        self.failed: asyncio.Future[None] = self.loop.create_future()
        """Gets the error that ended one of the engine's own tasks: a bug, which must not pass unseen."""
        self._rebirth: asyncio.Task[None] | None = None
        self.replay_mismatches: list[str] = []
        """Workflows whose replay disagreed, in checking mode."""

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """Register the worker, begin to claim."""
        self.committer.start()
        await self._register()
        self.dispatcher.start()
        for task in (*self.dispatcher.tasks, self.committer.task):
            task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed_with(error)

    def _failed_with(self, error: BaseException) -> None:
        if not self.failed.done():
            self.failed.set_exception(error)

    async def stop(self) -> None:
        """Stop claiming, let bodies end within the grace, give every row back, end all tasks and threads."""
        if self._rebirth is not None:
            self._rebirth.cancel()
            await asyncio.gather(self._rebirth, return_exceptions=True)
        await self.dispatcher.stop(self.grace_s)
        await self.committer.stop()
        await self._release_strays()
        await self.lease.stop(retire=True)
        self.bodies.close()

    async def _release_strays(self) -> None:
        try:
            await self.store.reconcile(self.worker_id, [])
        except StoreError as error:
            self.log.warning("rows of a cancelled claim could not be released; others will take them: %s", error)

    async def _register(self) -> None:
        self.worker_id = uuid.uuid4().hex
        options = self.options
        row = WorkerRow(
            id=self.worker_id,
            name=options.name,
            host=options.host,
            pid=options.pid,
            queues=options.queues,
            types=tuple(options.workflows),
            code_version=options.code_version,
        )
        await self.lease.start(row)

    def _declared_dead(self) -> None:
        self.log.warning("this worker was taken for dead and has lost its workflows; it goes on under a new id")
        self.dispatcher.drop_all()
        self._rebirth = self.loop.create_task(self._be_reborn(), name="onward-rebirth")
        self._rebirth.add_done_callback(self._task_ended)

    async def _be_reborn(self) -> None:
        """Take a new id; a database that does not take it now is asked again until it does."""
        delay, has_told = 0.05, False
        while True:
            await self.lease.stop(retire=False)
            try:
                await self._register()
            except StoreError as error:
                if not has_told:
                    has_told = True
                    self.log.warning("the new id cannot be registered now; trying again until it can: %s", error)
                await asyncio.sleep(delay * (0.5 + self.rng.random()))
                delay = min(delay * 2, 2.0)
            else:
                break
        self.dispatcher.poke()

    def _buried(self, released: int) -> None:
        self.log.info("took over %d workflows of dead workers", released)
        self.dispatcher.poke()

    # ------------------------------------------------------------------ what runners ask

    @property
    def is_stopping(self) -> bool:
        """The worker gives everything back."""
        return self.dispatcher.is_stopping

    def may_begin_bodies(self) -> bool:
        """The lease is known to hold and the worker is not stopping. Callable from any thread."""
        return self.lease.holds and not self.dispatcher.is_stopping

    def new_execution(self, row: Claimed, spec: WorkflowSpec, seq_floor: int) -> Execution:
        """A core for this row; `seq_floor` is the highest journal number in use, struck-out entries included."""
        return Execution(
            spec,
            row.payload,
            workflow_id=row.id,
            seed=row.seed,
            started_at=row.started_at,
            run=row.run,
            attempt=row.attempts + 1,
            tags=msgspec.json.decode(row.tags) if row.tags else {},
            code_version=self.code_version,
            recorded_code_version=row.code_version,
            recorded_version=row.version,
            seq_floor=seq_floor,
            note=lambda text: self.log.warning("workflow %s: %s", row.id, text, extra={"workflow_id": row.id}),
        )

    def check_replay(self, row: Claimed, spec: WorkflowSpec, history: Sequence[Entry], core: Execution) -> None:
        """In checking mode: the history just written must lead a fresh core to the same commands and the same end."""
        is_stuck = isinstance(core.ending, Raised) and isinstance(core.ending.error, WorkflowStuck)
        if not self.options.checks_replay or is_stuck:  # no replay sees that nothing will ever come
            return
        again = self.new_execution(row, spec, 0)
        try:
            with contextlib.suppress(NonDeterminismError):
                again.replay(history)
            agree = again.waiting() == core.waiting() and type(again.ending) is type(core.ending)
        finally:
            again.close()
        if not agree:
            self.replay_mismatches.append(row.id)
            self.log.error(
                "the replay of workflow %s does not agree with its execution: %s against %s",
                row.id, again.waiting() or again.ending, core.waiting() or core.ending, extra={"workflow_id": row.id},
            )  # fmt: skip

    def transactor(self) -> Transactor:
        """The store's transactional steps."""
        if not hasattr(self.store, "run_transaction"):
            raise ConfigurationError(f"{self.store.url} has no transactional steps")
        return cast("Transactor", self.store)

    def child_started(self, workflow_id: str, queue: str) -> None:
        """Remember a child, so that a worker limited to one workflow's tree claims it too."""
        self.dispatcher.also_take(workflow_id, queue)

    def released(self, runner: Runner) -> None:
        """A runner has ended."""
        self.dispatcher.released(runner)

    def tell_error(self, runner: Runner, error: BaseException, *, is_final: bool = False) -> None:
        """Pass on an error that left a workflow function; `is_final`: it is the workflow's outcome."""
        if self.options.on_error is not None:
            self.options.on_error(runner.row.id, error, is_final)

    def fail_apart(self, fence: Fence, error: str) -> None:
        """Fail a workflow whose own writes the database refuses, by a write that carries nothing of them."""
        self.committer.submit(FinishOp(fence, "failed", error=error), Call(self.loop))

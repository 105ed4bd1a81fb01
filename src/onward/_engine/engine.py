"""The parts of one worker put together, and what its runners may ask of them.

`worker.py` makes an `Engine` for its options, enters `lifespan`, and calls `start` and `stop`. The engine owns the
committer, the lease, the bodies and the dispatcher; runners reach all of them through it. One engine belongs to one event
loop and one store.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
import secrets
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

import msgspec

from onward._engine.bodies import Bodies, Transactor
from onward._engine.committer import Call, Committer
from onward._engine.dispatcher import Dispatcher
from onward._engine.lease import LeaseEvents, LeaseKeeper
from onward._engine.replay.commands import Raised
from onward._engine.replay.matching import Execution
from onward._engine.retention import Retention
from onward._engine.seams import Seams
from onward._engine.starts import new_seed
from onward._store.base import Store
from onward._store.operations import Fence, FinishOp
from onward._store.records import JOURNAL_FORMAT, Claimed, Entry, WorkerRow
from onward._store.transfer import MOVING
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
    retention_s: float | None = None
    """Delete workflows that finished longer ago."""
    checks_replay: bool = False
    """Replay every execution from its journal at each park and at its end, and compare."""
    is_always_parking: bool = False
    """Give every execution back after each entry (a test mode)."""
    on_error: Callable[[str, BaseException, bool], None] | None = None
    """Told of each error that leaves a workflow function: the workflow's id, the error, whether it is its outcome."""
    rng: random.Random = field(default_factory=random.Random)
    seams: Seams | None = None
    """The testing kit's."""


class Engine:
    """One running worker."""

    def __init__(self, store: Store, options: EngineOptions, context: contextvars.Context) -> None:
        self.store = store
        self.options = options
        self.loop = asyncio.get_running_loop()
        self.thread_id = threading.get_ident()
        self.log = logging.getLogger("onward.worker")
        self.rng = options.rng
        self.worker_id = ""
        self.version = VERSION
        self.code_version = options.code_version
        self.seams = options.seams
        self.hold_us = 0 if options.is_always_parking or self.seams is not None else round(options.hold_s * 1e6)
        self.wake_spacing = 10 if self.seams is None else 0
        """A parent is woken by its children no sooner than this many times what its last activation took."""
        self.grace_s = options.grace_s
        self.is_always_parking = options.is_always_parking
        self.now_us = store.now_us
        self.new_seed = new_seed
        self.committer = Committer(store, rng=self.rng, moved=self.leave)
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
            watches_loop=self.seams is None,
        )
        self.failed: asyncio.Future[None] = self.loop.create_future()
        """Gets the error that ended one of the engine's own tasks: a bug, which must not pass unseen."""
        self._rebirth: asyncio.Task[None] | None = None
        self._retention: asyncio.Task[None] | None = None
        self.replay_mismatches: list[str] = []
        """Workflows whose replay disagreed, in checking mode."""
        self._is_abandoned = False

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """Register the worker, begin to claim."""
        self.committer.start()
        await self._register()
        self.dispatcher.start()
        tasks = [*self.dispatcher.tasks, self.committer.task]
        if self.options.retention_s is not None:
            retention = Retention(self.store, self.options.retention_s, self.rng)
            self._retention = self.loop.create_task(retention.run(), name="onward-retention")
            tasks.append(self._retention)
        for task in tasks:
            task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed_with(error)

    def _failed_with(self, error: BaseException) -> None:
        if isinstance(error, MOVING):
            self.leave(error)
        elif not self.failed.done() and not self._is_abandoned:
            self.failed.set_exception(error)

    def leave(self, error: BaseException) -> None:
        """The workflows are being moved to another database, or were: drop all of them and end the worker with that error.
        What runs here was given back by the move; nothing is written any more, and nothing can be."""
        if not self.failed.done() and not self._is_abandoned:
            self.log.warning("this worker ends: %s", error)
            self.dispatcher.drop_all()
            self.failed.set_exception(error)

    def learn(self, workflows: Mapping[str, WorkflowSpec]) -> None:
        """Take workflows of these types from now on (the testing kit's)."""
        self.options = replace(self.options, workflows=workflows)
        self.dispatcher.learn(tuple(workflows))

    def abandon(self) -> None:
        """Die as a killed process does, as far as one can within a process: nothing goes on and nothing is written or given
        back, and what may still be on its way must be refused by the store (the testing kit's does). `bury` ends it."""
        self._is_abandoned = True
        for task in self._own_tasks():
            task.cancel()
        self.dispatcher.abandon()
        self.committer.abandon()
        self.bodies.abandon()

    async def bury(self) -> None:
        """After `abandon`: wait for the tasks to end, and let go of the proof of life without a word."""
        self.abandon()  # again: it may have been in the middle of `start`
        await asyncio.gather(*self.dispatcher.tasks, *self._own_tasks(), return_exceptions=True)
        await self.committer.bury()
        await self.bodies.bury()
        await self.lease.stop(retire=False)
        self.bodies.close()

    async def stop(self) -> None:
        """Stop claiming, let bodies end within the grace, give every row back, end all tasks and threads."""
        for task in self._own_tasks():
            task.cancel()
        await asyncio.gather(*self._own_tasks(), return_exceptions=True)
        await self.dispatcher.stop(self.grace_s)
        await self.committer.stop()
        await self._release_strays()
        await self.lease.stop(retire=True)
        self.bodies.close()

    def _own_tasks(self) -> list[asyncio.Task[None]]:
        return [task for task in (self._rebirth, self._retention) if task is not None]

    async def _release_strays(self) -> None:
        try:
            await self.store.reconcile(self.worker_id, [])
        except MOVING:
            pass  # the move has released them
        except StoreError as error:
            self.log.warning("rows of a cancelled claim could not be released; others will take them: %s", error)

    async def _register(self) -> None:
        self.worker_id = secrets.token_hex(8)  # short: it stands in each running row, and in two of its indexes
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

    def workflow(self, type_name: str) -> WorkflowSpec:
        """The definition that rows of this type run with."""
        spec = self.options.workflows[type_name]
        return spec if self.seams is None else self.seams.workflow(spec)

    def may_begin_bodies(self) -> bool:
        """The lease is known to hold and the worker is not stopping. Callable from any thread."""
        return time.monotonic() < self.lease.valid_until and not self.dispatcher.is_stopping

    def new_execution(self, row: Claimed, spec: WorkflowSpec, seq_floor: int, *, is_quiet: bool = False) -> Execution:
        """A core for this row; `seq_floor` is the highest journal number in use, struck-out entries included. One that only
        tries the history again is quiet: what there is to say of the workflow's code has been said."""
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
            note=_say_nothing if is_quiet else None,
            outer=self.loop,
        )

    def check_replay(self, row: Claimed, spec: WorkflowSpec, history: Sequence[Entry], core: Execution) -> None:
        """In checking mode: the history just written must lead a fresh core to the same commands and the same end."""
        is_stuck = isinstance(core.ending, Raised) and isinstance(core.ending.error, WorkflowStuck)
        if not self.options.checks_replay or is_stuck:  # no replay sees that nothing will ever come
            return
        again = self.new_execution(row, spec, 0, is_quiet=True)
        diverged: NonDeterminismError | None = None
        try:
            try:
                again.replay(history, is_check=True)
            except NonDeterminismError as error:
                diverged = error
            agree = again.waiting() == core.waiting() and type(again.ending) is type(core.ending)
        finally:
            again.close()
        if not agree:
            self.replay_mismatches.append(row.id)
            text = f"{again.waiting() or again.ending} against {core.waiting() or core.ending}"
            self.log.error(
                "the replay of workflow %s does not agree with its execution: %s",
                row.id, diverged or text, extra={"workflow_id": row.id},
            )  # fmt: skip
            if self.seams is not None:
                self.seams.mismatched(row.id, diverged or text)

    def transactor(self) -> Transactor:
        """The store's transactional steps."""
        if not hasattr(self.store, "run_transaction"):
            raise ConfigurationError(f"{self.store.url} has no transactional steps")
        return cast("Transactor", self.store)

    def child_started(self, workflow_id: str, queue: str) -> None:
        """Remember a child, so that a worker limited to one workflow's tree claims it too."""
        self.dispatcher.also_take(workflow_id, queue)
        if self.seams is not None:
            self.dispatcher.serve(queue)

    def released(self, runner: Runner, *, was_leaving: bool) -> None:
        """A runner has ended; `was_leaving`: after its last operation."""
        self.dispatcher.released(runner, was_leaving=was_leaving)

    def tell_error(self, runner: Runner, error: BaseException, *, is_final: bool = False) -> None:
        """Pass on an error that left a workflow function; `is_final`: it is the workflow's outcome."""
        if self.options.on_error is not None:
            self.options.on_error(runner.row.id, error, is_final)

    def fail_apart(self, fence: Fence, error: str) -> None:
        """Fail a workflow whose own writes the database refuses, by a write that carries nothing of them."""
        self.committer.submit(FinishOp(fence, "failed", error=error), Call(self.loop))


def _say_nothing(_: str) -> None:
    """The note of an execution that only tries a history again."""

"""`Environment`: a database, a worker and a client in the test's own process and event loop, in a time that makes leaps.

This file is what tests call; the parts are beside it: time (`_clock.py`), the worker's lives and deaths (`_life.py`), stubs
(`_doubles.py`), planned faults (`_faults.py`), and how it goes on (`_progress.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, overload

from onward._engine.replay.calls import current_execution
from onward._engine.starts import new_workflow_id
from onward._engine.stepinfo import current_step_info
from onward._store.base import Store
from onward._store.records import WorkflowRow
from onward._wrappers import BoundWorkflow, Workflow
from onward.client import AsyncClient
from onward.codec import Codec
from onward.context import Signal
from onward.embedded import neighbours
from onward.errors import (
    ConfigurationError,
    NonDeterminismError,
    UsageError,
    WorkflowFailed,
    WorkflowNotFound,
    WrongEventLoop,
)
from onward.handle import AsyncHandle, Handle
from onward.info import moment
from onward.retry import Duration, seconds
from onward.testing._arranging import Arranging
from onward.testing._blocking import BlockingEnvironment
from onward.testing._client import EnvironmentClient
from onward.testing._clock import SECOND_US, Alarms, LeapingClock
from onward.testing._doubles import Doubles
from onward.testing._everywhere import CrashReport, crash_everywhere
from onward.testing._faults import Faults, PlannedFault
from onward.testing._life import Life, Surroundings
from onward.testing._progress import Progress
from onward.testing._stores import Seeds
from onward.worker import Lifespan

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    """The arguments of an environment, to make others like it."""

    now: datetime
    lifespan: Lifespan | None
    codec: Codec | None
    seed: int
    patience: Duration | None


class Environment(Arranging):
    """Everything a workflow needs to run in a test: a database, a worker and a client, in a time that makes leaps.

    Args:
        workflows: what it can run; whatever you start is added by itself, with the other workflows of its module.
        url: the database; default one in memory, which ends with the environment. ``sqlite:///…`` and ``postgresql://…``
            are for transactional steps and for what only they have; use an empty one for each test.
        now: the time at first (timezone-aware); default the machine's, in whole seconds.
        lifespan: entered by each worker before its first claim, as for `Worker`.
        codec: what payloads are stored with, as for `Worker` and `AsyncClient`.
        seed: decides `onward.random`, `onward.uuid4` and all jitter: the same seed, the same run.
        patience: seconds of the machine's time (or a timedelta) without any news after which a running step counts as
            hung (default 30; None: never, for a debugger).

    Time stands still while anything can run. It leaps to the next timer, retry, back-off, delayed start or time-out when
    everything is at rest, and only while you wait for something: `run`, `result`, `settle` (which leaps nowhere), `advance`.
    Every execution is replayed from its journal at each park and at its end, and must agree: else the waiting call raises
    NonDeterminismError. Use it as ``async with Environment() as env``, in plain blocking tests as ``with Environment() as
    env``, or as the fixture ``onward_env``.

    Example::

        async with onward.testing.Environment() as env:
            env.stub(send_email, returns="sent")
            assert await env.run(onboarding, 42) == "sent"       # at once, though it sleeps for three days
    """

    def __init__(
        self,
        *,
        workflows: Iterable[Workflow[..., Any]] = (),
        url: str | None = None,
        now: datetime | None = None,
        lifespan: Lifespan | None = None,
        codec: Codec | None = None,
        seed: int = 0,
        patience: Duration | None = 30.0,
    ) -> None:
        if now is not None and now.tzinfo is None:
            raise ConfigurationError(f"Environment(now=) needs a timezone-aware datetime, not {now!r}; add tzinfo=UTC")
        self.url = url or f"memory://{new_workflow_id()}"
        self._clock = LeapingClock(now)
        self._options = _Options(now=self.now, lifespan=lifespan, codec=codec, seed=seed, patience=patience)
        self._faults, self._client_faults = Faults(), Faults()
        self._errors: dict[str, BaseException] = {}
        self._failure: BaseException | None = None
        self._workflows: dict[str, Workflow[..., Any]] = {}
        self._queues: set[str] = set()
        self._version = 1
        self._life: Life | None = None
        self._past: list[Life] = []
        self._beginning = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._heard: Store | None = None
        self._is_closed = False
        self._blocking: BlockingEnvironment | None = None
        alarms = Alarms(self._clock, self._changed)
        self._doubles = Doubles(self._clock, alarms)
        self._progress = Progress(
            self._clock,
            alarms,
            lambda: self._life,
            self._living,
            self._store,
            self._check,
            self._faults.wants_renewal,
            None if patience is None else seconds(patience, "patience"),
        )
        seeds = Seeds(seed)
        self._client = EnvironmentClient(self, self.url, self._clock, codec, self._client_faults, seeds)
        self._around = Surroundings(
            url=self.url,
            clock=self._clock,
            codec=codec,
            lifespan=lifespan,
            seed=seed,
            faults=self._faults,
            seeds=seeds,
            step=self._doubles.step,
            workflow=self._doubles.workflow,
            failed=self._error_escaped,
            mismatched=self._replay_disagreed,
            changed=self._changed,
        )
        for workflow in workflows:
            self._add(workflow)

    # ------------------------------------------------------------------ life

    async def __aenter__(self) -> Self:
        await self._store()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
        if exc is None:
            self._check()
            self._check_plans()

    def __enter__(self) -> BlockingEnvironment:
        self._blocking = BlockingEnvironment(self)
        return self._blocking

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        blocking, self._blocking = self._blocking, None
        if blocking is not None:
            blocking.close()
        if exc is None:
            self._check()
            self._check_plans()

    async def close(self) -> None:
        """End the worker and the client; what still runs is given up. Leaving the ``async with`` block does it."""
        if self._is_closed:
            return
        self._is_closed = True
        life = self._life
        if life is not None and life.engine is not None and life.engine.dispatcher.in_flight():
            life.die("the end of the environment")  # nobody waits for bodies that hang
        await self._end_life()
        await self._client.close()
        for past in self._past:
            past.close_frozen()

    def _check_plans(self) -> None:
        missed = [*self._faults.open(), *self._client_faults.open()]
        if missed:
            names = "; ".join(
                f"{plan.kind} {plan.description}: {plan.happened} of {plan.times} times" for plan in missed
            )
            raise UsageError(
                f"planned, and never happened: {names}. A test that relies on it tests nothing: look at the step's name and "
                "key, the number, and whether the workflow came that far"
            )

    def _forget_plans(self) -> None:
        """The test has failed: what did not happen any more is no news."""
        self._faults.plans.clear()
        self._client_faults.plans.clear()

    async def _store(self) -> Store:
        loop = asyncio.get_running_loop()
        if self._is_closed:
            raise UsageError("this environment is closed; make a new one for each test")
        if self._loop is None:
            self._loop = loop
            if self._workflows:
                await self._living()  # so that it is the worker that makes the schema, and may die of it
        elif self._loop is not loop:
            raise WrongEventLoop(
                "this environment was entered on another event loop; make it inside the test that uses it, or take the "
                "fixture onward_env. In a blocking test use `with Environment() as env`"
            )
        if current_execution() is not None:
            raise UsageError("the environment is for the test, not for workflow code")
        store = (await self._client._connection()).store
        if self._heard is not store:  # it is another one after the client has crashed
            self._heard = store
            store.subscribe(self._progress.committed)
        return store

    async def _living(self) -> Life:
        """A worker that is alive; the next one where the last one died."""
        async with self._beginning:
            while self._life is None or self._life.is_dead:
                await self._end_life()
                workflows = list(dict.fromkeys(self._workflows.values()))
                if not workflows:
                    raise UsageError(
                        "this environment knows no workflow: start one, or give it Environment(workflows=[…])"
                    )
                self._queues.update(workflow.spec.queue for workflow in workflows)
                life = Life(self._around, workflows, sorted(self._queues), f"test-{self._version}")
                await life.begin()
                self._life = life
            return self._life

    async def _end_life(self) -> None:
        life, self._life = self._life, None
        if life is not None:
            if life.engine is not None:
                self._queues.update(life.engine.dispatcher.queues)
            await life.end()
            self._past.append(life)

    def _changed(self) -> None:
        self._progress.changed()

    def _error_escaped(self, workflow_id: str, error: BaseException, is_final: bool) -> None:
        if isinstance(error, NonDeterminismError):
            self._failure = error
        else:
            self._errors[workflow_id] = error

    def _replay_disagreed(self, workflow_id: str, how: NonDeterminismError | str) -> None:
        if isinstance(how, NonDeterminismError):
            self._failure = how
            return
        self._failure = NonDeterminismError(
            f"workflow {workflow_id!r} does other things when it is replayed from its journal: {how}; what decides in a "
            "workflow must come from its arguments, its steps, or onward.now(), random() and uuid4()"
        )

    def _check(self) -> None:
        """Raise what must not pass unseen, once."""
        failure, self._failure = self._failure, None
        if failure is None and self._life is not None:
            failure = self._life.failure
        if failure is not None:
            raise failure

    # ------------------------------------------------------------------ workflows

    def _add(self, workflow: Workflow[..., Any]) -> list[Workflow[..., Any]]:
        """Know this workflow, and its neighbours as far as their names are free; returns those that are new."""
        if not isinstance(workflow, Workflow):
            raise ConfigurationError(f"workflows takes functions decorated with @workflow, not {workflow!r}")
        found = neighbours(workflow.spec)
        for name in (workflow.spec.name, *workflow.spec.also):
            known = self._workflows.get(name)
            if known is not None and known.spec.fn is not workflow.spec.fn:
                raise ConfigurationError(
                    f"this environment runs another workflow named {name!r} already; to go on with other code, "
                    "await env.restart(workflows=[…])"
                )
        new = [one for one in found if not self._workflows.keys() & {one.spec.name, *one.spec.also}]
        for one in new:
            self._workflows.update(dict.fromkeys((one.spec.name, *one.spec.also), one))
        return new

    async def _learn_from(self, bounds: Iterable[BoundWorkflow[Any]]) -> None:
        """Make sure that what is to be started can run here."""
        bounds = list(bounds)
        new = [one for bound in bounds for one in self._add(Workflow(bound.spec))]
        if new and self._life is not None and not self._life.is_dead:
            self._life.learn(new)
        self._queues.update(queue for bound in bounds for queue in (bound.spec.queue, bound.options.queue) if queue)
        engine = (await self._living()).engine if bounds else None
        if engine is not None:
            for queue in self._queues:
                engine.dispatcher.serve(queue)

    @property
    def client(self) -> AsyncClient:
        """A client on this database and in this time, for code that takes one; waiting for a result brings it about."""
        return self._client

    @property
    def now(self) -> datetime:
        """The time here, in UTC."""
        return moment(self._clock.now_us())

    @overload
    async def start(self, workflow: Workflow[P, R], /, *args: P.args, **kwargs: P.kwargs) -> AsyncHandle[R]: ...
    @overload
    async def start(self, workflow: BoundWorkflow[R], /) -> AsyncHandle[R]: ...
    async def start(self, workflow: Any, /, *args: Any, **kwargs: Any) -> AsyncHandle[Any]:
        """Start a workflow, as `AsyncClient.start` does. Without an id of your own it is ``<type>-1``, ``<type>-2``, ….

        It begins to run at once, beside your test; `settle` waits until it has come to rest, ``await handle.result()``
        brings it to its end.
        """
        await self._store()
        handle: AsyncHandle[Any] = await self._client.start(workflow, *args, **kwargs)
        return handle

    @overload
    async def run(self, workflow: Workflow[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def run(self, workflow: BoundWorkflow[R], /) -> R: ...
    async def run(self, workflow: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Start a workflow, bring it to its end and return its result; the time leaps over whatever it waits for.

        Raises:
            WorkflowFailed: it failed, with the error that ended it as the cause; WorkflowCancelled, WorkflowTimedOut, or
            a class that its definition lists in `raises=`.
            NonDeterminismError: a replay of its journal disagreed. Deadlock: it waits for a signal that nobody sends.
            OutOfPatience: a step hangs.
        """
        handle = await self.start(workflow, *args, **kwargs)
        try:
            return await handle.result()
        except WorkflowFailed as failed:
            failed.__cause__ = self._errors.get(handle.id)
            raise

    async def signal(self, workflow: AsyncHandle[Any] | Handle[Any] | str, signal: Signal[T], value: T, /) -> None:
        """Send a signal, as `AsyncClient.signal` does."""
        await self._store()
        await self._client.signal(workflow, signal, value)

    async def settle(self) -> None:
        """Wait until everything that can run now has run: all is at rest, and the time is as before."""
        await self._store()
        if self._workflows:
            await self._progress.settle()

    async def advance(self, by: Duration) -> None:
        """Let this much time pass (seconds or a timedelta): everything due on the way happens, each at its time. Returns
        when all is at rest."""
        await self._store()
        until = self._clock.now_us() + round(seconds(by, "advance(by)") * SECOND_US)
        if self._workflows:
            await self._progress.advance_to(until)
        self._clock.move_to(until)

    async def until(self, fault: PlannedFault, /) -> None:
        """Go on until a planned crash (or lost reply) has happened as often as planned; the next worker takes over with your
        next call. Raises Deadlock if everything comes to rest before."""
        await self._store()

        async def is_done() -> bool:
            return fault.is_over

        await self._progress.until(is_done)

    async def _outcome(self, workflow_id: str, timeout_s: float | None) -> WorkflowRow | None:
        """Bring a workflow to its end; None once so much of this time has passed."""
        row: WorkflowRow | None = None

        async def is_final() -> bool:
            nonlocal row
            row = await (await self._store()).get(workflow_id)
            if row is None:
                raise WorkflowNotFound(workflow_id, self.url)
            return row.finished_at is not None

        limit = None if timeout_s is None else self._clock.now_us() + round(timeout_s * SECOND_US)
        if not self._workflows and not await is_final():
            await self._living()  # raises
        is_over = await self._progress.until(is_final, limit)
        self._check()
        return row if is_over else None

    # ------------------------------------------------------------------ deaths

    async def kill(self) -> None:
        """Let the worker die now, as by `kill -9`; the next one takes over with your next call. (In a stub, raise `Crashed`.)"""
        await self._store()
        if current_step_info() is not None:
            raise UsageError(
                'kill() is for the test; to let the worker die in the middle of a body, raise Crashed("here")'
            )
        life = await self._living()
        life.die("kill()")
        await self._end_life()

    async def restart(self, workflows: Iterable[Workflow[..., Any]] = ()) -> None:
        """Stop the worker gracefully and start another, with other code for the workflows given here: a deploy.

        Workflows under way go on with the new code, or raise NonDeterminismError where it does not fit their history.
        """
        await self._store()
        changed = list(workflows)
        await self._end_life()
        for workflow in changed:
            for name in (workflow.spec.name, *workflow.spec.also):
                self._workflows.pop(name, None)
        for workflow in changed:
            self._add(workflow)
        self._version += bool(changed)
        await self._living()

    # ------------------------------------------------------------------ everywhere

    @overload
    async def crash_everywhere(
        self, scenario: Workflow[P, Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> CrashReport: ...
    @overload
    async def crash_everywhere(
        self, scenario: BoundWorkflow[Any] | Callable[[Environment], Awaitable[Any]], /
    ) -> CrashReport: ...
    async def crash_everywhere(self, scenario: Any, /, *args: Any, **kwargs: Any) -> CrashReport:
        """Run something undisturbed; then once for each point that its worker passed, with a crash there; and compare.

        Args:
            scenario: a workflow (with its arguments), or an ``async def scenario(env)`` that starts workflows, sends
                signals, and returns what is to be compared. It gets a new environment for each run, like this one: the same
                options, workflows and stubs (``side_effect`` functions are shared), an empty database.

        Raises:
            OutcomeChanged: after some crash another value came out, or a workflow or journal entry ended otherwise.
        """
        return await crash_everywhere(self, scenario, args, kwargs)

    def _another(self, url: str | None) -> Environment:
        """An environment like this one, on another database."""
        options = self._options
        other = Environment(
            workflows=dict.fromkeys(self._workflows.values()), url=url, now=options.now, lifespan=options.lifespan,
            codec=options.codec, seed=options.seed, patience=options.patience,
        )  # fmt: skip
        self._doubles.copy_to(other._doubles)
        return other

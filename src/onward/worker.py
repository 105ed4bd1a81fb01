"""`Worker`: runs workflows of one database in this process, inside the caller's event loop.

Checks the definitions and options, opens the store, enters `lifespan`, and starts the engine, all in one task of its own,
so that what `lifespan` sets up is left in the task that entered it. It installs no signal handlers; the command line does.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import inspect
import logging
import os
import random
import socket
import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from onward._engine import failpoints
from onward._engine.engine import Engine, EngineOptions
from onward._engine.seams import Seams
from onward._engine.specs import StepSpec, WorkflowSpec
from onward._store.base import Clock, Store
from onward._store.coded import checked_codec, coded
from onward._store.opening import open_store
from onward._store.urls import database_url
from onward.codec import Codec
from onward.definitions import Step, Workflow
from onward.errors import ConfigurationError, DefinitionError
from onward.health import WorkerHealth, health_of
from onward.retry import Duration, seconds

log = logging.getLogger("onward.worker")

Lifespan = AbstractAsyncContextManager[Any] | Callable[[], AbstractAsyncContextManager[Any]]

_worker_loops: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
"""Loops that run a worker now: a blocking `Client` must not be called on them."""


def is_worker_loop(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a worker runs on this loop."""
    return loop in _worker_loops


class Worker:
    """Runs the workflows of one database.

    Args:
        url: the database; default ``ONWARD_DATABASE_URL``, else ``sqlite:///onward.db``.
        workflows: the workflows it can run; rows of other types are left alone. Two of one name are an error.
        queues: the queues it serves, the first ones first.
        slots: how many executions it works on at once (sleeping and waiting ones are not held). While executions come and
            go, up to half as many more are claimed ahead; those that get no slot within a second are given back unspent.
        threads: how many `def` steps run at once.
        lease: seconds or timedelta until a worker that does not renew is taken for dead (default 15; a killed one is
            noticed sooner).
        grace: seconds or timedelta that running steps get to end when the worker stops (default 30).
        lifespan: an async context manager, or a function that gives one: entered before the first claim, left after the
            last step. Context variables set in it are seen by every step.
        name: for people; default host and process id.
        code_version: what counts as the same code; default a digest of the source files that define the workflows.
        codec: what payloads are stored with (encryption, say): the same as in the clients. See `Codec`.
        retention: seconds or timedelta after which finished workflows are deleted, with their whole tree; None (the default)
            keeps them for ever. Longer than anybody asks for a result, or sends the same start again: an id is new once
            its workflow is deleted.
        checks_replay: replay every execution from its journal at each park and at its end, and compare (development).

    Raises:
        ConfigurationError: a wrong option or URL. DefinitionError: two workflows of one name, a hint that does not resolve.

    Example::

        async with Worker("sqlite:///onward.db", workflows=[onboarding]):
            await serve_http()
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        workflows: Iterable[Workflow[..., Any]],
        queues: Iterable[str] = ("default",),
        slots: int = 200,
        threads: int = 32,
        lease: Duration = 15.0,
        grace: Duration = 30.0,
        lifespan: Lifespan | None = None,
        name: str | None = None,
        code_version: str | None = None,
        codec: Codec | None = None,
        retention: Duration | None = None,
        checks_replay: bool = False,
        _only: tuple[str, ...] | None = None,
        _on_error: Callable[[str, BaseException, bool], None] | None = None,
        _is_always_parking: bool = False,
        _clock: Clock | None = None,
        _seams: Seams | None = None,
    ) -> None:
        if isinstance(workflows, Workflow):
            raise ConfigurationError(f"workflows takes several: [{workflows.name}], not {workflows!r}")
        workflows = tuple(workflows)
        specs = _by_name(workflows)
        if not specs:
            raise ConfigurationError("a worker needs at least one workflow: Worker(url, workflows=[my_workflow])")
        names = (queues,) if isinstance(queues, str) else tuple(queues)
        if not names or not all(isinstance(queue, str) and queue for queue in names):
            raise ConfigurationError(f"queues takes queue names, not {queues!r}")
        for value, what in ((slots, "slots"), (threads, "threads")):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigurationError(f"{what} must be a whole number of at least 1, not {value!r}")
        lease_s = seconds(lease, "lease")
        if lease_s < 2:
            raise ConfigurationError(f"lease must be at least 2 s (it is renewed once a second), not {lease!r}")
        retention_s = None if retention is None else seconds(retention, "retention")
        if retention_s is not None and retention_s < 1:
            raise ConfigurationError(f"retention must be at least 1 s, or None to delete nothing, not {retention!r}")
        self.url = database_url(url)
        self.name = name or f"{socket.gethostname()}:{os.getpid()}"
        self._lifespan = lifespan
        self._workflows = workflows
        self._steps = _steps_of(workflows)
        self._options = EngineOptions(
            workflows=specs,
            queues=names,
            slots=slots,
            threads=threads,
            lease_s=lease_s,
            grace_s=seconds(grace, "grace"),
            name=self.name,
            host=socket.gethostname(),
            pid=os.getpid(),
            code_version=code_version or code_digest(workflows),
            only=_only,
            retention_s=retention_s,
            checks_replay=checks_replay,
            is_always_parking=_is_always_parking,
            on_error=_on_error,
            rng=random.Random() if _seams is None else random.Random(_seams.seed),
            seams=_seams,
        )
        probe = failpoints.hit if _seams is None else _seams.probe
        self._store: Store = coded(open_store(self.url, _clock, probe=probe), checked_codec(codec))
        if _seams is not None:
            self._store = _seams.wrap_store(self._store)
        self._is_open = False
        self._is_abandoned = False
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._engine: Engine | None = None

    async def run(self) -> None:
        """Work until `stop` is called or this task is cancelled; then end gracefully, as `stop` says."""
        async with self:
            assert self._task is not None
            await asyncio.wait([self._task])

    def stop(self) -> None:
        """Ask a running worker to end: it claims nothing more, lets running steps end within the grace, and gives the rest
        back unspent. Returns at once; `run` or the `async with` block waits for the end."""
        self._stopping.set()

    def health(self) -> WorkerHealth:
        """Whether this worker is live and ready, for the probes of whoever runs the process.

        Reads what is in memory: it can be called from any thread, never waits, and answers while the loop is stuck.

        Example::

            @app.get("/ready")
            def ready() -> Response:
                return Response(status_code=200 if worker.health().is_ready else 503)
        """
        return health_of(
            self._engine,
            name=self.name,
            slots=self._options.slots,
            lease_s=self._options.lease_s,
            is_stopping=self._stopping.is_set(),
        )

    async def __aenter__(self) -> Self:
        if self._task is not None:
            raise ConfigurationError("this worker runs already; make a second Worker for a second one")
        self._check_definitions()
        failpoints.arm(os.environ.get("ONWARD_FAILPOINT"))
        loop = asyncio.get_running_loop()
        started: asyncio.Future[None] = loop.create_future()
        self._stopping.clear()
        self._task = loop.create_task(self._live(started), name="onward-worker", context=contextvars.copy_context())
        either: set[asyncio.Future[None]] = {started, self._task}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            task, self._task = self._task, None
            self._stopping.set()
            if not started.done():
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            raise
        if not started.done():
            task, self._task = self._task, None
            started.cancel()
            await task
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping.set()
        task, self._task = self._task, None
        if task is not None:
            await _finish(task)

    async def _live(self, started: asyncio.Future[None]) -> None:
        """The whole life, in one task: what is entered here is left here."""
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            if not self._is_open:
                await self._open()
            stack.push_async_callback(self._store.close)
            if self._lifespan is not None:
                manager = _entered_by(self._lifespan)
                await stack.enter_async_context(manager)
            engine = Engine(self._store, self._options, contextvars.copy_context())
            self._engine = engine
            stack.push_async_callback(self._end, engine)
            await engine.start()
            _worker_loops.add(loop)
            stack.callback(_worker_loops.discard, loop)
            log.info("worker %s works on %s", self.name, self._store.url)
            started.set_result(None)
            stopped: asyncio.Future[Any] = loop.create_task(self._stopping.wait(), name="onward-stop")
            await asyncio.wait({stopped, engine.failed}, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if engine.failed.done():
                engine.failed.result()

    async def _open(self) -> None:
        """Open the store, ahead of `run` if need be: the command line says what is wrong with it before all else."""
        await self._store.open(migrate=True)
        self._is_open = True

    async def _end(self, engine: Engine) -> None:
        await (engine.bury() if self._is_abandoned else engine.stop())

    def _abandon(self) -> None:
        """Die as by a SIGKILL, without a word to the database; leaving the `async with` block ends what is left. For the
        testing kit, whose store refuses whatever is still on its way."""
        self._is_abandoned = True
        if self._engine is not None:
            self._engine.abandon()
        self._stopping.set()

    def _learn(self, workflows: Iterable[Workflow[..., Any]]) -> None:
        """Take more workflows from now on. For the testing kit."""
        known = (*self._workflows, *workflows)
        self._options = replace(self._options, workflows=_by_name(known))
        self._workflows, self._steps = known, _steps_of(known)
        self._check_definitions()
        if self._engine is not None:
            self._engine.learn(self._options.workflows)

    def _check_definitions(self) -> None:
        """Resolve every type hint now, so that a wrong one is an error at the start and not in the middle of the night."""
        for spec in self._options.workflows.values():
            spec.arguments.resolve()
            spec.result.resolve()
        for step in self._steps:
            step.arguments.resolve()
            step.result.resolve()
            if step.is_transactional and step.is_async and self.url.startswith("sqlite"):
                raise DefinitionError(
                    f"transactional step {step.name!r} is async, but on SQLite its body gets a sqlite3.Connection "
                    "on the database's one writer thread: make it a plain `def`"
                )


def _entered_by(lifespan: Lifespan) -> AbstractAsyncContextManager[Any]:
    """The context manager itself; those that `@asynccontextmanager` makes are callable as well (as decorators)."""
    return lifespan if isinstance(lifespan, AbstractAsyncContextManager) else lifespan()


async def _finish(task: asyncio.Task[None]) -> None:
    """Wait for a task to end even if the waiter is cancelled meanwhile; the cancellation is raised afterwards."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled


def _by_name(workflows: tuple[Workflow[..., Any], ...]) -> dict[str, WorkflowSpec]:
    specs: dict[str, WorkflowSpec] = {}
    for workflow in workflows:
        if not isinstance(workflow, Workflow):
            raise ConfigurationError(f"workflows takes functions decorated with @workflow, not {workflow!r}")
        for name in (workflow.spec.name, *workflow.spec.also):
            other = specs.setdefault(name, workflow.spec)
            if other.fn is not workflow.spec.fn:
                raise DefinitionError(
                    f"two workflows are named {name!r}: {_place(other)} and {_place(workflow.spec)}; "
                    "give one of them another @workflow(name=...)"
                )
    return specs


def _place(spec: WorkflowSpec) -> str:
    code = inspect.unwrap(spec.fn).__code__
    return f"{code.co_filename}:{code.co_firstlineno}"


def _steps_of(workflows: tuple[Workflow[..., Any], ...]) -> list[StepSpec]:
    """Steps in the modules that define the workflows: all that can be known before they are called."""
    found: dict[int, StepSpec] = {}
    for workflow in workflows:
        for value in inspect.unwrap(workflow.spec.fn).__globals__.values():
            if isinstance(value, Step):
                found[id(value.spec)] = value.spec
    return list(found.values())


def code_digest(workflows: Iterable[Workflow[..., Any]]) -> str:
    """A digest of the source files that define these workflows (of their names where there is no file)."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted({inspect.unwrap(workflow.spec.fn).__code__.co_filename for workflow in workflows}):
        try:
            digest.update(Path(path).read_bytes())
        except OSError:
            digest.update(path.encode())
    return digest.hexdigest()

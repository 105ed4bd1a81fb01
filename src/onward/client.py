"""`AsyncClient` and its blocking face `Client`: start workflows, signal them, read them, run them in this process.

A client connects at its first call. `AsyncClient` does the work, on a connection of one event loop. `Client` keeps an
`AsyncClient` on a private loop thread; after a fork the child abandons the parent's thread and connections unclosed and
makes its own.
"""

from __future__ import annotations

import asyncio
import builtins
import concurrent.futures
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, overload

from onward._engine.connection import Connection
from onward._engine.replay.calls import current_execution
from onward._engine.starts import new_seed, new_workflow, new_workflow_id
from onward._store.base import Clock
from onward._store.coded import checked_codec
from onward._store.operations import AlreadyFinal, IdConflict, NotFound, Outcome, SignalOp, Started, StartOp
from onward._store.records import FINAL, Filter
from onward._store.urls import database_url
from onward.codec import Codec
from onward.context import Signal
from onward.definitions import BoundWorkflow, Workflow
from onward.embedded import run_here
from onward.errors import (
    ConfigurationError,
    NotAllowedInWorkflow,
    WorkflowAlreadyEnded,
    WorkflowIdConflict,
    WorkflowNotFound,
    WrongEventLoop,
)
from onward.handle import AsyncHandle, Handle
from onward.info import WorkflowInfo, microseconds
from onward.worker import is_worker_loop

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class AsyncClient:
    """Starts, signals and reads workflows from asyncio code.

    Args:
        url: the database; default ``ONWARD_DATABASE_URL``, else ``sqlite:///onward.db`` in the working directory.
        codec: what payloads are stored with (encryption, say): the same as in the workers. See `Codec`.

    It connects at its first call and belongs to the event loop of that call; use it as ``async with AsyncClient() as
    client`` or call `close`. Concurrent calls share transactions. A started workflow is durable once `start` returns.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        codec: Codec | None = None,
        _migrate: bool = True,
        _clock: Clock | None = None,
    ) -> None:
        self.url = database_url(url)
        self._codec = checked_codec(codec)
        if self.url == "memory://":  # a name of its own, so that `run` can reach this client's very database
            self.url += new_workflow_id()
        self._migrate = _migrate
        self._clock = _clock
        self._open: Connection | None = None
        self._is_closed = False

    async def __aenter__(self) -> Self:
        await self._connection()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; a closed client cannot be used again."""
        self._is_closed = True
        connection, self._open = self._open, None
        if connection is not None:
            await connection.close()

    async def _connection(self) -> Connection:
        if current_execution() is not None:
            raise NotAllowedInWorkflow(
                "a client does I/O; do this in a step, or use onward.start() for a child workflow"
            )
        loop = asyncio.get_running_loop()
        if self._is_closed:
            raise ConfigurationError("this client is closed; make a new one")
        if self._open is None:
            self._open = Connection(self.url, migrate=self._migrate, codec=self._codec, clock=self._clock)
        elif self._open.loop is not loop:
            raise WrongEventLoop(
                "this AsyncClient was first used on another event loop; make one AsyncClient for each loop, "
                "or use onward.Client, which has a loop of its own"
            )
        return await self._open.opened()

    @overload
    async def start(self, workflow: Workflow[P, R], /, *args: P.args, **kwargs: P.kwargs) -> AsyncHandle[R]: ...
    @overload
    async def start(self, workflow: BoundWorkflow[R], /) -> AsyncHandle[R]: ...
    async def start(self, workflow: Any, /, *args: Any, **kwargs: Any) -> AsyncHandle[Any]:
        """Start a workflow; once this returns, it is durable.

        Args:
            workflow: the workflow, with options if any: ``onboarding.using(id="onboard-42", delay=3600)``.
            args, kwargs: its arguments.

        Starting an id that exists with the same type and arguments gives that workflow (`handle.created` is False).

        Raises:
            WorkflowIdConflict: the id has another type or other arguments. CodecError: an argument is no JSON.
            TypeError: the arguments do not fit the function. StoreError: nothing was started, as far as is known.
        """
        bound = workflow if isinstance(workflow, BoundWorkflow) else _checked(workflow).bind(*args, **kwargs)
        op = _start_op(bound)
        connection = await self._connection()
        return self._handle(bound, await connection.write(op))

    async def start_many(self, workflows: Iterable[BoundWorkflow[R]], /) -> builtins.list[AsyncHandle[R]]:
        """Start many workflows in one batch: ``onboarding.using(id=f"o-{u}").bind(u) for u in users``.

        Each one is durable once this returns. If some are refused (`WorkflowIdConflict`), all others are started before
        the first refusal is raised.
        """
        bounds = list(workflows)
        for bound in bounds:
            if not isinstance(bound, BoundWorkflow):
                raise ConfigurationError(f"start_many takes bound workflows: my_workflow.bind(args), not {bound!r}")
        ops = [_start_op(bound) for bound in bounds]
        connection = await self._connection()
        outcomes = await asyncio.gather(*(connection.write(op) for op in ops))
        return [self._handle(bound, outcome) for bound, outcome in zip(bounds, outcomes, strict=True)]

    def _handle(self, bound: BoundWorkflow[R], outcome: Outcome) -> AsyncHandle[R]:
        spec = bound.spec
        if isinstance(outcome, IdConflict):
            raise WorkflowIdConflict(outcome.id, outcome.existing_type, spec.name)
        assert isinstance(outcome, Started)
        return AsyncHandle(self._connection, outcome.id, spec, created=outcome.created)

    @overload
    async def run(self, workflow: Workflow[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def run(self, workflow: BoundWorkflow[R], /) -> R: ...
    async def run(self, workflow: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Start or resume a workflow, work on it in this process, and return its result.

        It knows the workflows of the function's module, for children. The first error that escapes is raised at once and
        leaves the workflow pending: running the same id again resumes it. If a live worker has it, that one is waited for.
        """
        bound = workflow if isinstance(workflow, BoundWorkflow) else _checked(workflow).bind(*args, **kwargs)
        handle = await self.start(bound)
        return await run_here(self.url, bound.spec, handle, self._codec)

    @overload
    def handle(self, workflow_id: str, workflow: Workflow[..., R], /) -> AsyncHandle[R]: ...
    @overload
    def handle(self, workflow_id: str, workflow: None = None, /) -> AsyncHandle[Any]: ...
    def handle(self, workflow_id: str, workflow: Any = None, /) -> AsyncHandle[Any]:
        """A handle for an id, without asking the database. With the workflow, results decode by its type hints."""
        spec = None if workflow is None else _checked(workflow).spec
        return AsyncHandle(self._connection, workflow_id, spec)

    async def signal(self, workflow: AsyncHandle[Any] | Handle[Any] | str, signal: Signal[T], value: T, /) -> None:
        """Send a signal to one workflow; it is delivered once, also if the workflow waits for it only later.

        Raises:
            WorkflowNotFound: no such workflow. WorkflowAlreadyEnded: it cannot receive anything any more.
            CodecError: the value does not fit the signal's type.
        """
        workflow_id = workflow if isinstance(workflow, str) else workflow.id
        op = SignalOp(workflow_id, signal.name, signal.codec.encode(value), new_seed())
        connection = await self._connection()
        outcome = await connection.write(op)
        if isinstance(outcome, NotFound):
            raise WorkflowNotFound(workflow_id, connection.store.url)
        if isinstance(outcome, AlreadyFinal):
            raise WorkflowAlreadyEnded(workflow_id, outcome.status)

    async def list(
        self,
        *,
        status: str | Iterable[str] = (),
        type: str | Workflow[..., Any] | None = None,
        tags: Mapping[str, str] | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        before: WorkflowInfo | None = None,
        limit: int = 100,
    ) -> builtins.list[WorkflowInfo]:
        """Workflows, newest first.

        Args:
            status: one status or several. type: a workflow or a type name. tags: all of these must be there.
            created_after, created_before: aware datetimes. limit: at most so many (1 to 1000).
            before: the last one of the page before; the page after it is returned (paging by key, stable under inserts).
        """
        filter = _filter(status, type, tags, created_after, created_before, before, limit)
        connection = await self._connection()
        return [WorkflowInfo.of(row) for row in await connection.store.list(filter)]

    async def counts(self) -> dict[str, int]:
        """How many workflows there are of each status."""
        return await (await self._connection()).store.counts()


class Client:
    """Starts, signals and reads workflows from blocking code: the same as `AsyncClient`, one to one.

    Args:
        url: the database; default ``ONWARD_DATABASE_URL``, else ``sqlite:///onward.db`` in the working directory.
        codec: what payloads are stored with (encryption, say): the same as in the workers. See `Codec`.

    It connects at its first call, on a private thread; it works from any thread, in a notebook's running loop, and in a
    child process after a fork. On the loop of a worker (in an `async def` step) it would block that loop, and refuses.
    """

    def __init__(self, url: str | None = None, *, codec: Codec | None = None, _migrate: bool = True) -> None:
        self.url = database_url(url)
        self._codec = checked_codec(codec)
        self._migrate = _migrate
        self._private: _LoopThread | None = None
        self._lock = threading.Lock()
        _clients.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and end its thread; the next call opens them again."""
        with self._lock:
            private, self._private = self._private, None
        if private is not None:
            private.close()

    def _call(self, make: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        _refuse_bad_place()
        return self._thread().call(make)

    def _thread(self) -> _LoopThread:
        with self._lock:
            if self._private is None:
                self._private = _LoopThread(self.url, migrate=self._migrate, codec=self._codec)
            return self._private

    @property
    def _async(self) -> AsyncClient:
        return self._thread().client

    def _blocking(self, handle: AsyncHandle[R]) -> Handle[R]:
        """The blocking face of a handle, bound to whatever connection this client has at the call (a fork changes it)."""
        inner = AsyncHandle[R](lambda: self._async._connection(), handle.id, handle.spec, created=handle.created)
        return Handle(inner, self._call)

    @overload
    def start(self, workflow: Workflow[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]: ...
    @overload
    def start(self, workflow: BoundWorkflow[R], /) -> Handle[R]: ...
    def start(self, workflow: Any, /, *args: Any, **kwargs: Any) -> Handle[Any]:
        """Start a workflow; once this returns, it is durable. See `AsyncClient.start`."""
        return self._blocking(self._call(lambda: self._async.start(workflow, *args, **kwargs)))

    def start_many(self, workflows: Iterable[BoundWorkflow[R]], /) -> builtins.list[Handle[R]]:
        """Start many workflows in one batch. See `AsyncClient.start_many`."""
        bounds = list(workflows)
        return [self._blocking(handle) for handle in self._call(lambda: self._async.start_many(bounds))]

    @overload
    def run(self, workflow: Workflow[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def run(self, workflow: BoundWorkflow[R], /) -> R: ...
    def run(self, workflow: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Start or resume a workflow, work on it in this process, and return its result. See `AsyncClient.run`."""
        return self._call(lambda: self._async.run(workflow, *args, **kwargs))

    @overload
    def handle(self, workflow_id: str, workflow: Workflow[..., R], /) -> Handle[R]: ...
    @overload
    def handle(self, workflow_id: str, workflow: None = None, /) -> Handle[Any]: ...
    def handle(self, workflow_id: str, workflow: Any = None, /) -> Handle[Any]:
        """A handle for an id, without asking the database. See `AsyncClient.handle`."""
        return self._blocking(self._async.handle(workflow_id, workflow))

    def signal(self, workflow: AsyncHandle[Any] | Handle[Any] | str, signal: Signal[T], value: T, /) -> None:
        """Send a signal to one workflow. See `AsyncClient.signal`."""
        self._call(lambda: self._async.signal(workflow, signal, value))

    def list(
        self,
        *,
        status: str | Iterable[str] = (),
        type: str | Workflow[..., Any] | None = None,
        tags: Mapping[str, str] | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        before: WorkflowInfo | None = None,
        limit: int = 100,
    ) -> builtins.list[WorkflowInfo]:
        """Workflows, newest first. See `AsyncClient.list`."""
        infos: builtins.list[WorkflowInfo] = self._call(
            lambda: self._async.list(
                status=status, type=type, tags=tags, created_after=created_after, created_before=created_before,
                before=before, limit=limit,
            )
        )  # fmt: skip
        return infos

    def counts(self) -> dict[str, int]:
        """How many workflows there are of each status."""
        counts: dict[str, int] = self._call(lambda: self._async.counts())
        return counts


class _LoopThread:
    """A private event loop on a daemon thread, with an `AsyncClient` on it."""

    def __init__(self, url: str, *, migrate: bool, codec: Codec | None) -> None:
        self.client = AsyncClient(url, codec=codec, _migrate=migrate)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="onward-client", daemon=True)
        self._thread.start()

    def call(self, make: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Run a coroutine there and wait for it; Ctrl-C cancels it, waits for its end, and goes on."""
        answer: concurrent.futures.Future[Any] = concurrent.futures.Future()
        tasks: builtins.list[asyncio.Task[Any]] = []

        def begin() -> None:
            tasks.append(self._loop.create_task(make()))
            tasks[0].add_done_callback(lambda task: _pass_on(task, answer))

        def cancel() -> None:  # after `begin`, so there is a task
            tasks[0].cancel()

        self._loop.call_soon_threadsafe(begin)
        try:
            return answer.result()
        except KeyboardInterrupt:
            self._loop.call_soon_threadsafe(cancel)
            concurrent.futures.wait([answer])
            raise

    def close(self) -> None:
        """Close the client, stop the loop, end the thread."""
        self.call(self.client.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _pass_on(task: asyncio.Task[Any], answer: concurrent.futures.Future[Any]) -> None:
    if task.cancelled():
        answer.set_exception(asyncio.CancelledError())
    elif (error := task.exception()) is not None:
        answer.set_exception(error)
    else:
        answer.set_result(task.result())


_clients: weakref.WeakSet[Client] = weakref.WeakSet()
_abandoned: builtins.list[_LoopThread] = []
"""What a forked child inherited: kept for ever, because closing it here would touch the parent's files and sockets."""


def _abandon_after_fork() -> None:
    for client in _clients:
        client._lock = threading.Lock()
        if client._private is not None:
            _abandoned.append(client._private)
            client._private = None


os.register_at_fork(after_in_child=_abandon_after_fork)


def _refuse_bad_place() -> None:
    """A blocking call must not be made in a workflow, nor on the loop of a worker."""
    if current_execution() is not None:
        raise NotAllowedInWorkflow("a client does I/O; do this in a step, or use onward.start() for a child workflow")
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    if is_worker_loop(loop):
        raise WrongEventLoop(
            "a blocking Client on the event loop of a worker would stop that worker; "
            "use `async with onward.AsyncClient()` here, or make the step a plain `def`"
        )


def _checked(workflow: object) -> Workflow[..., Any]:
    if not isinstance(workflow, Workflow):
        hint = "; decorate it with @onward.workflow" if callable(workflow) else ""
        raise ConfigurationError(f"not a workflow: {workflow!r}{hint}")
    return workflow


def _start_op(bound: BoundWorkflow[Any]) -> StartOp:
    """All checks of a start, before anything is written."""
    spec, options = bound.spec, bound.options
    spec.arguments.resolve()
    spec.result.resolve()
    payload, digest = spec.arguments.encode_with_digest(bound.args, bound.kwargs)
    return StartOp(new_workflow(spec, options, options.id or new_workflow_id(), payload, digest, seed=new_seed()))


def _filter(
    status: str | Iterable[str],
    type_name: str | Workflow[..., Any] | None,
    tags: Mapping[str, str] | None,
    created_after: datetime | None,
    created_before: datetime | None,
    before: WorkflowInfo | None,
    limit: int,
) -> Filter:
    statuses = (status,) if isinstance(status, str) else tuple(status)
    known = FINAL | {"pending", "running", "waiting"}
    for name in statuses:
        if name not in known:
            raise ConfigurationError(f"no such status: {name!r}; there are {', '.join(sorted(known))}")
    if not 1 <= limit <= 1000:
        raise ConfigurationError(f"limit must lie between 1 and 1000, not {limit!r}")
    for at in (created_after, created_before):
        if at is not None and at.tzinfo is None:
            raise ConfigurationError(f"datetimes must be timezone-aware, not {at!r}")
    return Filter(
        status=statuses,
        types=() if type_name is None else (type_name if isinstance(type_name, str) else type_name.spec.name,),
        created_after=None if created_after is None else microseconds(created_after),
        created_before=None if created_before is None else microseconds(created_before),
        tags=tuple((tags or {}).items()),
        before=None if before is None else (microseconds(before.created_at), before.id),
        limit=limit,
    )


@overload
def run(workflow: Workflow[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
@overload
def run(workflow: BoundWorkflow[R], /) -> R: ...
def run(workflow: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Start or resume a workflow on the default database, work on it in this process, and return its result.

    Script style: ``onward.run(onboarding.using(id="onboard-42"), 42)``. Running the same id again resumes it. Works with
    or without a running event loop. See `AsyncClient.run`.
    """
    with Client() as client:
        return client.run(workflow, *args, **kwargs)

"""`AsyncClient` and its blocking face `Client`: start workflows, signal them, read them, run them in this process.

A client connects at its first call. `AsyncClient` does the work, on a connection of one event loop. `Client` keeps an
`AsyncClient` on a private loop thread; after a fork the child abandons the parent's thread and connections unclosed and
makes its own.
"""

from __future__ import annotations

import asyncio
import atexit
import builtins
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, overload

from onward._engine.connection import Connection
from onward._engine.specs import WorkflowSpec
from onward._engine.starts import new_workflow_id
from onward._loopthread import LoopThread
from onward._requests import (
    bound_workflow,
    bound_workflows,
    check_delivered,
    checked_start,
    checked_workflow,
    list_filter,
    refuse_blocking_call,
    refuse_in_workflow,
    refuse_tx_of_run,
    signal_op,
    start_ops,
)
from onward._store.base import Clock
from onward._store.coded import checked_codec
from onward._store.operations import Outcome, Started
from onward._store.urls import database_url
from onward._store.within.base import CallerConnection
from onward._transactions import CallersTransactions
from onward.codec import Codec
from onward.context import Signal
from onward.definitions import BoundWorkflow, Workflow
from onward.embedded import run_here
from onward.errors import ConfigurationError, WrongEventLoop
from onward.handle import AsyncHandle, Handle
from onward.info import WorkflowInfo
from onward.repair import AsyncRepair, Repair

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
        self._transactions = CallersTransactions(self.url, codec=self._codec, clock=_clock)
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
        refuse_in_workflow()
        loop = asyncio.get_running_loop()
        self._refuse_closed()
        if self._open is None or self._open.has_failed:  # the database was away: each call tries anew
            self._open = Connection(self.url, migrate=self._migrate, codec=self._codec, clock=self._clock)
        elif self._open.loop is not loop:
            raise WrongEventLoop(
                "this AsyncClient was first used on another event loop; make one AsyncClient for each loop, "
                "or use onward.Client, which has a loop of its own"
            )
        return await self._open.opened()

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise ConfigurationError("this client is closed; make a new one")

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

        With ``using(tx=connection)`` it becomes part of your own open transaction on the same database: durable once you
        commit, gone if you roll back, and nothing is written where this raises. Nothing but the connection is used then; it
        is never committed, rolled back or closed.

        Raises:
            WorkflowIdConflict: the id has another type or other arguments. CodecError: an argument is no JSON.
            TypeError: the arguments do not fit the function. StoreError: nothing was started, as far as is known.
            WrongConnection: the `tx=` is of another database or kind, or has no open transaction. SchemaError: its
            database has no schema of Onward.
        """
        [handle] = await self._start([bound_workflow(workflow, args, kwargs)])
        return handle

    async def start_many(self, workflows: Iterable[BoundWorkflow[R]], /) -> builtins.list[AsyncHandle[R]]:
        """Start many workflows in one batch: ``onboarding.using(id=f"o-{u}").bind(u) for u in users``.

        Each one is durable once this returns. If some are refused (`WorkflowIdConflict`), all others are started before
        the first refusal is raised. With ``using(tx=connection)``, the same for all, either all are started or none.
        """
        return await self._start(workflows)

    async def _start(self, workflows: Iterable[BoundWorkflow[R]]) -> builtins.list[AsyncHandle[R]]:
        bounds, tx = bound_workflows(workflows)
        ops = start_ops(bounds)
        outcomes: Iterable[Outcome]
        if tx is None:
            connection = await self._connection()
            outcomes = await connection.write_many(ops, len(bounds))
        else:
            self._refuse_closed()
            outcomes = await self._transactions.write_async(tx, [*ops])
        started = [checked_start(outcome, bound.spec) for bound, outcome in zip(bounds, outcomes, strict=True)]
        connect, transactions, is_within = self._connection, self._transactions, tx is not None
        return [
            AsyncHandle(connect, transactions, one, bound.spec, is_within=is_within)
            for bound, one in zip(bounds, started, strict=True)
        ]

    @overload
    async def run(self, workflow: Workflow[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def run(self, workflow: BoundWorkflow[R], /) -> R: ...
    async def run(self, workflow: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Start or resume a workflow, work on it in this process, and return its result.

        It knows the workflows of the function's module, for children. The first error that escapes is raised at once and
        leaves the workflow pending: running the same id again resumes it. If a live worker has it, that one is waited for.
        """
        bound = bound_workflow(workflow, args, kwargs)
        refuse_tx_of_run(bound)
        handle = await self.start(bound)
        return await run_here(self.url, bound.spec, handle, self._codec)

    @overload
    def handle(self, workflow_id: str, workflow: Workflow[..., R], /) -> AsyncHandle[R]: ...
    @overload
    def handle(self, workflow_id: str, workflow: None = None, /) -> AsyncHandle[Any]: ...
    def handle(self, workflow_id: str, workflow: Any = None, /) -> AsyncHandle[Any]:
        """A handle for an id, without asking the database. With the workflow, results decode by its type hints."""
        spec = None if workflow is None else checked_workflow(workflow).spec
        return AsyncHandle(self._connection, self._transactions, Started(workflow_id, created=False), spec)

    async def signal(
        self,
        workflow: AsyncHandle[Any] | Handle[Any] | str,
        signal: Signal[T],
        value: T,
        /,
        *,
        tx: CallerConnection | None = None,
    ) -> None:
        """Send a signal to one workflow; it is delivered once, also if the workflow waits for it only later.

        Args:
            workflow: a handle or an id. signal, value: what to send.
            tx: your own open connection, whose transaction the signal becomes part of: sent once you commit, never if you
                roll back. See `start`.

        Raises:
            WorkflowNotFound: no such workflow. WorkflowAlreadyEnded: it cannot receive anything any more.
            CodecError: the value does not fit the signal's type. WrongConnection, SchemaError: the `tx=`, as in `start`.
            NotCommitted: without `tx=`, to a handle whose own start is not committed yet.
        """
        workflow_id = workflow if isinstance(workflow, str) else workflow.id
        op = signal_op(workflow_id, signal, value)
        if tx is None:
            connection = await self._connection()
            if not isinstance(workflow, str):
                await workflow._check_committed(connection)
            check_delivered(await connection.write(op), workflow_id, connection.store.url)
        else:
            self._refuse_closed()
            [outcome] = await self._transactions.write_async(tx, [op])
            check_delivered(outcome, workflow_id, self._transactions.database)

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
        filter = list_filter(status, type, tags, created_after, created_before, before, limit)
        connection = await self._connection()
        return [WorkflowInfo.of(row) for row in await connection.store.list(filter)]

    async def counts(self) -> dict[str, int]:
        """How many workflows there are of each status."""
        return await (await self._connection()).store.counts()

    @property
    def repair(self) -> AsyncRepair:
        """What operators do: `prune`."""
        return AsyncRepair(self._connection)


class Client:
    """Starts, signals and reads workflows from blocking code: the same as `AsyncClient`, one to one.

    Args:
        url: the database; default ``ONWARD_DATABASE_URL``, else ``sqlite:///onward.db`` in the working directory.
        codec: what payloads are stored with (encryption, say): the same as in the workers. See `Codec`.

    It connects at its first call, on a private thread; it works from any thread, in a notebook's running loop, and in a
    child process after a fork. On the loop of a worker (in an `async def` step) it would block that loop, and refuses. With
    `tx=` it works on the calling thread, with the given connection and nothing else.
    """

    def __init__(self, url: str | None = None, *, codec: Codec | None = None, _migrate: bool = True) -> None:
        self.url = database_url(url)
        self._codec = checked_codec(codec)
        self._transactions = CallersTransactions(self.url, codec=self._codec)
        self._migrate = _migrate
        self._private: _Private | None = None
        self._drop: weakref.finalize[[], Client] | None = None
        """Ends the thread of a client that nobody closes and nobody holds any more."""
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
            if self._drop is not None:
                self._drop.detach()
        if private is not None:
            private.close()

    def _call(self, make: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        refuse_blocking_call()
        return self._thread().call(make)

    def _thread(self) -> _Private:
        with self._lock:
            if self._private is None:
                self._private = _Private(self.url, migrate=self._migrate, codec=self._codec)
                self._drop = weakref.finalize(self, self._private.retire)
                self._drop.atexit = False  # _close_at_exit does it then, and waits
            return self._private

    @property
    def _async(self) -> AsyncClient:
        return self._thread().client

    def _handle(self, started: Started, spec: WorkflowSpec | None, *, is_within: bool = False) -> Handle[Any]:
        """A handle on whatever connection this client has at the call (a fork changes it)."""
        inner: AsyncHandle[Any] = AsyncHandle(
            self._current_connection, self._transactions, started, spec, is_within=is_within
        )
        return Handle(inner, self._call)

    def _current_connection(self) -> Coroutine[Any, Any, Connection]:
        return self._async._connection()

    @overload
    def start(self, workflow: Workflow[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]: ...
    @overload
    def start(self, workflow: BoundWorkflow[R], /) -> Handle[R]: ...
    def start(self, workflow: Any, /, *args: Any, **kwargs: Any) -> Handle[Any]:
        """Start a workflow; once this returns, it is durable. See `AsyncClient.start`."""
        [handle] = self._start([bound_workflow(workflow, args, kwargs)])
        return handle

    def start_many(self, workflows: Iterable[BoundWorkflow[R]], /) -> builtins.list[Handle[R]]:
        """Start many workflows in one batch. See `AsyncClient.start_many`."""
        return self._start(workflows)

    def _start(self, workflows: Iterable[BoundWorkflow[R]]) -> builtins.list[Handle[R]]:
        bounds, tx = bound_workflows(workflows)
        if tx is None:
            handles = self._call(lambda: self._async.start_many(bounds))
            started = [Started(handle.id, handle.created) for handle in handles]
        else:
            outcomes = self._transactions.write(tx, [*start_ops(bounds)])
            started = [checked_start(outcome, bound.spec) for bound, outcome in zip(bounds, outcomes, strict=True)]
        pairs = zip(started, bounds, strict=True)
        return [self._handle(one, bound.spec, is_within=tx is not None) for one, bound in pairs]

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
        spec = None if workflow is None else checked_workflow(workflow).spec
        return self._handle(Started(workflow_id, created=False), spec)

    def signal(
        self,
        workflow: AsyncHandle[Any] | Handle[Any] | str,
        signal: Signal[T],
        value: T,
        /,
        *,
        tx: CallerConnection | None = None,
    ) -> None:
        """Send a signal to one workflow. See `AsyncClient.signal`."""
        if tx is None:
            self._call(lambda: self._async.signal(workflow, signal, value))
            return
        workflow_id = workflow if isinstance(workflow, str) else workflow.id
        [outcome] = self._transactions.write(tx, [signal_op(workflow_id, signal, value)])
        check_delivered(outcome, workflow_id, self._transactions.database)

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

    @property
    def repair(self) -> Repair:
        """What operators do: `prune`."""
        return Repair(lambda: self._async.repair, self._call)


class _Private(LoopThread):
    """A `Client`'s own loop, with an `AsyncClient` on it."""

    def __init__(self, url: str, *, migrate: bool, codec: Codec | None) -> None:
        super().__init__()
        self.client = AsyncClient(url, codec=codec, _migrate=migrate)

    def close(self) -> None:
        """Close the client and end the thread."""
        self.call(self.client.close)
        self.end()

    def retire(self) -> None:
        """As `close`, without waiting."""
        self.end_after(self.client.close)


_clients: weakref.WeakSet[Client] = weakref.WeakSet()
_abandoned: builtins.list[_Private] = []
"""What a forked child inherited: kept for ever, because closing it here would touch the parent's files and sockets."""


def _abandon_after_fork() -> None:
    for client in _clients:
        client._lock = threading.Lock()
        if client._drop is not None:
            client._drop.detach()
        client._transactions.forget_store()
        if client._private is not None:
            _abandoned.append(client._private)
            client._private = None


def _close_at_exit() -> None:
    """Close the clients that were left open, as `with` does; else the interpreter complains of tasks that it destroys."""
    for client in list(_clients):
        client.close()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_abandon_after_fork)
atexit.register(_close_at_exit)


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

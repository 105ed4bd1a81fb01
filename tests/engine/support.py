"""What the engine tests share: a `Lab` with a database, a clock that can be moved, and workers and clients on them.

A test is an `async def` that takes `lab`; `pytest_pyfunc_call` (imported by the conftest) runs it on a loop of its own, closes
what it opened, and fails it for tasks, threads, connections or errors left behind. Every test runs in each of `MODES`; the
next database adds a line there.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import os
import re
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest

from onward import AsyncClient, AsyncHandle, Codec, JournalEntry, Worker, Workflow, WorkflowInfo
from onward._engine.engine import Engine
from onward._engine.runner import Runner
from onward._store.base import Store
from onward._store.opening import open_store
from tests.postgres.server import connection, drop_schema, new_schema, url_with

T = TypeVar("T")
PATIENCE_S = 6.0
"""How long anything in a test may take before it counts as hung."""
LOOK_S = 0.05
"""Between two looks of somebody who waits and is told nothing."""


class MovingClock:
    """The machine's clock plus an offset that tests move forward."""

    def __init__(self) -> None:
        self._offset_us = 0
        self.listeners: list[Callable[[], None]] = []

    def now_us(self) -> int:
        return time.time_ns() // 1000 + self._offset_us

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.now_us() / 1e6, UTC)

    def advance(self, by: float | timedelta) -> None:
        """Move the time of the database forward, and let workers see it as they see time pass."""
        seconds = by.total_seconds() if isinstance(by, timedelta) else by
        self._offset_us += round(seconds * 1e6)
        for listener in list(self.listeners):
            listener()


@dataclass(frozen=True)
class Mode:
    """A store and a way of working."""

    store: str
    is_always_parking: bool = False
    checks_replay: bool = False


MODES = {
    "memory": Mode("memory"),
    "sqlite": Mode("sqlite"),
    "postgres": Mode("postgres"),
    "memory-parking": Mode("memory", is_always_parking=True),
    "memory-checking": Mode("memory", checks_replay=True),
}
STORES = ("memory", "sqlite", "postgres")


class Lab:
    """One empty database with its clock."""

    def __init__(self, mode: Mode, path: Path) -> None:
        self.mode = mode
        self.path = path
        self.clock = MovingClock()
        self.schema = new_schema() if mode.store == "postgres" else None
        if self.schema is not None:
            self.url = url_with(schema=self.schema)
        else:
            self.url = f"sqlite:///{path}" if mode.store == "sqlite" else f"memory://{path}"
        self.store: Store = open_store(self.url, self.clock)
        self.codec: Codec | None = None
        self.workers: list[Worker] = []
        self.mismatches: list[str] = []

    async def open(self) -> None:
        await self.store.open()

    async def close(self) -> None:
        await self.store.close()
        self.drop()

    def drop(self) -> None:
        """Remove what a server would keep."""
        if self.schema is not None:
            drop_schema(self.schema)

    @contextlib.contextmanager
    def dropped(self) -> Iterator[None]:
        """For tests that open no store of the lab's own."""
        try:
            yield
        finally:
            self.drop()

    # ------------------------------------------------------------------ workers and clients

    def worker(self, *workflows: Workflow[..., Any], **options: Any) -> Worker:
        """A worker of this mode; its lease outlives every move of the clock."""
        options = {
            "lease": timedelta(days=3650),
            "grace": 5.0,
            "code_version": "test",
            "codec": self.codec,
            "checks_replay": self.mode.checks_replay,
            "_is_always_parking": self.mode.is_always_parking,
            "_clock": self.clock,
            **options,
        }
        return Worker(self.url, workflows=workflows, **options)

    @contextlib.asynccontextmanager
    async def working(self, *workflows: Workflow[..., Any], **options: Any) -> AsyncIterator[Worker]:
        """A running worker."""
        worker = self.worker(*workflows, **options)
        async with worker:
            engine = engine_of(worker)
            listener = lambda: see_time_pass(engine)  # noqa: E731  # removed by identity below
            self.clock.listeners.append(listener)
            try:
                yield worker
            finally:
                self.clock.listeners.remove(listener)
        self.mismatches += engine.replay_mismatches

    def client(self, **options: Any) -> AsyncClient:
        """A client on the lab's clock."""
        return AsyncClient(self.url, **{"codec": self.codec, "_clock": self.clock, **options})

    @contextlib.asynccontextmanager
    async def running(self, *workflows: Workflow[..., Any], **options: Any) -> AsyncIterator[AsyncClient]:
        """A client, with a worker running beside it."""
        async with self.client() as client, self.working(*workflows, **options):
            yield client

    # ------------------------------------------------------------------ waiting

    async def until(self, look: Callable[[], Awaitable[T | bool | None]]) -> T:
        """Look after every commit until there is something to see; a store need not tell of entries alone, so now and then too."""
        changed = asyncio.Event()
        unsubscribe = self.store.subscribe(changed.set)
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    changed.clear()
                    seen = await look()
                    if seen is not None and seen is not False:
                        return seen  # type: ignore[return-value]  # a bool is what T is then
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(LOOK_S):
                            await changed.wait()
        finally:
            unsubscribe()

    async def info(self, handle: AsyncHandle[Any] | str) -> WorkflowInfo:
        """The workflow as it stands."""
        info = await self._seen(handle)
        assert info is not None
        return info

    async def _seen(self, handle: AsyncHandle[Any] | str) -> WorkflowInfo | None:
        row = await self.store.get(handle if isinstance(handle, str) else handle.id)
        return None if row is None else WorkflowInfo.of(row)

    async def parked(self, handle: AsyncHandle[Any] | str, on: str = "") -> WorkflowInfo:
        """Wait until the workflow has parked; with `on`, until a wait of this key, kind or name is among what it waits for."""

        async def look() -> WorkflowInfo | None:
            info = await self._seen(handle)
            if info is None:
                return None
            names = {name for wait in info.waiting_for for name in (wait.key, wait.kind, wait.name)}
            is_parked = info.status in ("pending", "waiting") and bool(info.waiting_for)
            return info if is_parked and (not on or on in names) else None

        return await self.until(look)

    async def backing_off(self, handle: AsyncHandle[Any] | str, attempts: int = 1) -> WorkflowInfo:
        """Wait until this many attempts have failed."""

        async def look() -> WorkflowInfo | None:
            info = await self.info(handle)
            return info if info.attempts == attempts and info.status == "pending" else None

        return await self.until(look)

    async def in_status(self, handle: AsyncHandle[Any] | str, *statuses: str) -> WorkflowInfo:
        """Wait until the workflow has one of these statuses."""

        async def look() -> WorkflowInfo | None:
            info = await self._seen(handle)
            return info if info is not None and info.status in statuses else None

        return await self.until(look)

    async def next_attempt(self, handle: AsyncHandle[Any] | str, attempts: int) -> None:
        """Wait until `attempts` have failed, then let the back-off pass."""
        await self.backing_off(handle, attempts)
        self.clock.advance(1800)

    def sql(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run a statement on the database, as an operator with a shell would; tables are called as on SQLite."""
        if self.schema is not None:
            with connection(options=f"-csearch_path={self.schema}") as conn:
                cursor = conn.execute(re.sub(r"\bonward_(?=[a-z])", "", statement).encode(), parameters or None)
                return cursor.fetchall() if cursor.description else []
        with contextlib.closing(sqlite3.connect(self.path, timeout=5)) as file, file:
            return file.execute(statement, parameters).fetchall()


def engine_of(worker: Worker) -> Engine:
    """The engine of a running worker."""
    assert worker._engine is not None
    return worker._engine


def held(worker: Worker) -> dict[str, Runner]:
    """The executions that a worker holds in memory."""
    return engine_of(worker).dispatcher._held


async def holds_nothing(worker: Worker) -> None:
    """Wait until a worker holds no execution in memory."""
    async with asyncio.timeout(PATIENCE_S):
        await engine_of(worker).dispatcher._emptied.wait()
    assert engine_of(worker).dispatcher.held_ids == []


def see_time_pass(engine: Engine) -> None:
    """What the loop's own timers do when time passes by itself."""
    engine.dispatcher.poke()
    for runner in list(engine.dispatcher._held.values()):
        runner.time_passed()


def keys(journal: list[JournalEntry]) -> list[str]:
    """The keys of a journal, in order."""
    return [entry.key for entry in journal]


async def wait_for(event: asyncio.Event | threading.Event) -> None:
    """Wait for an event of a test, but not for ever."""
    if isinstance(event, asyncio.Event):
        async with asyncio.timeout(PATIENCE_S):
            await event.wait()
    else:
        assert await asyncio.to_thread(event.wait, PATIENCE_S)


async def turns(count: int = 20) -> None:
    """Let the loop turn, so that whatever is ready has run."""
    for _ in range(count):
        await asyncio.sleep(0)


# ---------------------------------------------------------------------- running tests


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an async test on a loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    labs = [value for value in arguments.values() if isinstance(value, Lab)]
    asyncio.run(_run(lambda: pyfuncitem.obj(**arguments), labs))
    return True


async def _run(test: Callable[[], Awaitable[None]], labs: list[Lab]) -> None:
    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    for lab in labs:
        await lab.open()
    try:
        async with asyncio.timeout(3 * PATIENCE_S):
            await test()
    finally:
        for lab in labs:
            await lab.close()
    await turns(3)
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert not left, f"tasks left behind: {left}"
    gc.collect(1)
    assert not unhandled, f"errors that nobody handled: {unhandled}"
    for lab in labs:
        assert not lab.mismatches, f"workflows whose replay disagreed with their execution: {lab.mismatches}"


def threads() -> set[threading.Thread]:
    """Onward's own threads that are alive."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("onward-")}


def open_files(directory: Path) -> list[str]:
    """Files below a directory that this process has open."""
    found = []
    for number in os.listdir("/proc/self/fd") if Path("/proc/self/fd").exists() else ():
        with contextlib.suppress(OSError):
            found.append(str(Path(f"/proc/self/fd/{number}").readlink()))
    return [name for name in found if name.startswith(str(directory))]


@contextlib.contextmanager
def no_leaks(directory: Path) -> Iterator[None]:
    """Fail what leaves threads or open files behind."""
    before = threads()
    yield
    left = threads() - before
    for thread in left:
        thread.join(2)
    alive = [thread.name for thread in left if thread.is_alive()]
    assert not alive, f"threads left behind: {alive}"
    assert not open_files(directory), "database connections left open"

"""What the tests of `tx=` share: an application that writes to its own table, on each kind of connection that `tx=` takes.

`Own` is a connection of the application, with the calls that its driver has for a transaction, and the client that fits it.
A blocking application works on a thread of its own, as under a web server; an async one on the test's loop. `KINDS` names them
all; the next driver adds a line there. Those on PostgreSQL are in txpostgres.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite
import sqlalchemy
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

from onward import AsyncClient, BoundWorkflow, Client, Signal
from tests.engine.support import MODES, Lab
from tests.engine.txdriver import Driver, django_alias, django_driver
from tests.engine.txpostgres import POSTGRES_ASYNC, POSTGRES_BLOCKING

T = TypeVar("T")
TABLE = "CREATE TABLE orders (name TEXT)"


def lab_of(kind: str, directory: Path) -> Lab:
    """An empty database for this kind of connection, with a table of the application's own."""
    is_postgres = kind in POSTGRES_BLOCKING or kind in POSTGRES_ASYNC
    lab = Lab(MODES["postgres" if is_postgres else "sqlite"], directory / "onward.db")
    if is_postgres:
        lab.sql(f"CREATE SCHEMA {lab.schema}")
    else:
        lab.sql("PRAGMA journal_mode = WAL")
    lab.sql(TABLE)
    return lab


class Own:
    """The application: its connection, and the client for it."""

    def __init__(self, lab: Lab, driver: Driver, client: Client | AsyncClient, thread: ThreadPoolExecutor) -> None:
        self.lab = lab
        self.driver = driver
        self.tx = driver.tx
        self.client: Any = client
        self._thread = thread

    async def do(self, call: Callable[[], Any]) -> Any:
        """Make a call where the application runs."""
        if isinstance(self.client, Client):
            return await asyncio.get_running_loop().run_in_executor(self._thread, call)
        answer = call()
        return await answer if inspect.isawaitable(answer) else answer

    async def begin(self) -> None:
        """Open a transaction, where the driver wants to be told."""
        await self.do(self.driver.begin)

    async def commit(self) -> None:
        """End it."""
        await self.do(self.driver.commit)

    async def rollback(self) -> None:
        """Undo it."""
        await self.do(self.driver.rollback)

    async def order(self, name: str) -> None:
        """The application's own write."""
        await self.do(lambda: self.driver.execute(f"INSERT INTO orders VALUES ('{name}')"))

    def orders(self) -> list[str]:
        """What is committed of the application's own, as another connection sees it."""
        return [name for (name,) in self.lab.sql("SELECT name FROM orders ORDER BY name")]

    def workflows(self) -> list[str]:
        """The ids of the workflows that are committed."""
        return [name for (name,) in self.lab.sql("SELECT id FROM onward_workflows ORDER BY id")]

    async def start(self, bound: BoundWorkflow[Any]) -> Any:
        """`client.start`."""
        return await self.do(lambda: self.client.start(bound))

    async def start_many(self, bounds: list[BoundWorkflow[Any]]) -> Any:
        """`client.start_many`."""
        return await self.do(lambda: self.client.start_many(bounds))

    async def signal(self, workflow: Any, signal: Signal[Any], value: object) -> None:
        """`client.signal` in the transaction."""
        await self.do(lambda: self.client.signal(workflow, signal, value, tx=self.tx))

    async def cancel(self, workflow_id: str) -> Any:
        """`handle.cancel` in the transaction."""
        return await self.do(lambda: self.client.handle(workflow_id).cancel(tx=self.tx))


Blocking = Callable[[Lab], AbstractContextManager[Driver]]
Async = Callable[[Lab], AbstractAsyncContextManager[Driver]]


@asynccontextmanager
async def own(lab: Lab, kind: str) -> AsyncIterator[Own]:
    """The application on a connection of this kind."""
    with ThreadPoolExecutor(1, thread_name_prefix="application") as thread:
        if kind in ASYNC:
            async with ASYNC[kind](lab) as driver, AsyncClient(lab.url, codec=lab.codec) as client:
                yield Own(lab, driver, client, thread)
        else:
            there = BLOCKING[kind](lab)
            blocking = Client(lab.url, codec=lab.codec)
            made = Own(lab, thread.submit(there.__enter__).result(), blocking, thread)
            try:
                yield made
            finally:
                thread.submit(there.__exit__, None, None, None).result()
                await asyncio.to_thread(blocking.close)


# ---------------------------------------------------------------------- the kinds


@contextmanager
def sqlite3_connection(path: Path) -> Iterator[Driver]:
    """As `sqlite3.connect` gives it: an INSERT opens a transaction."""
    with contextlib.closing(sqlite3.connect(path)) as tx:
        yield Driver(tx, tx.execute, tx.commit, tx.rollback)


@contextmanager
def sqlite3_explicit(path: Path) -> Iterator[Driver]:
    """With `isolation_level=None`: the application says BEGIN."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as tx:
        yield Driver(tx, tx.execute, tx.commit, tx.rollback, lambda: tx.execute("BEGIN IMMEDIATE"))


@contextmanager
def sqlalchemy_connection(path: Path) -> Iterator[Driver]:
    """SQLAlchemy's own."""
    with sqlalchemy_engine(path).connect() as tx:
        yield Driver(tx, tx.exec_driver_sql, tx.commit, tx.rollback)


@contextmanager
def session(path: Path) -> Iterator[Driver]:
    """SQLAlchemy's ORM session."""
    with Session(sqlalchemy_engine(path)) as tx:
        yield Driver(tx, lambda sql: tx.execute(sqlalchemy.text(sql)), tx.commit, tx.rollback)


@contextmanager
def a_scoped_session(path: Path) -> Iterator[Driver]:
    """A session by thread, as web frameworks keep it."""
    tx = scoped_session(sessionmaker(sqlalchemy_engine(path)))
    yield Driver(tx, lambda sql: tx.execute(sqlalchemy.text(sql)), tx.commit, tx.rollback)
    tx.remove()


@contextmanager
def django_connection(path: Path) -> Iterator[Driver]:
    """`django.db.connection`, with transactions by `transaction.atomic`."""
    with django_alias(ENGINE="django.db.backends.sqlite3", NAME=str(path)) as alias:
        yield django_driver(alias)


@asynccontextmanager
async def aiosqlite_connection(path: Path) -> AsyncIterator[Driver]:
    """aiosqlite's own."""
    async with aiosqlite.connect(path) as tx:
        yield Driver(tx, tx.execute, tx.commit, tx.rollback)


@asynccontextmanager
async def async_connection(path: Path) -> AsyncIterator[Driver]:
    """SQLAlchemy's, on aiosqlite."""
    async with async_engine(path).connect() as tx:
        yield Driver(tx, tx.exec_driver_sql, tx.commit, tx.rollback)


@asynccontextmanager
async def async_session(path: Path) -> AsyncIterator[Driver]:
    """SQLAlchemy's ORM session."""
    async with AsyncSession(async_engine(path)) as tx:
        yield Driver(tx, lambda sql: tx.execute(sqlalchemy.text(sql)), tx.commit, tx.rollback)


@asynccontextmanager
async def an_async_scoped_session(path: Path) -> AsyncIterator[Driver]:
    """A session by task; here one for all."""
    tx = async_scoped_session(async_sessionmaker(async_engine(path)), scopefunc=lambda: 1)
    yield Driver(tx, lambda sql: tx.execute(sqlalchemy.text(sql)), tx.commit, tx.rollback)
    await tx.remove()


def sqlalchemy_engine(path: Path, **options: Any) -> sqlalchemy.Engine:
    """An engine that keeps no connection open."""
    return sqlalchemy.create_engine(f"sqlite:///{path}", poolclass=NullPool, **options)


def async_engine(path: Path) -> AsyncEngine:
    """As above."""
    return create_async_engine(f"sqlite+aiosqlite:///{path}", poolclass=NullPool)


SQLITE_BLOCKING: dict[str, Callable[[Path], AbstractContextManager[Driver]]] = {
    "sqlite3": sqlite3_connection,
    "sqlite3-explicit": sqlite3_explicit,
    "sqlalchemy": sqlalchemy_connection,
    "session": session,
    "scoped-session": a_scoped_session,
    "django": django_connection,
}
SQLITE_ASYNC: dict[str, Callable[[Path], AbstractAsyncContextManager[Driver]]] = {
    "aiosqlite": aiosqlite_connection,
    "async-sqlalchemy": async_connection,
    "async-session": async_session,
    "async-scoped-session": an_async_scoped_session,
}


def on_file(make: Callable[[Path], T]) -> Callable[[Lab], T]:
    """The same for a lab's file."""
    return lambda lab: make(lab.path)


BLOCKING: dict[str, Blocking] = {
    **{kind: on_file(make) for kind, make in SQLITE_BLOCKING.items()},
    **POSTGRES_BLOCKING,
}
ASYNC: dict[str, Async] = {
    **{kind: on_file(make) for kind, make in SQLITE_ASYNC.items()},
    **POSTGRES_ASYNC,
}
KINDS = [*BLOCKING, *ASYNC]

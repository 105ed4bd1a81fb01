"""The connections to PostgreSQL that `tx=` takes, as an application has them; see txsupport.py, which names them all.

The application's own tables are in the schema of the test too, which is first in each connection's search path.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any

import asyncpg
import psycopg
import sqlalchemy
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from tests.engine.support import Lab
from tests.engine.txdriver import Driver, django_alias, django_driver
from tests.postgres.server import server_url


def settings(lab: Lab) -> dict[str, Any]:
    """What libpq needs for a connection of the application."""
    return {**conninfo_to_dict(server_url()), "options": f"-csearch_path={lab.schema}"}


def asyncpg_settings(lab: Lab) -> dict[str, Any]:
    """The same for asyncpg."""
    found = conninfo_to_dict(server_url())
    return {
        "host": found.get("host"),
        "port": found.get("port"),
        "user": found.get("user"),
        "password": found.get("password"),
        "database": found.get("dbname"),
        "server_settings": {"search_path": lab.schema},
    }


def postgres_engine(lab: Lab, **options: Any) -> sqlalchemy.Engine:
    """An engine of SQLAlchemy that keeps no connection open."""
    return sqlalchemy.create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(**settings(lab)), poolclass=NullPool, **options
    )


def async_postgres_engine(lab: Lab, driver: str, **options: Any) -> AsyncEngine:
    """As above, on an async driver."""
    connect: Callable[[], Any]
    if driver == "asyncpg":
        connect = lambda: asyncpg.connect(**asyncpg_settings(lab))  # noqa: E731
    else:
        connect = lambda: psycopg.AsyncConnection.connect(**settings(lab))  # noqa: E731
    return create_async_engine(f"postgresql+{driver}://", async_creator=connect, poolclass=NullPool, **options)


@contextmanager
def psycopg_connection(lab: Lab) -> Iterator[Driver]:
    """As `psycopg.connect` gives it: the first statement opens a transaction."""
    with psycopg.connect(**settings(lab)) as tx:
        yield Driver(tx, tx.execute, tx.commit, tx.rollback)


@contextmanager
def psycopg_block(lab: Lab) -> Iterator[Driver]:
    """With `autocommit=True`: transactions by `with connection.transaction():`."""
    with psycopg.connect(**settings(lab), autocommit=True) as tx:
        blocks: list[AbstractContextManager[psycopg.Transaction]] = []

        def begin() -> None:
            blocks.append(tx.transaction())
            blocks[-1].__enter__()

        def commit() -> None:
            blocks.pop().__exit__(None, None, None)

        def roll_back() -> None:
            rollback = psycopg.Rollback()
            blocks.pop().__exit__(psycopg.Rollback, rollback, None)

        yield Driver(tx, tx.execute, commit, roll_back, begin)


@contextmanager
def sqlalchemy_on_psycopg(lab: Lab) -> Iterator[Driver]:
    """SQLAlchemy's own."""
    with postgres_engine(lab).connect() as tx:
        yield Driver(tx, tx.exec_driver_sql, tx.commit, tx.rollback)


@contextmanager
def session_on_psycopg(lab: Lab) -> Iterator[Driver]:
    """SQLAlchemy's ORM session."""
    with Session(postgres_engine(lab)) as tx:
        yield Driver(tx, lambda sql: tx.execute(sqlalchemy.text(sql)), tx.commit, tx.rollback)


@contextmanager
def django_on_psycopg(lab: Lab) -> Iterator[Driver]:
    """`django.db.connection`."""
    with django_alias(**django_settings(lab)) as alias:
        yield django_driver(alias)


def django_settings(lab: Lab) -> dict[str, Any]:
    """An entry of `DATABASES`."""
    found = settings(lab)
    names = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
    entry = {name: str(found.get(key) or "") for name, key in names.items()}
    return {**entry, "ENGINE": "django.db.backends.postgresql", "OPTIONS": {"options": found["options"]}}


@asynccontextmanager
async def async_psycopg_connection(lab: Lab) -> AsyncIterator[Driver]:
    """psycopg's async one."""
    async with await psycopg.AsyncConnection.connect(**settings(lab)) as tx:
        yield Driver(tx, tx.execute, tx.commit, tx.rollback)


@asynccontextmanager
async def asyncpg_connection(lab: Lab) -> AsyncIterator[Driver]:
    """asyncpg's own, with transactions by `connection.transaction()`."""
    tx = await asyncpg.connect(**asyncpg_settings(lab))
    try:
        yield asyncpg_driver(tx)
    finally:
        await tx.close()


@asynccontextmanager
async def asyncpg_pooled(lab: Lab) -> AsyncIterator[Driver]:
    """What asyncpg's pool gives out."""
    async with asyncpg.create_pool(min_size=1, max_size=1, **asyncpg_settings(lab)) as pool, pool.acquire() as tx:
        yield asyncpg_driver(tx)


def asyncpg_driver(tx: Any) -> Driver:
    """asyncpg's connection as the tests use it."""
    blocks: list[Any] = []

    async def begin() -> None:
        blocks.append(tx.transaction())
        await blocks[-1].start()

    return Driver(tx, tx.execute, lambda: blocks.pop().commit(), lambda: blocks.pop().rollback(), begin)


def async_sqlalchemy_on(driver: str) -> Callable[[Lab], AbstractAsyncContextManager[Driver]]:
    """SQLAlchemy's async connection on this driver."""

    @asynccontextmanager
    async def made(lab: Lab) -> AsyncIterator[Driver]:
        async with async_postgres_engine(lab, driver).connect() as tx:
            yield Driver(tx, tx.exec_driver_sql, tx.commit, tx.rollback)

    return made


@asynccontextmanager
async def async_session_on_asyncpg(lab: Lab) -> AsyncIterator[Driver]:
    """SQLAlchemy's ORM session on asyncpg."""
    async with AsyncSession(async_postgres_engine(lab, "asyncpg")) as tx:
        yield Driver(tx, lambda sql: tx.execute(sqlalchemy.text(sql)), tx.commit, tx.rollback)


POSTGRES_BLOCKING: dict[str, Callable[[Lab], AbstractContextManager[Driver]]] = {
    "psycopg": psycopg_connection,
    "psycopg-block": psycopg_block,
    "sqlalchemy-psycopg": sqlalchemy_on_psycopg,
    "session-psycopg": session_on_psycopg,
    "django-postgres": django_on_psycopg,
}
POSTGRES_ASYNC: dict[str, Callable[[Lab], AbstractAsyncContextManager[Driver]]] = {
    "async-psycopg": async_psycopg_connection,
    "asyncpg": asyncpg_connection,
    "asyncpg-pool": asyncpg_pooled,
    "async-sqlalchemy-psycopg": async_sqlalchemy_on("psycopg_async"),
    "async-sqlalchemy-asyncpg": async_sqlalchemy_on("asyncpg"),
    "async-session-asyncpg": async_session_on_asyncpg,
}

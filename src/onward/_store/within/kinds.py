"""Which connections `tx=` takes: a table from the class's full name to the adapter, so that no driver is imported here.

The connection has been made by its driver, so the driver is there; subclasses are found by their bases.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from onward._store.within.asyncpg_drivers import Asyncpg
from onward._store.within.base import AsyncCaller, BlockingCaller, Caller, CallerConnection
from onward._store.within.sqlalchemy_drivers import AsyncSqlAlchemy, SqlAlchemy, driver_connection
from onward._store.within.sqlite_drivers import Aiosqlite, Sqlite3
from onward.errors import WrongConnection

SUPPORTED = (
    "sqlite3.Connection, psycopg.Connection, SQLAlchemy's Connection or Session, django.db.connection; with AsyncClient "
    "aiosqlite.Connection, psycopg.AsyncConnection, asyncpg.Connection, SQLAlchemy's AsyncConnection or AsyncSession"
)
"""For messages."""


def blocking_caller(tx: CallerConnection) -> BlockingCaller:
    """The adapter for a blocking connection; raises WrongConnection."""
    names = _class_names(tx)
    for name in names:
        if name in _BLOCKING:
            return _BLOCKING[name](tx)
    if not _ASYNC.keys().isdisjoint(names):
        raise WrongConnection(
            f"tx= is an async connection ({names[0]}), which the blocking Client cannot await; "
            "use it with onward.AsyncClient, or give Client a blocking connection"
        )
    raise _unknown(names[0])


async def async_caller(tx: CallerConnection) -> AsyncCaller:
    """The adapter for an async connection; raises WrongConnection."""
    names = _class_names(tx)
    for name in names:
        if name in _ASYNC:
            return await _ASYNC[name](tx)
    if not _BLOCKING.keys().isdisjoint(names):
        raise WrongConnection(
            f"tx= is a blocking connection ({names[0]}), which would stop the event loop of this AsyncClient; "
            "use it with onward.Client, or give AsyncClient an async connection"
        )
    raise _unknown(names[0])


def _unknown(name: str) -> WrongConnection:
    cure = "; use psycopg 3 instead of psycopg2 (SQLAlchemy: postgresql+psycopg://)" if "psycopg2" in name else ""
    return WrongConnection(
        f"tx= takes the connection whose transaction is to be used ({SUPPORTED}), not a {name}{cure}"
    )


def _class_names(tx: object) -> list[str]:
    return [f"{one.__module__}.{one.__qualname__}".removeprefix("builtins.") for one in type(tx).__mro__]


# ---------------------------------------------------------------------- how each is unwrapped


def _below(connection: Any) -> Caller:
    """The adapter of a driver's connection, of whichever kind, that lies below a wrapper."""
    names = _class_names(connection)
    for name in names:
        if name in _DRIVERS:
            return _DRIVERS[name](connection)
    raise _unknown(f"connection of the driver behind it ({names[0]})")


def _sqlalchemy(connection: Any, title: str = "a SQLAlchemy Connection") -> BlockingCaller:
    return SqlAlchemy(connection, _below(driver_connection(connection)), title)


def _session(session: Any) -> BlockingCaller:
    return _sqlalchemy(session.connection(), "a SQLAlchemy Session")


def _django(connection: Any) -> BlockingCaller:
    """Django's wrapper rewrites placeholders; its own connection below is in the same transaction, and takes ours as is."""
    connection.ensure_connection()
    connection.validate_no_broken_transaction()
    driver = _below(connection.connection)
    if not isinstance(driver, BlockingCaller):
        raise _unknown(driver.title)
    driver.title = "Django's connection"
    driver.cure = "make the call inside `with transaction.atomic():`"
    return driver


def _psycopg(connection: Any) -> BlockingCaller:
    from onward._store.within.psycopg_drivers import Psycopg

    return Psycopg(connection)


def _async_psycopg(connection: Any) -> AsyncCaller:
    from onward._store.within.psycopg_drivers import AsyncPsycopg

    return AsyncPsycopg(connection)


def _itself(adapter: Callable[[Any], AsyncCaller]) -> Callable[[Any], Awaitable[AsyncCaller]]:
    """A driver's own connection, which nothing is around."""

    async def made(connection: Any) -> AsyncCaller:
        return adapter(connection)

    return made


async def _async_sqlalchemy(connection: Any, title: str = "a SQLAlchemy AsyncConnection") -> AsyncCaller:
    raw = (await connection.get_raw_connection()).driver_connection
    return AsyncSqlAlchemy(connection, _below(raw), title)


async def _async_session(session: Any) -> AsyncCaller:
    return await _async_sqlalchemy(await session.connection(), "a SQLAlchemy AsyncSession")


Driver: TypeAlias = Callable[[Any], Caller]

_DRIVERS: dict[str, Driver] = {
    "sqlite3.Connection": Sqlite3,
    "aiosqlite.core.Connection": Aiosqlite,
    "psycopg.Connection": _psycopg,
    "psycopg.AsyncConnection": _async_psycopg,
    "asyncpg.connection.Connection": Asyncpg,
}
_BLOCKING: dict[str, Callable[[Any], BlockingCaller]] = {
    "sqlite3.Connection": Sqlite3,
    "psycopg.Connection": _psycopg,
    "sqlalchemy.engine.base.Connection": _sqlalchemy,
    "sqlalchemy.orm.session.Session": _session,
    "sqlalchemy.orm.scoping.scoped_session": _session,
    "django.utils.connection.ConnectionProxy": _django,
    "django.db.backends.base.base.BaseDatabaseWrapper": _django,
}
_ASYNC: dict[str, Callable[[Any], Awaitable[AsyncCaller]]] = {
    "aiosqlite.core.Connection": _itself(Aiosqlite),
    "psycopg.AsyncConnection": _itself(_async_psycopg),
    "asyncpg.connection.Connection": _itself(Asyncpg),
    "asyncpg.pool.PoolConnectionProxy": _itself(Asyncpg),
    "sqlalchemy.ext.asyncio.engine.AsyncConnection": _async_sqlalchemy,
    "sqlalchemy.ext.asyncio.session.AsyncSession": _async_session,
    "sqlalchemy.ext.asyncio.scoping.async_scoped_session": _async_session,
}

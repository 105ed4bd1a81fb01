"""Right uses of `tx=`: every kind of connection is accepted, and nothing else of a call changes its type."""

import sqlite3
from typing import Any, assert_type

import aiosqlite
import psycopg
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from onward import AsyncClient, AsyncHandle, Client, Handle, Signal, step, workflow

approved = Signal("approved", bool)


@workflow
async def ship(order: int) -> str:
    return f"{order}"


class PassesOn:
    """As Django's connection and pools of connections do."""

    def __getattr__(self, name: str) -> Any: ...


def blocking(
    client: Client,
    plain: sqlite3.Connection,
    connection: sqlalchemy.Connection,
    session: Session,
    scoped: scoped_session[Session],
    postgres: psycopg.Connection[tuple[Any, ...]],
    passes_on: PassesOn,
) -> None:
    assert_type(client.start(ship.using(tx=plain, id="a"), 1), Handle[str])
    assert_type(client.start(ship.using(tx=connection), order=1), Handle[str])
    assert_type(client.start(ship.using(tx=session).bind(1)), Handle[str])
    assert_type(client.start_many([ship.using(tx=scoped).bind(1)]), list[Handle[str]])
    client.start(ship.using(tx=passes_on), 1)
    assert_type(client.start(ship.using(tx=postgres), 1), Handle[str])
    client.signal("a", approved, True, tx=postgres)
    client.signal("a", approved, True, tx=plain)
    client.signal(client.handle("a"), approved, True, tx=None)
    assert_type(client.handle("a").cancel(tx=session), bool)


async def asynchronous(
    client: AsyncClient,
    plain: aiosqlite.Connection,
    connection: AsyncConnection,
    session: AsyncSession,
    scoped: async_scoped_session[AsyncSession],
    postgres: psycopg.AsyncConnection[tuple[Any, ...]],
) -> None:
    assert_type(await client.start(ship.using(tx=plain, id="a"), 1), AsyncHandle[str])
    assert_type(await client.start(ship.using(tx=connection), 1), AsyncHandle[str])
    assert_type(await client.start_many([ship.using(tx=session).bind(1)]), list[AsyncHandle[str]])
    await client.start(ship.using(tx=scoped), 1)
    assert_type(await client.start(ship.using(tx=postgres), 1), AsyncHandle[str])
    await client.signal("a", approved, True, tx=connection)
    assert_type(await client.handle("a").cancel(tx=plain), bool)


@step(transactional=True)
async def book_on_postgres(connection: psycopg.AsyncConnection[Any], order: int) -> str:
    async with AsyncClient() as client:
        return (await client.start(ship.using(tx=connection), order)).id


@step(transactional=True)
def book(connection: sqlite3.Connection, order: int) -> str:
    return Client().start(ship.using(tx=connection), order).id

"""Wrong uses of `tx=`: each type checker must report exactly the marked lines."""

import sqlite3

import sqlalchemy

from onward import AsyncClient, Client, Signal, workflow

approved = Signal("approved", bool)


@workflow
async def ship(order: int) -> str:
    return f"{order}"


def blocking(client: Client, connection: sqlite3.Connection, engine: sqlalchemy.Engine) -> None:
    client.start(ship.using(tx="sqlite:///app.db"), 1)  # error
    client.start(ship.using(tx=engine), 1)  # error
    client.start(ship.using(tx=True), 1)  # error
    client.start(ship, 1, tx=connection)  # error
    client.start(ship.using(tx=connection), "1")  # error
    client.signal("a", approved, True, connection)  # error
    client.signal("a", approved, "yes", tx=connection)  # error
    client.signal("a", approved, True, tx=engine)  # error
    client.handle("a").cancel(connection)  # error
    client.handle("a").retry(tx=connection)  # error


async def asynchronous(client: AsyncClient, engine: sqlalchemy.Engine) -> None:
    await client.start(ship.using(tx=engine), 1)  # error
    await client.handle("a").cancel(tx=1)  # error

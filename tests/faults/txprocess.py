"""Another process beside the tests of `tx=`; run by test_tx_processes.py as `python -m tests.faults.txprocess URL COMMAND …`.

Every command says a word on its standard output when it has got so far.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from datetime import timedelta
from typing import Any

import psycopg

from onward import Client, Signal, Worker, workflow
from onward._engine import dispatcher, lease
from onward._store.opening import open_store
from onward._store.sqlite import hub

paid = Signal("paid", int)


@workflow
async def ship(order: str) -> str:
    """What an order is followed by."""
    return f"shipped {order}"


@workflow
async def wait_for_payment() -> int:
    """Ends with the signal."""
    return await paid.wait()


def say(*words: object) -> None:
    print(*words, flush=True)


def application(url: str) -> Any:
    """The application's own connection; its first statement opens a transaction."""
    return sqlite3.connect(url.removeprefix("sqlite:///")) if url.startswith("sqlite:") else psycopg.connect(url)


def die(url: str, point: str) -> None:
    """Write an order, start its workflow and signal another one in one transaction; die by SIGKILL at one point of it."""

    def reached(name: str) -> None:
        if name == point:
            os.kill(os.getpid(), signal.SIGKILL)

    with Client(url) as client:
        conn = application(url)
        conn.execute("INSERT INTO orders VALUES ('a')")
        reached("before the start")
        client.start(ship.using(id="a", tx=conn), "a")
        reached("before the signal")
        client.signal("waiting", paid, 7, tx=conn)
        reached("before the commit")
        conn.commit()
        reached("after the commit")


def order_on_and_on(url: str) -> None:
    """Order, start and signal until killed; say each number once it is committed."""
    conn = application(url)
    client = Client(url)
    number = 0
    while True:
        number += 1
        client.start(ship.using(id=str(number), tx=conn), str(number))
        client.signal("waiting", paid, number, tx=conn)
        conn.execute(f"INSERT INTO orders VALUES ('{number}')")
        conn.commit()
        say(number)


def look_at_nothing_by_oneself() -> None:
    """What this process notices from here on, it was told."""
    hub.QUIET_S = dispatcher.POLL_S = lease.RENEW_S = 3600.0


async def listen(url: str) -> None:
    """Say when something was committed."""
    look_at_nothing_by_oneself()
    told = asyncio.Event()
    store = open_store(url)
    await store.open()
    store.subscribe(told.set)
    for word in ("ready", "told"):
        await told.wait()
        told.clear()
        say(word)
    await store.close()


async def work(url: str) -> None:
    """Run a worker that says when it works, until killed."""
    look_at_nothing_by_oneself()
    async with Worker(url, workflows=[ship, wait_for_payment], lease=timedelta(hours=1)):
        say("ready")
        await asyncio.Event().wait()


def main(url: str, command: str, *arguments: str) -> None:
    match command:
        case "die":
            die(url, *arguments)
        case "order":
            order_on_and_on(url)
        case "listen":
            asyncio.run(listen(url))
        case "work":
            asyncio.run(work(url))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Another process beside the tests of `tx=`; run by test_tx_processes.py as `python -m tests.faults.txprocess FILE COMMAND …`.

Every command says a word on its standard output when it has got so far.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys

from onward import Client, Worker, workflow
from onward._engine import dispatcher, lease
from onward._store.opening import open_store
from onward._store.sqlite import hub


@workflow
async def ship(order: str) -> str:
    """What an order is followed by."""
    return f"shipped {order}"


def say(*words: object) -> None:
    print(*words, flush=True)


def die(path: str, point: str) -> None:
    """Write an order and start its workflow in one transaction; die by SIGKILL at one point of it."""

    def reached(name: str) -> None:
        if name == point:
            os.kill(os.getpid(), signal.SIGKILL)

    with Client(f"sqlite:///{path}") as client:
        conn = sqlite3.connect(path)
        conn.execute("INSERT INTO orders VALUES ('a')")
        reached("before the start")
        client.start(ship.using(id="a", tx=conn), "a")
        reached("before the commit")
        conn.commit()
        reached("after the commit")


def order_on_and_on(path: str) -> None:
    """Order and start until killed; say each number once it is committed."""
    conn = sqlite3.connect(path)
    client = Client(f"sqlite:///{path}")
    number = 0
    while True:
        number += 1
        with conn:
            client.start(ship.using(id=str(number), tx=conn), str(number))
            conn.execute("INSERT INTO orders VALUES (?)", (str(number),))
        say(number)


def look_at_nothing_by_oneself() -> None:
    """What this process notices from here on, it was told."""
    hub.QUIET_S = dispatcher.POLL_S = lease.RENEW_S = 3600.0


async def listen(path: str) -> None:
    """Say when something was committed."""
    look_at_nothing_by_oneself()
    told = asyncio.Event()
    store = open_store(f"sqlite:///{path}")
    await store.open()
    store.subscribe(told.set)
    for word in ("ready", "told"):
        await told.wait()
        told.clear()
        say(word)
    await store.close()


async def work(path: str) -> None:
    """Run a worker that says when it works, until killed."""
    look_at_nothing_by_oneself()
    async with Worker(f"sqlite:///{path}", workflows=[ship]):
        say("ready")
        await asyncio.Event().wait()


def main(path: str, command: str, *arguments: str) -> None:
    match command:
        case "die":
            die(path, *arguments)
        case "order":
            order_on_and_on(path)
        case "listen":
            asyncio.run(listen(path))
        case "work":
            asyncio.run(work(path))


if __name__ == "__main__":
    main(*sys.argv[1:])

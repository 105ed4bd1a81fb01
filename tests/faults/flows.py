"""The workflows that the fault tests run and kill. Every step body first writes a line into the ledger (ledger.py).

`trial` has one of everything; its outcome is the same however often its worker dies. What has to go wrong once goes wrong
by the ledger (a body that finds itself the first of its step raises) or by the number of the try, never by chance.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onward.context import Signal, progress
from onward.definitions import Workflow, step, workflow
from onward.errors import StepFailed
from onward.retry import Retry
from tests.faults.ledger import note, note_and_count

GATE_POLL_S = 0.01
go_on = Signal("go_on", str)


class Refused(Exception):
    """What the fault steps raise."""


# ---------------------------------------------------------------------- one of everything


@dataclass(frozen=True)
class Report:
    """The outcome of `trial`."""

    doubled: int
    squares: list[int]
    added: int
    word: str
    handled: str
    tries: list[int]
    booked: int
    late: int
    escaped: int


@step
async def double(value: int) -> int:
    note()
    return value * 2


@step
def double_in_thread(value: int) -> int:
    note()
    return value * 2


@step
async def square(value: int) -> int:
    note()
    await asyncio.sleep(0)
    return value * value


@step
def refuse(value: int) -> int:
    note()
    raise Refused(f"no {value}")


@step(retry=Retry(tries=3, delay=0.005, jitter=0))
async def retry_soon(value: int) -> int:
    """Fails in its first try; the wait is sat out in memory."""
    tries = note().tries
    if tries == 1:
        raise Refused("not yet")
    return value


@step(retry=Retry(tries=3, delay=0.06, jitter=0))
def retry_parked(value: int) -> int:
    """Fails in its first try; the wait is long enough to be parked and written down."""
    tries = note().tries
    if tries == 1:
        raise Refused("not yet")
    return value


@step(transactional=True)
def book(connection: Any, amount: int) -> int:
    """Inserts into the `bookings` table that the tests make beside Onward's own tables."""
    note()
    table, mark = ("bookings", "?") if isinstance(connection, sqlite3.Connection) else ("public.bookings", "%s")
    connection.execute(f"INSERT INTO {table} (amount) VALUES ({mark})", (amount,))
    return amount + 1


@step
async def fail_late(value: int) -> int:
    """Raises the first time it runs, at once: its error is recorded while the workflow waits for `dawdle`."""
    if note_and_count() == 1:
        raise Refused("late")
    return value


@step
async def dawdle(value: int) -> int:
    note()
    await asyncio.sleep(0.01)
    return value


@step
def fail_once(value: int) -> int:
    """Raises the first time it runs, and nobody handles it: the workflow has a second attempt."""
    if note_and_count() == 1:
        raise Refused("escaping")
    return value


@workflow
async def addition(left: int, right: int) -> int:
    """The child."""
    doubled = await double(left)
    await asyncio.sleep(0.03)
    return doubled + await double_in_thread(right)


@workflow(backoff=Retry(delay=0.03, jitter=0))
async def trial(start: int) -> Report:
    doubled = await double_in_thread(await double(start))
    progress({"doubled": doubled})
    await asyncio.sleep(0.04)
    squares = await asyncio.gather(*(square(value) for value in range(3)))
    added = await addition(doubled, start)
    word = await go_on.wait(timeout=60)
    try:
        await refuse(start)
        handled = ""
    except StepFailed as error:
        handled = error.type_name
    tries = [await retry_soon(1), await retry_parked(2)]
    booked = await book(start)
    late = asyncio.create_task(fail_late(start))
    await dawdle(start)
    await late
    progress({"doubled": doubled, "late": True})
    escaped = await fail_once(start)
    return Report(doubled, squares, added, word, handled, tries, booked, await late, escaped)


TRIAL_STAGES = (
    {"double"}, {"double_in_thread"}, {"sleep"}, {"square", "square#2", "square#3"}, {"addition"}, {"signal:go_on"}, {"refuse"},
    {"retry_soon"}, {"retry_parked"}, {"book"}, {"fail_late", "dawdle"}, {"fail_once"},
)  # fmt: skip
"""The keys of `trial` in their order: no body of a stage may begin before every key of the stages before it is recorded."""


# ---------------------------------------------------------------------- many small ones


@step
async def add_one(value: int) -> int:
    note()
    return value + 1


@step
def add_ten(value: int) -> int:
    note()
    return value + 10


@workflow(backoff=Retry(delay=0.02, jitter=0))
async def three(value: int) -> int:
    return await add_one(await add_ten(await add_one(value)))


@workflow
async def sleeper(seconds: float) -> None:
    await asyncio.sleep(seconds)


@workflow(max_attempts=1)
async def failing(value: int) -> int:
    await add_one(value)
    return await refuse(value)


@workflow
async def listening(value: int) -> str:
    await add_one(value)
    return await go_on.wait()


# ---------------------------------------------------------------------- held in place by a gate


@step
async def at_gate(gate: str) -> int:
    """Runs until the gate file exists, without blocking anything."""
    begun = note_and_count()
    while not Path(gate).exists():
        await asyncio.sleep(GATE_POLL_S)
    return begun


@step
def at_gate_in_thread(gate: str) -> int:
    """The same, blocking its thread."""
    begun = note_and_count()
    while not Path(gate).exists():
        time.sleep(GATE_POLL_S)
    return begun


@step
async def at_gate_blocking(gate: str) -> int:
    """The wrong one: its first body blocks the worker's event loop until the gate file exists."""
    begun = note_and_count()
    while begun == 1 and not Path(gate).exists():
        time.sleep(GATE_POLL_S)
    return begun


@workflow
async def gated(gate: str) -> int:
    await at_gate(gate)
    return await add_one(1)


@step(transactional=True)
def book_at_gate(connection: Any, gate: str) -> int:
    """Its transaction stands open until the gate file exists."""
    begun = note_and_count()
    while not Path(gate).exists():
        time.sleep(GATE_POLL_S)
    connection.execute("INSERT INTO public.bookings (amount) VALUES (1)")
    return begun


@workflow(backoff=Retry(delay=0.02, jitter=0))
async def booking(gate: str) -> int:
    await book_at_gate(gate)
    return await add_one(1)


@step
def make_bulk(length: int) -> str:
    """Its result needs new pages in the database file."""
    note()
    return "x" * length


@workflow
async def bulky(gate: str) -> int:
    await at_gate(gate)
    return len(await make_bulk(200_000))


@workflow
async def gated_in_thread(gate: str) -> int:
    await at_gate_in_thread(gate)
    return await add_one(1)


@workflow
async def gated_blocking(gate: str) -> int:
    await at_gate_blocking(gate)
    return await add_one(1)


@workflow
async def blocking_itself(gate: str) -> int:
    """Blocks in the workflow function itself."""
    await add_one(1)
    while not Path(gate).exists():
        time.sleep(GATE_POLL_S)
    return await add_one(2)


# ---------------------------------------------------------------------- poison


@step
async def kill_worker() -> None:
    note()
    os.kill(os.getpid(), signal.SIGKILL)


@step
def kill_worker_but_not_its_children(gate: str) -> None:
    """Leaves two children behind, a forked one and a started one, that live until the gate file exists."""
    if note_and_count() > 1:
        return
    if os.fork() == 0:
        for _ in range(3000):
            if Path(gate).exists():
                break
            time.sleep(GATE_POLL_S)
        os._exit(0)
    command = f"for i in $(seq 300); do test -e '{gate}' && exit; sleep 0.1; done"
    subprocess.Popen(["/bin/sh", "-c", command])
    os.kill(os.getpid(), signal.SIGKILL)


@workflow
async def survived_by_children(gate: str) -> None:
    await kill_worker_but_not_its_children(gate)


@workflow
async def poison() -> None:
    await kill_worker()


WORKFLOWS: list[Workflow[..., Any]] = [
    addition, blocking_itself, booking, bulky, failing, gated, gated_blocking, gated_in_thread, listening, poison, sleeper,
    survived_by_children, three, trial,
]  # fmt: skip

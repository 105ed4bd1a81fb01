"""What a forked fault process does: run one worker, or make one client call, with the twists that its job names.

A twist changes one part of this very process (never of the installed library): it counts failpoints, loses a reply, lets the
disk fill up. Each is a function of the job, applied before the worker is made.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import logging
import os
import random
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from onward._engine import connection as client_connection
from onward._engine import dispatcher, failpoints
from onward._engine.replay.matching import Execution
from onward._engine.runner import Runner
from onward._store.base import Leases, Store
from onward._store.opening import open_store
from onward._store.postgres.leases import PostgresLeases
from onward._store.postgres.store import PostgresStore
from onward._store.records import Claimed, ClaimRequest, WorkerRow
from onward._store.sqlite.database import Database
from onward._store.sqlite.leases import SqliteLeases
from onward._store.sqlite.store import SqliteStore
from onward.client import AsyncClient
from onward.errors import OutcomeUnknown, TransientStoreError
from onward.worker import Worker
from tests.faults import flows
from tests.faults.ledger import use_ledger


class Job(msgspec.Struct, kw_only=True, frozen=True):
    """What a fault process is to do; paths are absolute."""

    url: str
    ledger: str
    log: str
    failpoint: str = ""
    lease: float = 15.0
    slots: int = 200
    threads: int = 32
    grace: float = 5.0
    checks_replay: bool = False
    always_parks: bool = False
    twists: dict[str, str] = {}
    """Twist and its argument."""
    start: str = ""
    """Not a worker: start `trial(4)` under this id ("many": 5,000 workflows of `three`), and end."""


def perform(job: Job) -> None:
    """Do the job; returns when the worker was stopped by SIGTERM."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format=f"{os.getpid()} %(levelname)s %(name)s: %(message)s", force=True
    )
    random.seed()
    use_ledger(job.ledger)
    for name, argument in job.twists.items():
        TWISTS[name](argument)
    if job.start:
        asyncio.run(_start(job))
    else:
        asyncio.run(_work(job))


async def _work(job: Job) -> None:
    os.environ["ONWARD_FAILPOINT"] = job.failpoint
    worker = Worker(
        job.url,
        workflows=flows.WORKFLOWS,
        lease=job.lease,
        slots=job.slots,
        threads=job.threads,
        grace=job.grace,
        checks_replay=job.checks_replay,
        _is_always_parking=job.always_parks,
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
    await worker.run()
    if worker._engine is not None and worker._engine.replay_mismatches:
        raise AssertionError(f"replays that disagreed: {worker._engine.replay_mismatches}")


async def _start(job: Job) -> None:
    failpoints.arm(job.failpoint)
    vars(client_connection)["open_store"] = functools.partial(open_store, probe=failpoints.hit)
    async with AsyncClient(job.url) as client:
        if job.start == "many":
            await client.start_many(flows.three.using(id=f"many-{number}").bind(number) for number in range(5000))
        else:
            await client.start(flows.trial.using(id=job.start), 4)


# ---------------------------------------------------------------------- twists


def _count_points(path: str) -> None:
    """Write the name of every failpoint passed, one a line."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    hit = failpoints.hit

    def counting(name: str) -> None:
        os.write(fd, f"{name}\n".encode())
        hit(name)

    failpoints.hit = counting


def _lose_claim_reply(_argument: str) -> None:
    """The first claim that takes rows commits, and its caller is told that nobody knows."""
    for store in (SqliteStore, PostgresStore):
        _lose_claim_reply_of(store)


def _lose_claim_reply_of(store: type[SqliteStore | PostgresStore]) -> None:
    claim: Any = store.claim
    has_lost = False

    async def losing(self: Store, request: ClaimRequest) -> list[Claimed]:
        nonlocal has_lost
        rows: list[Claimed] = await claim(self, request)
        if rows and not has_lost:
            has_lost = True
            raise OutcomeUnknown("the connection broke at the commit of a claim")
        return rows

    store.claim = losing  # type: ignore[method-assign]


def _impatient(seconds: str) -> None:
    """Wait less long for a write lock, and for a database that takes no writes at the end, than in production."""
    defaults = Database.__init__.__kwdefaults__
    assert defaults is not None
    defaults["busy_s"] = float(seconds)
    dispatcher.STOP_PATIENCE_S = float(seconds)


def _busy_registration(calls: str) -> None:
    """These registrations of a worker, counted from 1, find the database busy."""
    for leases in (SqliteLeases, PostgresLeases):
        _make_registration_busy(leases, calls.split())


def _make_registration_busy(leases: type[SqliteLeases | PostgresLeases], calls: list[str]) -> None:
    register: Any = leases.register
    count = itertools.count(1)

    def busy(self: Leases, worker: WorkerRow, lease_us: int) -> None:
        if str(next(count)) in calls:
            raise TransientStoreError("another connection holds the write lock")
        register(self, worker, lease_us)

    leases.register = busy  # type: ignore[method-assign]


def _full_disk(room: str) -> None:
    """No connection may make the file larger, until the file `room` exists."""
    connect_writer = Database.connect_writer

    def limited(self: Database, *, create: bool = False) -> sqlite3.Connection:
        conn = connect_writer(self, create=create)
        if not Path(room).exists():
            conn.execute("PRAGMA max_page_count = 1")  # SQLite takes the present size instead
        return conn

    Database.connect_writer = limited  # type: ignore[method-assign]


def _census(path: str) -> None:
    """On SIGUSR1, write into the file how many executions, runners and threads this process has."""

    def take(*_: object) -> None:
        gc.collect()
        objects: Sequence[Any] = gc.get_objects()
        found = {
            "executions": sum(type(thing) is Execution for thing in objects),
            "runners": sum(type(thing) is Runner for thing in objects),
            "tasks": len(asyncio.all_tasks()),
            "threads": sorted(thread.name for thread in threading.enumerate()),
        }
        Path(path + ".new").write_bytes(msgspec.json.encode(found))
        os.replace(path + ".new", path)

    signal.signal(signal.SIGUSR1, take)


def _clock_off(seconds: str) -> None:
    """This machine's wall clock is wrong by so much; its monotonic clock is as good as ever."""
    right, right_ns, off = time.time, time.time_ns, float(seconds)
    time.time = lambda: right() + off
    time.time_ns = lambda: right_ns() + int(off * 1e9)


TWISTS = {
    "busy-registration": _busy_registration,
    "census": _census,
    "clock-off": _clock_off,
    "count-points": _count_points,
    "full-disk": _full_disk,
    "impatient": _impatient,
    "lose-claim-reply": _lose_claim_reply,
}

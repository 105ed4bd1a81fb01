"""`tx=` across processes: killed by SIGKILL around the commit, and heard of by the commit in other processes."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from onward import Client
from tests.faults.databases import Database, make_database
from tests.faults.processes import ROOT
from tests.faults.txprocess import application, paid, ship, wait_for_payment

Process = subprocess.Popen[str]
START = "SELECT id FROM onward_workflows WHERE id <> 'waiting' ORDER BY id"
SIGNAL = "SELECT count(*) FROM onward_mailbox"


@pytest.fixture
def database(tmp_path: Path, kind: str) -> Iterator[Database]:
    """A database with Onward's tables and one of the application's own, and a workflow that waits for a signal."""
    made = make_database(kind, tmp_path)
    with Client(made.url) as client:
        client.start(wait_for_payment.using(id="waiting"))
    made.dress()
    made.rows("CREATE TABLE orders (name TEXT)")
    yield made
    made.remove()


@pytest.fixture
def process(database: Database) -> Iterator[Callable[..., Process]]:
    """Starts other processes, and ends what is left of them."""
    started: list[Process] = []

    def start(*arguments: str) -> Process:
        command = [sys.executable, "-m", "tests.faults.txprocess", database.url, *arguments]
        started.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.communicate()


def line(process: Process) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize(
    ("point", "is_there"),
    [
        ("before the start", False),
        ("before the signal", False),
        ("before the commit", False),
        ("after the commit", True),
    ],
)
def test_a_process_killed_before_its_commit_leaves_nothing_and_after_it_everything(
    database: Database, process: Callable[..., Process], point: str, is_there: bool
) -> None:
    """The application's row, the workflow and the signal share their fate; started again, all are there once."""
    assert process("die", point).wait(60) == -signal.SIGKILL
    expected = ["a"] if is_there else []
    assert database.rows("SELECT name FROM orders") == database.rows(START) == expected
    assert database.rows(SIGNAL) == [int(is_there)]
    with contextlib.closing(application(database.url)) as conn, Client(database.url) as client:
        assert client.start(ship.using(id="a", tx=conn), "a").created is not is_there
        if not is_there:
            client.signal("waiting", paid, 7, tx=conn)
        conn.commit()
        assert client.run(ship.using(id="a"), "a") == "shipped a"
        assert client.run(wait_for_payment.using(id="waiting")) == 7


def test_wherever_a_process_is_killed_each_order_has_its_workflow_and_its_signal(
    database: Database, process: Callable[..., Process]
) -> None:
    """And what was said to be committed is there."""
    said = 0
    for count in (1, 20, 60):
        for table in ("orders", "onward_mailbox", "onward_workflows WHERE id <> 'waiting'"):
            database.rows(f"DELETE FROM {table}")
        ordering = process("order")
        for _ in range(count):
            said = int(line(ordering))
        ordering.send_signal(signal.SIGKILL)
        assert ordering.wait(60) == -signal.SIGKILL
        settle(database)
        orders = database.rows("SELECT name FROM orders ORDER BY name")
        assert orders == database.rows(START)
        assert sorted(orders) == sorted(database.rows("SELECT CAST(payload AS TEXT) FROM onward_mailbox"))
        assert str(said) in orders


def settle(database: Database) -> None:
    """A server may still be at the last transaction of a client that is gone: what waits for all row locks waits for it."""
    if database.kind == "postgres":
        database.rows("BEGIN; LOCK TABLE orders IN ACCESS EXCLUSIVE MODE; COMMIT")


def test_the_commit_tells_listeners_in_other_processes(database: Database, process: Callable[..., Process]) -> None:
    """Nothing else is committed, and nothing is looked at meanwhile."""
    listener = process("listen")
    assert line(listener) == "ready"
    with contextlib.closing(application(database.url)) as conn, Client(database.url) as client:
        client.start(ship.using(tx=conn), "a")
        conn.commit()
    assert line(listener) == "told"


def test_the_commit_wakes_a_worker_in_another_process(database: Database, process: Callable[..., Process]) -> None:
    worker = process("work")
    assert line(worker) == "ready"
    with Client(database.url) as client:
        for number in range(3):
            with contextlib.closing(application(database.url)) as conn:
                handle = client.start(ship.using(tx=conn), str(number))
                conn.commit()
            assert handle.result(timeout=60) == f"shipped {number}"
        with contextlib.closing(application(database.url)) as conn:
            client.signal("waiting", paid, 7, tx=conn)
            conn.commit()
        assert client.handle("waiting", wait_for_payment).result(timeout=60) == 7

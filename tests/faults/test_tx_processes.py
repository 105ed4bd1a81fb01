"""`tx=` across processes: killed by SIGKILL around the commit, and heard of by the commit in other processes."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from onward import Client
from tests.faults.processes import ROOT
from tests.faults.txprocess import ship

Process = subprocess.Popen[str]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database with Onward's tables and one of the application's own."""
    found = tmp_path / "app.db"
    with Client(f"sqlite:///{found}") as client:
        client.counts()
    with contextlib.closing(sqlite3.connect(found)) as conn:
        conn.execute("CREATE TABLE orders (name TEXT)")
    return found


@pytest.fixture
def process(path: Path) -> Iterator[Callable[..., Process]]:
    """Starts other processes, and ends what is left of them."""
    started: list[Process] = []

    def start(*arguments: str) -> Process:
        command = [sys.executable, "-m", "tests.faults.txprocess", str(path), *arguments]
        started.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.communicate()


def line(process: Process) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def rows(path: Path, sql: str) -> list[str]:
    with contextlib.closing(sqlite3.connect(path)) as conn:
        return [value for (value,) in conn.execute(sql)]


@pytest.mark.parametrize(
    ("point", "is_there"), [("before the start", False), ("before the commit", False), ("after the commit", True)]
)
def test_a_process_killed_before_its_commit_leaves_nothing_and_after_it_both(
    path: Path, process: Callable[..., Process], point: str, is_there: bool
) -> None:
    """The application's row and the workflow share their fate; started again, both are there once."""
    assert process("die", point).wait(60) == -signal.SIGKILL
    expected = ["a"] if is_there else []
    assert rows(path, "SELECT name FROM orders") == rows(path, "SELECT id FROM onward_workflows") == expected
    with contextlib.closing(sqlite3.connect(path)) as conn, Client(f"sqlite:///{path}") as client:
        with conn:
            assert client.start(ship.using(id="a", tx=conn), "a").created is not is_there
        assert client.run(ship.using(id="a"), "a") == "shipped a"


def test_wherever_a_process_is_killed_each_order_has_its_workflow(path: Path, process: Callable[..., Process]) -> None:
    """And what was said to be committed is there."""
    said = 0
    for count in (1, 20, 60):
        with contextlib.closing(sqlite3.connect(path)) as conn, conn:
            conn.execute("DELETE FROM orders")
            conn.execute("DELETE FROM onward_workflows")
        ordering = process("order")
        for _ in range(count):
            said = int(line(ordering))
        ordering.send_signal(signal.SIGKILL)
        assert ordering.wait(60) == -signal.SIGKILL
        orders = rows(path, "SELECT name FROM orders ORDER BY name")
        assert orders == rows(path, "SELECT id FROM onward_workflows ORDER BY id")
        assert str(said) in orders


def test_the_commit_tells_listeners_in_other_processes(path: Path, process: Callable[..., Process]) -> None:
    """Nothing else is committed, and nothing is looked at meanwhile."""
    listener = process("listen")
    assert line(listener) == "ready"
    with contextlib.closing(sqlite3.connect(path)) as conn, Client(f"sqlite:///{path}") as client:
        client.start(ship.using(tx=conn), "a")
        conn.commit()
    assert line(listener) == "told"


def test_the_commit_wakes_a_worker_in_another_process(path: Path, process: Callable[..., Process]) -> None:
    worker = process("work")
    assert line(worker) == "ready"
    with Client(f"sqlite:///{path}") as client:
        for number in range(3):
            with contextlib.closing(sqlite3.connect(path)) as conn:
                handle = client.start(ship.using(tx=conn), str(number))
                conn.commit()
            assert handle.result(timeout=60) == f"shipped {number}"

"""Fixtures of the command line: running it in this process, and one database file with a workflow in each state."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import onward as onward_package
from onward import AsyncClient, Worker, WorkflowFailed
from onward.cli.group import onward
from onward.cli.loading import load_module, workflows_of
from tests.cli.processes import Process, Start

FLOWS = Path(__file__).with_name("cli_flows.py")

Cli = Callable[..., Result]


@pytest.fixture(autouse=True)
def _a_process_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An empty working directory, no environment, and afterwards the logging, modules and path of before."""
    root = logging.getLogger()
    handlers, level, modules = root.handlers[:], root.level, set(sys.modules)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setenv(
        "PYTHONPATH", str(Path(onward_package.__file__).parents[1])
    )  # for processes in other directories
    monkeypatch.delenv("ONWARD_DATABASE_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    yield
    root.handlers[:], root.level = handlers, level
    root.setLevel(level)
    for name in set(sys.modules) - modules:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith((str(tmp_path), str(FLOWS.parent))):
            del sys.modules[name]


@pytest.fixture
def cli() -> Cli:
    """Runs `onward` with these arguments in this process."""

    def run(*args: str) -> Result:
        result = CliRunner().invoke(onward, list(args))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def start_worker() -> Iterator[Start]:
    """Starts workers, and ends them with the test."""
    with contextlib.ExitStack() as stack:

        def start(*args: str) -> Process:
            one = Process(*args)
            stack.callback(one.close)
            return one

        yield start


@pytest.fixture
def flows() -> str:
    """The module of the tests, as the command line takes it."""
    return str(FLOWS)


class _Template:
    """The file that `lived_in` copies, made again once it is so old that what it says of times would not fit."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._made_at = -math.inf
        self._count = 0

    def path(self) -> Path:
        if time.monotonic() - self._made_at > 15:
            self._count += 1
            before = sys.path[:]
            self._made_at = time.monotonic()
            asyncio.run(_live(f"sqlite:///{self._directory / f'lived-in-{self._count}.db'}"))
            sys.path[:] = before
        return self._directory / f"lived-in-{self._count}.db"


@pytest.fixture(scope="session")
def _lived_in(tmp_path_factory: pytest.TempPathFactory) -> _Template:
    return _Template(tmp_path_factory.mktemp("cli"))


@pytest.fixture
def lived_in(_lived_in: _Template, tmp_path: Path) -> str:
    """The URL of a file of one's own, in which each of these ids is in the state that the name says: completed, failed,
    cancelled, unlucky (backing off), retrying (a step is), sleeper, waiter, parent, delayed, pending."""
    with (
        closing(sqlite3.connect(_lived_in.path())) as source,
        closing(sqlite3.connect(tmp_path / "lived-in.db")) as copy,
    ):
        source.backup(copy)
    return f"sqlite:///{tmp_path / 'lived-in.db'}"


async def _live(url: str) -> None:
    defined = workflows_of(load_module(str(FLOWS)))
    async with AsyncClient(url) as client:
        store = (await client._connection()).store
        committed = asyncio.Event()
        end = store.subscribe(committed.set)

        async def start(name: str, *args: Any, as_id: str | None = None, **options: Any) -> None:
            await client.start(defined[name].using(id=as_id or name, **options).bind(*args))

        async def until(workflow_id: str, words: str) -> None:
            while words not in (await client.handle(workflow_id).info()).state:
                committed.clear()
                await committed.wait()

        await start("hello", "Ann", as_id="completed", tags={"team": "a", "kind": "x"})
        await start("failing", "no use", as_id="failed", tags={"team": "b"})
        for name in ("retrying", "sleeper", "waiter", "parent"):
            await start(name)
        await start("unlucky", "bad luck")
        await start("hello", "Bob", as_id="cancelled", tags={"team": "a"})
        await client.handle("cancelled").cancel()
        async with Worker(url, workflows=defined.values()):
            await client.handle("completed").result()
            with pytest.raises(WorkflowFailed):
                await client.handle("failed").result()
            await until("retrying", "backing off")
            await until("unlucky", "backing off")
            await until("sleeper", "sleeping")
            await until("waiter", "waiting for signal")
            await until("parent", "waiting for child parent/waiter")
            await until("parent/waiter", "waiting for signal")
        end()
        await start("hello", "Eve", as_id="delayed", delay=3600)
        await start("hello", "Max", as_id="pending")

"""The parent of `onward worker -p` and the lifeline of its processes, with small programs in place of workers."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import msgspec
import pytest

from onward.cli import supervisor as module
from onward.cli.lifeline import STOP, VARIABLE, Place
from onward.cli.supervisor import Supervisor, options_again
from onward.health import WorkerHealth
from tests.cli.processes import DEADLINE_S

READY = WorkerHealth(is_live=True, is_ready=True, problems=(), worker_id="w", name="x", slots=5, used=2)
HEAD = f"""
import json, os, socket, sys, time
place = json.loads(os.environ["{VARIABLE}"])
line = socket.socket(fileno=0)
def say(**changes):
    line.sendall(json.dumps({{**json.loads({msgspec.json.encode(READY).decode()!r}), **changes}}).encode() + b"\\n")
"""
"""A worker process: says how it is, hears when to stop."""
UNTIL_STOP = "say()\nline.recv(9)\n"


def group(*programs: str, slots: int = 5, grace_s: float = 0.0) -> Supervisor:
    commands = [[sys.executable, "-c", HEAD + program] for program in programs]
    return Supervisor(commands, os.environ, name="group", slots=slots, grace_s=grace_s)


def stop(one: Supervisor) -> None:
    one._received(signal.SIGTERM)


async def until(look: Callable[[], object], what: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not look():
            await asyncio.sleep(0.01)


def run(one: Supervisor, act: Callable[[], object]) -> int:
    """Run it, and `act` beside it; returns the exit code."""

    async def both() -> int:
        running = asyncio.ensure_future(one.run())
        acted = act()
        if asyncio.iscoroutine(acted):
            await acted
        async with asyncio.timeout(DEADLINE_S):
            return await running

    return asyncio.run(both())


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(module, "LONGEST_DELAY_S", 0.04)


def test_what_ends_by_itself_is_started_again_later_and_later(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "onward.cli")
    one = group("say()\nsys.exit(3)")

    async def act() -> None:
        await until(lambda: caplog.text.count("starting it again") >= 4, "four ends")
        stop(one)

    assert run(one, act) in (0, 3)
    lines = [line for line in caplog.messages if "starting it again" in line]
    assert all("ended with 3 after" in line for line in lines)
    assert [line.rpartition(" in ")[2] for line in lines[:4]] == ["10 ms", "20 ms", "40 ms", "40 ms"]


def test_one_that_has_lived_long_is_started_again_soon(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETTLED_S", 0.0)
    caplog.set_level(logging.INFO, "onward.cli")
    one = group("say()\nos.kill(os.getpid(), 9)")

    async def act() -> None:
        await until(lambda: caplog.text.count("starting it again") >= 3, "three ends")
        stop(one)

    run(one, act)
    lines = [line for line in caplog.messages if "starting it again" in line]
    assert all("was killed by SIGKILL after" in line for line in lines)
    assert {line.rpartition(" in ")[2] for line in lines} == {"10 ms"}


def test_the_others_are_started_when_the_first_one_works(tmp_path: Path) -> None:
    file = str(tmp_path / "order")
    note = f"open({file!r}, 'a').write(str(place['number']) + str(place['is_quiet'])[0] + ' ')\n"
    wait = f"while not os.path.exists({file + '-go'!r}): time.sleep(0.01)\n"
    one = group(note + wait + UNTIL_STOP, note + UNTIL_STOP, note + UNTIL_STOP)

    async def act() -> None:
        await until(lambda: Path(file).exists(), "the first one")
        Path(file + "-go").touch()
        await until(lambda: one.health().is_ready, "all of them")
        stop(one)

    assert run(one, act) == 0
    assert sorted(Path(file).read_text().split()) == ["1F", "2T", "3T"]
    assert Path(file).read_text().startswith("1F ")


@pytest.mark.parametrize(("program", "code"), [("sys.exit(7)", 7), ("os.kill(os.getpid(), 9)", 137), ("", 0)])
def test_a_first_one_that_never_works_ends_it_all(
    program: str, code: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "second"
    one = group(program, f"open({str(file)!r}, 'w')")
    assert run(one, lambda: None) == code
    assert not file.exists()
    assert "starting it again" not in caplog.text


def test_the_code_is_the_first_one_of_the_processes_that_is_not_zero(tmp_path: Path) -> None:
    gate = str(tmp_path / "gate")
    late = UNTIL_STOP + f"while not os.path.exists({gate!r}): time.sleep(0.01)\nsys.exit(5)"
    one = group(UNTIL_STOP, UNTIL_STOP + f"open({gate!r}, 'w')\nsys.exit(4)", late, grace_s=DEADLINE_S)

    async def act() -> None:
        await until(lambda: one.health().is_ready, "all of them")
        stop(one)

    assert run(one, act) in (4, 5)  # whichever the operating system reports first


def test_what_does_not_end_within_the_grace_and_some_more_is_killed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "LEFTOVER_S", 0.1)
    one = group(UNTIL_STOP + "time.sleep(1000)")

    async def act() -> None:
        await until(lambda: one.health().is_ready, "it")
        stop(one)

    assert run(one, act) == 137
    assert "is killed" in caplog.text


def test_a_stop_while_one_waits_for_its_next_start_does_not_start_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_DELAY_S", 1000.0)
    one = group("say()\nline.recv(9) if place['is_quiet'] else time.sleep(0)")

    async def act() -> None:
        await until(lambda: one._working.is_set() and not one._children, "its end")
        stop(one)

    assert run(one, act) == 0


def test_the_health_of_all_is_that_of_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gate = str(tmp_path / "gate")
    wait = f"while not os.path.exists({gate!r}): time.sleep(0.01)\n"
    one = group(UNTIL_STOP, wait + "say(is_ready=False, problems=['the lease is not held'])\nline.recv(9)\n")
    seen = []

    async def act() -> None:
        assert one.health().problems == ("worker 1: not running", "worker 2: not running")
        await until(lambda: one.health().problems == ("worker 2: starting",), "the first one")
        seen.append(one.health())
        Path(gate).touch()
        await until(lambda: one.health().used == 4, "both")
        seen.append(one.health())
        monkeypatch.setattr(module, "LONGEST_SILENCE_S", -1.0)
        seen.append(one.health())
        stop(one)
        seen.append(one.health())

    assert run(one, act) == 0
    starting, unready, silent, stopping = seen
    assert (starting.is_live, starting.is_ready, starting.slots, starting.used) == (True, False, 10, 2)
    assert (unready.is_live, unready.is_ready) == (True, False)
    assert unready.problems == ("worker 2: the lease is not held",)
    assert not silent.is_live
    assert silent.problems[0].startswith("worker 1: its process has been silent for")
    assert stopping.problems[-1] == "stopping"


def test_the_options_are_typed_again_as_they_were() -> None:
    @click.command()
    @click.argument("modules", nargs=-1)
    @click.option("-q", "--queue", "queues", multiple=True)
    @click.option("--grace", type=float, default=30.0)
    @click.option("--name")
    @click.option("--lost")
    def command(**_: object) -> None: ...

    with command.make_context("x", ["--queue", "a b", "-q", "--c", "m", "--lost", "1"]) as ctx:
        assert options_again(ctx, without=("lost",)) == ["--queue=a b", "--queue=--c", "--grace=30.0"]


# ---------------------------------------------------------------------- the child's end

CHILD = """
import sys, threading
from onward.cli.lifeline import Lifeline
from onward.health import WorkerHealth
line = Lifeline.inherited()
if line is None:
    sys.exit(9)
stopped = threading.Event()
look = lambda: WorkerHealth(is_live=True, is_ready=True, problems=(), worker_id="w", name="x", slots=5, used=2)
if "unattached" not in sys.argv:
    line.attach(stopped.set, look, 0.1)
stopped.wait(60)
if "hangs" in sys.argv:
    threading.Event().wait(60)
line.close()
sys.exit(4)
"""


def child(*words: str, variable: str | None = None) -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair()
    place = msgspec.json.encode(Place(1)).decode() if variable is None else variable
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, *words], stdin=theirs.fileno(), env={**os.environ, VARIABLE: place}
        )
    ours.settimeout(DEADLINE_S)
    return process, ours


def test_a_child_says_how_it_is_and_stops_at_a_word() -> None:
    process, line = child()
    with line, line.makefile("rb") as said:
        assert msgspec.json.decode(said.readline(), type=WorkerHealth) == READY
        line.sendall(STOP)
        assert process.wait(DEADLINE_S) == 4


def test_a_child_stops_when_its_parent_is_gone() -> None:
    process, line = child()
    assert line.recv(1)
    line.close()
    assert process.wait(DEADLINE_S) == 4


def test_a_child_that_does_not_stop_goes_all_the_same_when_its_parent_is_gone() -> None:
    process, line = child("hangs")
    assert line.recv(1)
    line.close()
    assert process.wait(DEADLINE_S) == 1


def test_a_child_that_has_no_worker_yet_just_goes() -> None:
    process, line = child("unattached")
    with line:
        line.sendall(STOP)
        assert process.wait(DEADLINE_S) == 0


def test_a_variable_that_somebody_else_has_set_means_nothing() -> None:
    process, line = child(variable="yes")
    line.close()
    assert process.wait(DEADLINE_S) == 9

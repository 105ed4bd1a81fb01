"""`onward worker -p N`: the parent of N worker processes. It runs no workflow and opens no database.

The first process is started alone: what is wrong with the command, the modules or the database is said once, and ends it all.
When that one works, the others follow. One that ends without having been told to is started again, later and later if it does
not last. Each is a new `python -m onward worker` in a process group of its own, so that a Ctrl-C reaches the parent alone, and
holds a lifeline (lifeline.py), so that none outlives the parent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import click
import msgspec

from onward._store.quantities import counted, span
from onward.cli.lifeline import STOP, VARIABLE, Place
from onward.health import LONGEST_SILENCE_S, WorkerHealth

log = logging.getLogger("onward.cli")

FIRST_DELAY_S, LONGEST_DELAY_S = 1.0, 30.0
"""Before a process is started again; doubled each time."""
SETTLED_S = 60.0
"""One that lived for so long has nothing to do with the failures before it."""
LAST_WORDS_S = 1.0
"""For reading what a process said before its end."""
MOVED = 6
"""The exit code of a worker whose database's workflows were moved to another one (group.py)."""
LEFTOVER_S = 15.0
"""What a process gets beyond its grace at a stop."""


@dataclass(slots=True)
class _Child:
    """One of the processes."""

    process: asyncio.subprocess.Process
    line: asyncio.StreamWriter
    health: WorkerHealth | None = None
    heard_at: float = 0.0


class Supervisor:
    """Keeps the processes.

    Args:
        commands: the command of each process.
        environment: of the processes; the lifeline's variable is added.
        name: of the group, for people.
        slots: of each process, for the sum in `health`.
        grace_s: what running steps get to end at a stop.
    """

    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        environment: Mapping[str, str],
        *,
        name: str,
        slots: int,
        grace_s: float,
    ) -> None:
        self._commands = commands
        self._environment = environment
        self._name = name
        self._slots = slots
        self._grace_s = grace_s
        self._children: dict[int, _Child] = {}
        self._stopping = asyncio.Event()
        self._working = asyncio.Event()
        """The first process works: the command can be carried out."""
        self._code = 0

    async def run(self) -> int:
        """Work until SIGTERM or SIGINT; returns the first exit code other than 0 of the processes, or 0."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._received, number)
        try:
            async with asyncio.TaskGroup() as group:
                first = group.create_task(self._keep(1))
                works = group.create_task(self._working.wait())
                await asyncio.wait([first, works], return_when=asyncio.FIRST_COMPLETED)
                if self._working.is_set():
                    for index in range(2, len(self._commands) + 1):
                        group.create_task(self._keep(index))
                works.cancel()
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
        return self._code

    def health(self) -> WorkerHealth:
        """The processes' health as one: live and ready if all of them are. Callable from any thread."""
        problems: list[str] = []
        is_live = is_ready = True
        used = 0
        for number in range(1, len(self._commands) + 1):
            child = self._children.get(number)
            health = None if child is None else child.health
            if child is None or health is None:
                is_ready = False
                problems.append(f"worker {number}: {'not running' if child is None else 'starting'}")
                continue
            silent_s = time.monotonic() - child.heard_at
            if silent_s > LONGEST_SILENCE_S:
                is_live = False
                problems.append(f"worker {number}: its process has been silent for {silent_s:.0f} s")
            is_live = is_live and health.is_live
            is_ready = is_ready and health.is_ready
            problems += [f"worker {number}: {problem}" for problem in health.problems]
            used += health.used
        if self._stopping.is_set():
            is_ready = False
            problems.append("stopping")
        return WorkerHealth(
            is_live=is_live, is_ready=is_live and is_ready, problems=tuple(problems), worker_id=None, name=self._name,
            slots=self._slots * len(self._commands), used=used,
        )  # fmt: skip

    # --- one process ---

    async def _keep(self, number: int) -> None:
        """Start a process, and start it again whenever it ends by itself."""
        delay = FIRST_DELAY_S
        while not self._stopping.is_set():
            began = time.monotonic()
            pid, code = await self._live(number)
            if code == MOVED and not self._stopping.is_set():  # the same for all, and a new start would not help
                self._stop()
            if self._stopping.is_set() or not self._working.is_set():
                self._code = self._code or (128 - code if code < 0 else code)
                return
            lived = time.monotonic() - began
            if lived >= SETTLED_S:
                delay = FIRST_DELAY_S
            log.warning(
                "worker %d (process %d) %s after %s; starting it again in %s",
                number, pid, _end_in_words(code), span(lived), span(delay),
            )  # fmt: skip
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)
            delay = min(delay * 2, LONGEST_DELAY_S)

    async def _live(self, number: int) -> tuple[int, int]:
        """One process from its start to its end: its id and its exit code."""
        place = Place(number, is_quiet=self._working.is_set())
        environment = {**self._environment, VARIABLE: msgspec.json.encode(place).decode()}
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *self._commands[number - 1], stdin=theirs.fileno(), env=environment, process_group=0
            )
        reader, line = await asyncio.open_connection(sock=ours)
        child = self._children[number] = _Child(process, line)
        log.info("worker %d is process %d", number, process.pid)
        if self._stopping.is_set():
            line.write(STOP)
        listening = asyncio.create_task(self._listen(child, reader))
        try:
            return process.pid, await process.wait()
        finally:
            del self._children[number]
            await asyncio.wait([listening], timeout=LAST_WORDS_S)
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            line.close()

    async def _listen(self, child: _Child, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            async for line in reader:
                with contextlib.suppress(msgspec.MsgspecError):  # cut off by the process's end
                    child.health = msgspec.json.decode(line, type=WorkerHealth)
                    child.heard_at = time.monotonic()
                    if child.health.is_ready:
                        self._working.set()

    # --- the end ---

    def _received(self, number: int) -> None:
        if self._stopping.is_set():
            self._kill()
            os._exit(128 + number)
        log.info(
            "%s: stopping %s; running steps may end within the grace, a second signal leaves at once",
            signal.Signals(number).name, counted(len(self._children), "worker"),
        )  # fmt: skip
        self._stop()

    def _stop(self) -> None:
        self._stopping.set()
        for child in self._children.values():
            child.line.write(STOP)
        asyncio.get_running_loop().call_later(self._grace_s + LEFTOVER_S, self._kill)

    def _kill(self) -> None:
        for number, child in self._children.items():
            log.warning("worker %d (process %d) is killed", number, child.process.pid)
            with contextlib.suppress(ProcessLookupError):
                child.process.kill()


def _end_in_words(code: int) -> str:
    if code >= 0:
        return f"ended with {code}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"


def this_command() -> list[str]:
    """What started this process, up to the arguments of `onward`: the interpreter with its flags, and the script or module."""
    arguments = sys.argv[1:]
    count = len(sys.orig_argv) - len(arguments)
    if count > 1 and sys.orig_argv[count:] == arguments:
        return [sys.executable, *sys.orig_argv[1:count]]
    return [sys.executable, "-m", "onward"]  # somebody has called `main` in a process of his own


def options_again(ctx: click.Context, *, without: Collection[str]) -> list[str]:
    """The options of the present command as they would be typed, those left out that have no value or are in `without`."""
    options: list[str] = []
    for parameter in ctx.command.params:
        value = ctx.params.get(parameter.name or "")
        if isinstance(parameter, click.Option) and parameter.name not in without and value is not None:
            values = value if parameter.multiple else (value,)
            options += [f"{parameter.opts[-1]}={one}" for one in values]
    return options

"""Runs a program against a random world: answers its commands in any order, fires timers, sends signals, cancels it.

What was seen after every entry is kept (`Seen`), so that a replay of any prefix can be compared with it. Used by the tests of
this folder and, in other processes and Python versions, by `replayer.py`.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from random import Random
from typing import Any

import msgspec

from onward._engine.failures import describe, note
from onward._engine.replay.commands import (
    CancelStep,
    Command,
    Raised,
    Record,
    Returned,
    RunStep,
    SetProgress,
    StartChild,
    WatchChild,
)
from onward._engine.replay.matching import Execution
from onward._store.records import Entry
from tests.property import programs

BEGAN = 1_700_000_000_000_000


class Seen(msgspec.Struct):
    """What can be seen of an execution at rest."""

    waiting: list[str]
    open: list[str]
    ending: str
    trace: list[str]


class Story(msgspec.Struct):
    """A program, what happened to it, and what was seen after so many entries."""

    source: str
    seed: str
    history: list[Entry]
    seen: dict[int, Seen]


def new_execution(source: str, seed: str) -> Execution:
    """An execution of this program, not begun."""
    programs.TRACE.clear()
    payload = programs.program.spec.arguments.encode((source,), {})
    return Execution(
        programs.program.spec, payload, workflow_id="w", seed=seed, started_at=BEGAN, note=lambda text: None
    )


class Simulator:
    """The runner and the world of one execution."""

    def __init__(self, source: str, rng: Random, *, parks: bool = False, core: Execution | None = None) -> None:
        self.source = source
        self.rng = rng
        self.parks = parks
        self.seed = f"{rng.getrandbits(128):032x}"
        self.core = new_execution(source, self.seed)
        self.history: list[Entry] = []
        self.seen: dict[int, Seen] = {}
        self.open: dict[str, Command] = {}
        self.held: dict[str, CancelStep] = {}

    def run(self, most: int = 40) -> Story:
        """Go on until the program ends, nothing can happen, or `most` entries were made."""
        self.core.replay([])
        self._look()
        told = self.rng.random() < 0.7
        while self.core.ending is None and len(self.history) < most:
            if not told and self.rng.random() < 0.15:
                told = True
                kind: Any = self.rng.choice(("cancel", "timeout"))
                self._deliver(self._entry(kind, kind))
                continue
            if self.rng.random() < 0.02:
                self._deliver(self._entry("attempt", "attempt", result=str(self.rng.randrange(10**8))))
                continue
            entries = self._possible()
            if not entries:
                break
            self._deliver(self.rng.choice(entries))
        self.core.close()
        return Story(self.source, self.seed, self.history, self.seen)

    def _deliver(self, entry: Entry) -> None:
        self.history.append(entry)
        self.open.pop(entry.key, None)
        self.held.pop(entry.key, None)
        if self.parks:
            self.core.close()
            self.core = new_execution(self.source, self.seed)
            self.open.clear()
            self.held.clear()
            self.core.replay(self.history)
        else:
            self.core.deliver(entry)
        self._look()

    def _look(self) -> None:
        records = take(self.core, self.open, self.held)
        self.history += records
        self.seen[len(self.history)] = look(self.core, self.open, self.held)

    def _entry(self, kind: Any, key: str, at: int = 0, **fields: Any) -> Entry:
        at = max(at, self.core.now_us) + self.rng.randrange(2_000_000)
        return Entry(self.core.last_seq + 1, key, kind, at, **fields)

    def _possible(self) -> list[Entry]:
        entries = []
        for key, command in self.open.items():
            match command:
                case RunStep():
                    entries.append(self._step_entry(key, command))
                case StartChild(confirm=True):
                    entries.append(
                        self._entry("start", key, result=json.dumps(command.child_id), digest=command.digest)
                    )
                case StartChild() | WatchChild():
                    if self.rng.random() < 0.2:
                        entries.append(
                            self._entry("child", key, error=note("ValueError", "of a child", status="failed"))
                        )
                    else:
                        entries.append(self._entry("child", key, result="5"))
        timer = self.core.next_timer()
        if timer is not None and timer.deadline is not None:
            entries.append(self._entry("timer", timer.key, timer.deadline))
        for name in programs.SIGNALS:
            signal_key = self.core.wants_signal(name)
            if signal_key is not None:
                entries.append(self._entry("signal", signal_key, result=str(self.rng.randrange(100))))
        return entries

    def _step_entry(self, key: str, command: RunStep) -> Entry:
        fields: dict[str, Any] = {"digest": command.digest, "arguments": command.arguments}
        try:
            result = command.spec.result.encode(command.spec.fn(*command.args, **command.kwargs))
        except Exception as error:
            error.__traceback__ = None  # its lines differ by Python version
            return self._entry("step", key, error=describe(error, command.spec.raises), **fields)
        return self._entry("step", key, result=result, **fields)


def take(core: Execution, opened: dict[str, Command], held: dict[str, CancelStep]) -> list[Entry]:
    """Take the commands, keep what is open, and return the entries that the core made itself."""
    records = []
    for command in core.take_commands():
        match command:
            case CancelStep(waits=True):
                held[command.key] = command
            case CancelStep():
                opened.pop(command.key, None)
                held.pop(command.key, None)
            case Record():
                records.append(command.entry)
            case SetProgress():
                pass
            case _:
                opened[command.key] = command
    for key in [key for key, command in opened.items() if not isinstance(command, RunStep) and not core.wants(key)]:
        del opened[key]
    if core.ending is not None:
        opened.clear()
        held.clear()
    return records


def look(core: Execution, opened: dict[str, Command], held: dict[str, CancelStep]) -> Seen:
    """What can be seen of an execution at rest."""
    waiting = [repr(item) for item in core.waiting()]
    commands = [_shown(command) for command in (*opened.values(), *held.values())]
    return Seen(waiting, commands, _end(core), list(programs.TRACE))


def _shown(command: Command) -> str:
    match command:
        case RunStep():
            return f"run {command.key} {command.args} {command.kwargs} {command.digest}"
        case StartChild():
            return f"start {command.key} {command.child_id} {command.payload} {command.watch} {command.confirm}"
        case CancelStep():
            return f"cancel {command.key}"
        case WatchChild():
            return f"watch {command.key} {command.child_id}"
        case _:
            raise AssertionError(command)


def _end(core: Execution) -> str:
    match core.ending:
        case Returned(result):
            return f"returned {result}"
        case Raised(error, recorded):
            return f"raised {type(error).__name__} {error} {recorded}"
        case other:
            return repr(other)


def replayed(source: str, seed: str, history: Sequence[Entry]) -> tuple[Seen, Execution]:
    """What can be seen after the replay of this history; the execution is not closed."""
    core = new_execution(source, seed)
    core.replay(history)
    opened: dict[str, Command] = {}
    held: dict[str, CancelStep] = {}
    take(core, opened, held)
    return look(core, opened, held), core


def differences(story: Story) -> list[str]:
    """Replay every prefix of a story and say where it is not as it was seen."""
    found = []
    points = sorted(story.seen)
    for index, cut in enumerate(points):
        seen, core = replayed(story.source, story.seed, story.history[:cut])
        if seen != story.seen[cut]:
            found.append(f"replay of {cut} entries: {_differing(story.seen[cut], seen)}")
        programs.TRACE[:] = seen.trace
        if index + 1 < len(points) and core.ending is None:
            opened: dict[str, Command] = {}
            core.deliver(story.history[cut])
            take(core, opened, {})
            after = story.seen[points[index + 1]]
            if programs.TRACE != after.trace or _end(core) != after.ending:
                found.append(f"replay of {cut} entries and one more: {programs.TRACE} != {after.trace}")
        core.close()
    gc.collect(0)
    return found


def _differing(expected: Seen, found: Seen) -> str:
    return "; ".join(
        f"{name} {getattr(expected, name)} != {getattr(found, name)}"
        for name in ("waiting", "open", "ending", "trace")
        if getattr(expected, name) != getattr(found, name)
    )

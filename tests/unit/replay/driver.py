"""Drives one `Execution` by hand: what the runner does, without database, clock or loop.

A `Run` keeps the history it has fed, so that `again()` can replay it and compare.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from onward._engine.failures import describe
from onward._engine.replay.commands import CancelStep, Command, Record, Returned, RunStep, StartChild, Waiting
from onward._engine.replay.loop import Limits
from onward._engine.replay.matching import Execution
from onward._store.records import Entry, EntryKind

SEED = "00112233445566778899aabbccddeeff"
BEGAN = 1_700_000_000_000_000
"""The executions' `started_at`."""


class Run:
    """One execution and its journal."""

    def __init__(
        self,
        workflow: Any,
        *args: Any,
        history: Sequence[Entry] = (),
        limits: Limits | None = None,
        replays: bool = True,
        **options: Any,
    ) -> None:
        self.workflow = workflow
        self.args = args
        self.options = options
        self.notes: list[str] = []
        self.commands: list[Command] = []
        self.taken: list[Command] = []
        self.history: list[Entry] = list(history)
        self.core = Execution(
            workflow.spec,
            workflow.spec.arguments.encode(args, {}),
            **{"workflow_id": "w1", "seed": SEED, "started_at": BEGAN, "note": self.notes.append, **options},
            limits=limits or Limits(),
        )
        if replays:
            self.core.replay(self.history)
            self._take()

    def _take(self) -> None:
        new = self.core.take_commands()
        self.commands += new
        self.taken += new
        self.history += [command.entry for command in new if isinstance(command, Record)]

    @property
    def ending(self) -> Any:
        """How it ended, or None."""
        return self.core.ending

    @property
    def result(self) -> Any:
        """What the workflow function returned."""
        assert isinstance(self.core.ending, Returned), self.core.ending
        return json.loads(self.core.ending.result)

    @property
    def error(self) -> Any:
        """The error that left the workflow function."""
        assert self.core.ending is not None
        return self.core.ending.error  # type: ignore[union-attr]  # the caller knows

    @property
    def keys(self) -> list[str]:
        """What is outstanding."""
        return [item.key for item in self.core.waiting()]

    def waiting(self, key: str) -> Waiting:
        """What is outstanding under this key."""
        return next(item for item in self.core.waiting() if item.key == key)

    def issued(self) -> list[str]:
        """The steps and children that were asked for, in order; `~key` is a cancellation."""
        shown = []
        for command in self.taken:
            if isinstance(command, RunStep | StartChild):
                shown.append(command.key)
            elif isinstance(command, CancelStep):
                shown.append(f"~{command.key}" + (" waits" if command.waits else ""))
        return shown

    def feed(
        self,
        kind: EntryKind,
        key: str,
        *,
        result: Any = None,
        error: BaseException | None = None,
        at: int | None = None,
        digest: str | None = None,
        raises: tuple[type[Exception], ...] = (),
        arguments: str | None = None,
    ) -> Entry:
        """Deliver an entry with this result (a value) or error."""
        entry = Entry(
            max(self.core.last_seq, self.core.seq_floor) + 1,
            key,
            kind,
            self.core.now_us if at is None else at,
            result=None if error is not None else json.dumps(result),
            error=None if error is None else describe(error, raises),
            digest=digest,
            arguments=arguments,
        )
        self.history.append(entry)
        self.core.deliver(entry)
        self._take()
        return entry

    def step(self, key: str, result: Any = None, **options: Any) -> Entry:
        """Answer a step, as the runner does, with the digest of its call."""
        command = next(c for c in reversed(self.taken) if isinstance(c, RunStep) and c.key == key)
        options = {"digest": command.digest, "arguments": command.arguments, **options}
        error = options.get("error")
        raises = command.spec.raises if error is not None else ()
        return self.feed("step", key, result=result, raises=raises, **options)

    def fire(self, after_s: float = 0.0) -> Entry:
        """Fire the next timer, so long after its deadline."""
        timer = self.core.next_timer()
        assert timer is not None and timer.deadline is not None
        return self.feed("timer", timer.key, at=max(self.core.now_us, timer.deadline) + int(after_s * 1e6))

    def signal(self, name: str, value: Any) -> Entry:
        """Deliver a message to the oldest wait for it."""
        key = self.core.wants_signal(name)
        assert key is not None
        return self.feed("signal", key, result=value)

    def work(self, limit: int = 1000) -> Run:
        """Run the (plain) bodies of steps as they are asked for, and fire timers when nothing else is left."""
        for _ in range(limit):
            if self.ending is not None:
                return self
            command = next((c for c in self.commands if isinstance(c, RunStep) and self.core.wants(c.key)), None)
            if command is None:
                self.fire()
                continue
            self.commands.remove(command)
            try:
                value = command.spec.fn(*command.args, **command.kwargs)
            except Exception as error:
                self.step(command.key, error=error)
            else:
                self.step(command.key, value)
        raise AssertionError("the workflow does not end")

    def again(self, workflow: Any = None, **options: Any) -> Run:
        """A fresh execution replayed from this history, perhaps with other code."""
        merged = {**self.options, **options}
        return Run(workflow or self.workflow, *self.args, history=self.history, **merged)

    def close(self) -> None:
        """Close the execution."""
        self.core.close()


def same(first: Run, second: Run) -> bool:
    """Whether two runs wait for the same and ended alike."""
    return first.core.waiting() == second.core.waiting() and shown(first.ending) == shown(second.ending)


def shown(ending: Any) -> str:
    """An ending as text, errors by type and text."""
    return repr(ending)

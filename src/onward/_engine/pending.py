"""The commands of one execution that have not begun: they wait for the commit of an entry, or for the lease.

A part of a `Runner`. Commands begin in the order in which workflow code issued them. A step begins when the journal is
committed up to the entry that was last delivered when it was called, and while the lease is known to hold; the others only
wait for their turn. A cancel that was issued before its step could begin takes that step out: no effect may happen any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onward._engine.children import Children
from onward._engine.replay.commands import CancelStep, Command, Record, RunStep, SetProgress, StartChild
from onward._engine.replay.matching import Execution

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onward._engine.runner import Runner


class Pending:
    """The commands; kept in a list whose last is the first in order (a deque would be a tenth of what an execution takes)."""

    __slots__ = ("_answered", "_cancels", "_runner", "commands")

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.commands: list[Command] = []
        self._cancels = 0
        """How many of them cancel a step."""
        self._answered: set[str] | None = None
        """Keys of children whose end was delivered before their start came to its turn."""

    def take(self, core: Execution) -> None:
        """Take what workflow code has issued; an entry that the core made itself goes to the committer at once."""
        issued = core.commands
        if len(issued) == 1 and not self.commands:  # the usual case: a step
            (only,) = issued.values()
            if type(only) is RunStep:
                issued.clear()
                self.commands.append(only)
                return
        taken: list[Command] = []
        for command in core.take_commands():
            if type(command) is Record:
                self._runner.record(command.entry)
            else:
                self._cancels += type(command) is CancelStep
                taken.append(command)
        self.extend(taken)

    def child_ended(self, key: str) -> None:
        """A child's end is delivered. After a wake that may be before its start, issued again by the replay, has its turn; it
        need not be looked for any more."""
        if self.commands:
            self._answered = self._answered or set()
            self._answered.add(key)

    def put_back(self, command: RunStep) -> None:
        """A step that was begun could not: it is the next one again."""
        self.commands.append(command)

    def extend(self, commands: Sequence[Command]) -> None:
        """More, after all others."""
        self.commands[:0] = commands[::-1]

    def clear(self) -> str | None:
        """Forget all of them; returns the progress that was to be shown last."""
        shown = [command.value for command in self.commands if type(command) is SetProgress]
        self.commands.clear()
        return shown[0] if shown else None

    @property
    def can_wait(self) -> bool:
        """Whether all can as well begin after a park: they are steps that have not begun."""
        return all(type(command) is RunStep for command in self.commands)

    def waits_for_commit(self, committed: int) -> bool:
        """Whether the first one is a step that needs an entry above this one."""
        command = self.commands[-1]
        return type(command) is RunStep and command.after > committed

    def begin(self) -> None:
        """Begin what may begin."""
        runner, commands, steps = self._runner, self.commands, self._runner.steps
        may_begin = runner.engine.may_begin_bodies
        while commands and runner.state == "running" and not steps.is_frozen:
            command = commands[-1]
            if type(command) is RunStep:
                if command.after > runner.committed or not may_begin():
                    return
                if command.spec.is_transactional and not runner.is_flushed:
                    return
                commands.pop()
                if not self._cancels or not self._is_cancelled(command):
                    steps.begin(command)
                continue
            commands.pop()
            match command:
                case CancelStep():
                    self._cancels -= 1
                    steps.cancel(command)
                case StartChild():
                    if self._answered is not None and command.key in self._answered:
                        continue
                    if runner.children is None:
                        runner.children = Children(runner)
                    runner.children.start(command)
                case SetProgress():
                    runner.showing.set(command.value)

    def _is_cancelled(self, command: RunStep) -> bool:
        for later in self.commands:
            if type(later) is CancelStep and later.key == command.key:
                self.commands.remove(later)
                self._cancels -= 1
                if later.waits:
                    self._runner.steps.answer_unbegun(command)
                return True
        return False

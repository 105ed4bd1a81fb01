"""What one execution shows as its progress: the newest value, on its way to the row.

A part of a `Runner`, made when the first value comes. Workflow code shows a value with a command, which commits with the next
flush. A step's body may show a hundred values a second (an answer that streams in): of those only the newest is kept, one is
on its way at a time, and the next goes out `SPACING_S` after it was committed. A value that still waits when an entry is
recorded rides with that entry, so that none is ever shown after a later one.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from onward._store.operations import JournalOp

if TYPE_CHECKING:
    from onward._engine.runner import Runner

SPACING_S = 0.1
"""Between two values of step bodies of one execution: what a person can follow, and ten small writes a second."""


class Showing:
    """The progress of one execution."""

    __slots__ = ("_is_out", "_newest", "_runner", "_timer")

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._newest: str | None = None
        self._is_out = False
        """A value is on its way to the database."""
        self._timer: asyncio.TimerHandle | None = None

    def set(self, text: str) -> None:
        """A value of workflow code: it goes out at the runner's next `send`, or rides with an entry."""
        self._newest = text

    def show(self, text: str) -> None:
        """A value of a step's body."""
        self._newest = text
        if not self._is_out and self._timer is None:
            self.send()

    def take(self) -> str | None:
        """The value that still waits, to ride with an entry."""
        text, self._newest = self._newest, None
        return text

    def send(self) -> None:
        """Submit the value that waits, if one does."""
        runner = self._runner
        if self._newest is not None and runner.is_running and not runner.steps.is_frozen:
            self._is_out = True
            runner.submit(JournalOp(runner.fence, progress=self.take()))

    def committed(self) -> None:
        """A value has reached the row."""
        self._is_out = False
        if self._timer is None:
            self._timer = self._runner.engine.loop.call_later(SPACING_S, self._may_go_on)

    def _may_go_on(self) -> None:
        self._timer = None
        if not self._is_out:
            self.send()

    def end(self) -> None:
        """The execution leaves: nothing more is shown."""
        self._newest = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

"""What an environment raises when a test cannot go on."""

from __future__ import annotations

from onward.errors import OnwardError


class Deadlock(OnwardError):
    """Nothing will ever go on by itself: every workflow has ended, or waits for a signal that nobody sends."""


class OutOfPatience(OnwardError, TimeoutError):
    """Something still runs, but nothing has happened for so long that it looks hung; see `Environment(patience=)`."""


class OutcomeChanged(OnwardError, AssertionError):
    """A crash has changed what came out.

    Attributes:
        point: the crash point.
        number: its how-manieth passing in the undisturbed run, 1 for the first.
    """

    def __init__(self, message: str, *, point: str, number: int) -> None:
        super().__init__(message)
        self.point = point
        self.number = number

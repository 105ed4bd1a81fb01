"""What is to go wrong, and where: the crash points, and the plans that a test has made for them.

The points are those of `_engine/failpoints.py`, at which the fault suite kills real processes. Here they are passed by the
store of an environment's worker (`_life.py`) and by what runs in place of its steps (`_doubles.py`), and `Faults.passed`
says whether one of the plans wants something of this very passing. Called from several threads.
"""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from onward._engine.specs import StepSpec
from onward.errors import ConfigurationError

WRITES = ("adopt", "bury", "claim", "migrate", "reconcile", "register", "renew", "retire", "step", "write")
POINTS: tuple[str, ...] = (
    "body:before",
    "body:after",
    "flush:before",
    "flush:after",
    *(f"{write}:{when}-commit" for write in WRITES for when in ("before", "after")),
)
"""Every place at which an environment's worker can be made to crash, by the names of docs/development.md."""

CLIENT_POINTS: tuple[str, ...] = (
    "flush:before",
    "flush:after",
    *(f"{write}:{when}-commit" for write in ("write", "prune") for when in ("before", "after")),
)
"""… and its client."""

UNCOUNTED = ("renew:before-commit", "renew:after-commit")
"""Passed once a second of the machine's time, so that `*` leaves them out: it counts what is the same in each run."""

RECORDED = "recorded"


class Crashed(BaseException):
    """The environment's worker (or client) has been made to die here: what this call was about to do does not happen.

    A stub or a body may raise it, and is the death of its worker there and then: ``side_effect=[Crashed(), "ok"]``. Otherwise
    nobody should catch it but the test that planned the crash of a client; it is no `Exception`, so that code between does not.

    Attributes:
        point: where, by the names of `POINTS`.
    """

    def __init__(self, point: str = "a body") -> None:
        super().__init__(f"crashed at {point}, as planned")
        self.point = point


@dataclass(frozen=True, slots=True)
class Passing:
    """One passing of a point; with the step and its key where it is about one."""

    point: str
    workflow_id: str = ""
    key: str = ""
    step: StepSpec | None = None


class PlannedFault:
    """A crash (or a lost reply) that a test has planned; made by `Environment.crash_at` and its like.

    Attributes:
        description: what was planned, in words.
        times: how often it is to happen.
        happened: how often it has happened.
    """

    def __init__(
        self,
        description: str,
        kind: Literal["crash", "lost reply"],
        wants: Callable[[Passing], bool],
        *,
        number: int,
        times: int,
    ) -> None:
        for value, name in ((number, "number"), (times, "times")):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigurationError(f"{name} must be a whole number of at least 1, not {value!r}")
        self.description = description
        self.kind = kind
        self.times = times
        self.happened = 0
        self.passed = 0
        """How often its point was passed since it last happened."""
        self._wants = wants
        self._number = number

    def is_hit(self, passing: Passing) -> bool:
        """Count a passing; whether it is to happen now."""
        if self.happened >= self.times or not self._wants(passing):
            return False
        self.passed += 1
        if self.passed < self._number:
            return False
        self.passed = 0
        self.happened += 1
        return True

    @property
    def is_over(self) -> bool:
        """It has happened as often as planned."""
        return self.happened >= self.times

    def __repr__(self) -> str:
        return f"<{self.kind} {self.description}, {self.happened} of {self.times}>"


class Faults:
    """The plans for one party (the worker, or the client), and what it has passed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.plans: list[PlannedFault] = []
        self.log: list[str] | None = None
        """With a list, every counted point is noted here."""

    def add(self, plan: PlannedFault) -> PlannedFault:
        """Make it a plan."""
        with self._lock:
            self.plans.append(plan)
        return plan

    def passed(self, passing: Passing) -> PlannedFault | None:
        """Count a passing; the plan that wants something now."""
        with self._lock:
            if self.log is not None and passing.point != RECORDED and passing.point not in UNCOUNTED:
                self.log.append(passing.point)
            for plan in self.plans:
                if plan.is_hit(passing):
                    return plan
        return None

    def open(self) -> list[PlannedFault]:
        """The plans that have not happened as often as they were to."""
        return [plan for plan in self.plans if not plan.is_over]

    def wants_renewal(self) -> bool:
        """Whether a plan waits for the renewal of the lease, which takes its time."""
        return any("renew" in plan.description for plan in self.open())


def at_point(point: str, number: int | None, known: tuple[str, ...]) -> tuple[str, int, Callable[[Passing], bool]]:
    """Read a point as `crash_at` takes it: ``"flush:after"``, ``"flush:after@3"``, ``"*@17"``, ``"write:*"``."""
    name, _, count = point.partition("@")
    if count and number is not None:
        raise ConfigurationError(f"{point!r} says at which passing already; leave number= away")
    if count and not count.isdecimal():
        raise ConfigurationError(f"{point!r}: after the @ stands the number of the passing, 1 for the first")
    if not any(fnmatch.fnmatchcase(one, name) for one in known):
        raise ConfigurationError(
            f"there is no crash point {name!r}; there are {', '.join(known)}, and * for any of them"
        )
    is_exact = name in known
    return (
        name,
        int(count) if count else 1 if number is None else number,
        lambda passing: (
            passing.point == name
            if is_exact
            else passing.point != RECORDED
            and passing.point not in UNCOUNTED
            and fnmatch.fnmatchcase(passing.point, name)
        ),
    )

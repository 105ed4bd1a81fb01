"""`crash_everywhere`: run something undisturbed, then once more for each point at which it could crash, and compare.

What may not depend on crashes is the value that comes out, the outcome of every workflow, and the value of every journal
entry. How often a body runs does depend on them: a body runs at least once, and the report says which ran more often where.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onward._engine.failures import read
from onward._store.base import Store
from onward._store.records import Filter
from onward._wrappers import BoundWorkflow, Workflow
from onward.errors import ConfigurationError, NonDeterminismError, UsageError
from onward.testing._doubles import StepCall
from onward.testing._errors import Deadlock, OutcomeChanged, OutOfPatience

if TYPE_CHECKING:
    from onward.testing._environment import Environment

PAGE = 1000


@dataclass(frozen=True, slots=True)
class CrashRound:
    """One run that crashed.

    Attributes:
        point: the crash point, by the names of `POINTS`.
        number: the how-manieth passing of any point that was, 1 for the first: ``crash_at(f"*@{number}")`` repeats it.
        repeated: keys of the steps whose bodies ran more often than undisturbed.
    """

    point: str
    number: int
    repeated: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CrashReport:
    """What `crash_everywhere` has seen; it raises where a crash changed the outcome.

    Attributes:
        value: what came out, in every run.
        rounds: one for each point at which the run crashed, in the order in which they are passed.
    """

    value: Any
    rounds: tuple[CrashRound, ...]

    @property
    def points(self) -> tuple[str, ...]:
        """The points at which it crashed."""
        return tuple(one.point for one in self.rounds)

    @property
    def repeated(self) -> dict[str, tuple[str, ...]]:
        """Step key → the points (``"body:after@7"``) at which a crash made its body run again. These steps need a receiver
        that knows the idempotency key, or to be transactional."""
        found: dict[str, list[str]] = {}
        for one in self.rounds:
            for key in one.repeated:
                found.setdefault(key, []).append(f"{one.point}@{one.number}")
        return {key: tuple(points) for key, points in found.items()}


@dataclass(slots=True)
class Picture:
    """What came out of one run."""

    value: Any
    error: str
    workflows: dict[str, Any] = field(default_factory=dict)
    entries: dict[tuple[str, str], Any] = field(default_factory=dict)
    bodies: Counter[tuple[str, str, int]] = field(default_factory=Counter)

    @classmethod
    async def take(cls, store: Store, value: Any, error: BaseException | None, calls: list[StepCall]) -> Picture:
        """Read the database of a run that is over."""
        picture = cls(value, "" if error is None else f"{type(error).__name__}: {error}")
        for row in await store.list(Filter(limit=PAGE)):
            record = None if row.error is None else read(row.error)
            picture.workflows[row.id] = {
                "type": row.type, "status": row.status, "result": row.result, "progress": row.progress,
                "error": None if record is None else f"{record.type}: {record.message}",
            }  # fmt: skip
            for entry in await store.journal(row.id):
                if not entry.struck and entry.kind != "attempt":
                    text = None if entry.error is None else read(entry.error)
                    picture.entries[row.id, entry.key] = (
                        entry.result if text is None else f"{text.type}: {text.message}"
                    )
        picture.bodies.update((call.workflow_id, call.key, call.try_number) for call in calls)
        return picture

    def difference(self, other: Picture) -> str:
        """The first thing in which the other one is not like this; empty where there is none."""
        if (self.error, other.error) != ("", "") and self.error != other.error:
            return (
                f"it ended with {other.error or repr(other.value)}, undisturbed with {self.error or repr(self.value)}"
            )
        if self.value != other.value:
            return f"it gave {other.value!r}, undisturbed {self.value!r}"
        for what, mine, theirs in (
            ("workflow", self.workflows, other.workflows),
            ("entry", self.entries, other.entries),
        ):
            for name in dict.fromkeys((*mine, *theirs)):
                if mine.get(name) != theirs.get(name):
                    return f"{what} {name!r} is {theirs.get(name)!r}, undisturbed {mine.get(name)!r}"
        return ""

    def repeated_in(self, other: Picture) -> tuple[str, ...]:
        """The keys of the steps whose bodies ran more often in the other one."""
        more = Counter({key: count for key, count in other.bodies.items() if count > self.bodies[key]})
        return tuple(sorted({key for _, key, _ in more}))


class Comparison:
    """The undisturbed run, and the others judged by it.

    Args:
        undisturbed: what came out of it. points: what it passed, in order.
    """

    def __init__(self, undisturbed: Picture, points: list[str]) -> None:
        if not points:
            raise UsageError(
                "the undisturbed run passed no crash point: start a workflow in it, and wait for its result"
            )
        self._undisturbed = undisturbed
        self.points = points
        self._rounds: list[CrashRound] = []

    def judge(self, number: int, point: str, picture: Picture) -> None:
        """Compare a run that crashed; raises OutcomeChanged."""
        difference = self._undisturbed.difference(picture)
        if difference:
            raise OutcomeChanged(
                f'a crash at {point} changes what comes out: {difference}. Repeat it with env.crash_at("*@{number}")',
                point=point,
                number=number,
            )
        self._rounds.append(CrashRound(point, number, self._undisturbed.repeated_in(picture)))

    def report(self) -> CrashReport:
        """When all have been judged."""
        return CrashReport(self._undisturbed.value, tuple(self._rounds))


def rounds(env: Environment) -> Generator[Environment, Picture, CrashReport]:
    """The environments to run the scenario in, one after the other: the first is undisturbed, each other one crashes at the
    next of the points that the first one passed. Is sent what came out of each; returns the report."""
    kind = env.url.partition(":")[0]
    if kind not in ("memory", "sqlite"):
        raise ConfigurationError(
            f"crash_everywhere needs an empty database for each run: in memory or SQLite, not {kind}"
        )
    with tempfile.TemporaryDirectory(prefix="onward-crashes-") as directory:
        urls = (None if kind == "memory" else f"sqlite:///{directory}/{number}.db" for number in itertools.count())
        another = env._another(next(urls))
        another._faults.log = points = list[str]()
        undisturbed = yield another
        comparison = Comparison(undisturbed, list(points))
        for number, point in enumerate(comparison.points, 1):
            another = env._another(next(urls))
            another.crash_at("*", number=number)
            comparison.judge(number, point, (yield another))
    return comparison.report()


class Result:
    """What a scenario returned or raised: ``with result.caught(): result.value = …``."""

    def __init__(self) -> None:
        self.value: Any = None
        self.error: Exception | None = None

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Keep an error as part of what came out, unless it says that the test cannot go on."""
        try:
            yield
        except (Deadlock, OutOfPatience, NonDeterminismError):
            raise
        except Exception as error:
            self.error = error


async def crash_everywhere(
    env: Environment, scenario: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> CrashReport:
    """See `Environment.crash_everywhere`."""
    play = rounds(env)
    another = next(play)
    while True:
        result = Result()
        try:
            store = await another._store()
            with result.caught():
                if isinstance(scenario, (Workflow, BoundWorkflow)):
                    result.value = await another.run(scenario, *args, **kwargs)
                else:
                    result.value = await scenario(another)
            picture = await Picture.take(store, result.value, result.error, another.calls())
        finally:
            await another.close()
        try:
            another = play.send(picture)
        except StopIteration as end:
            report: CrashReport = end.value
            return report

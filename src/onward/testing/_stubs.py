"""One stub: what a step (or a child workflow) answers in place of its own body, and with what it was called."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeGuard

from onward.codec import ValueCodec
from onward.errors import ConfigurationError
from onward.retry import Duration, seconds

if TYPE_CHECKING:
    from onward.testing._doubles import StepCall


class _Nothing:
    """No value was given."""

    def __repr__(self) -> str:
        return "…"


NOTHING: Any = _Nothing()


class Stub:
    """What takes the place of a step's body; made by `Environment.stub`. It ends with the environment, with `remove()`, or
    with the block: ``with env.stub(charge, returns="ok") as stub:``.

    Attributes:
        name: the step's or workflow's name.
        calls: every try of the step, in order.
        runs: of a stubbed workflow: the arguments of each run, by parameter name.
    """

    def __init__(
        self,
        name: str,
        target: Callable[..., Any],
        result: ValueCodec,
        removed: Callable[[Stub], None],
        *,
        is_of_step: bool = True,
        returns: Any = NOTHING,
        raises: BaseException | type[BaseException] | None = None,
        side_effect: Callable[..., Any] | Iterable[Any] | None = None,
        takes: Duration = 0.0,
    ) -> None:
        given = [returns is not NOTHING, raises is not None, side_effect is not None]
        if sum(given) > 1:
            raise ConfigurationError(
                f"the stub of {name!r} takes one of returns=, raises= and side_effect=, not several"
            )
        if raises is not None and not _is_error(raises):
            raise ConfigurationError(f"raises= of the stub of {name!r} takes an exception or its class, not {raises!r}")
        self.name = name
        self.target = target
        self.is_of_step = is_of_step
        self.takes_s = seconds(takes, "takes")
        self.calls: list[StepCall] = []
        self.runs: list[dict[str, Any]] = []
        self._result = result
        self._removed = removed
        self._returns = None if returns is NOTHING else returns
        self._raises = raises
        self._call = side_effect if callable(side_effect) else None
        self._answers: tuple[Any, ...] | None = None
        if side_effect is not None and self._call is None:
            self._answers = tuple(_answers_of(name, side_effect))
        for value in self._answers if self._answers is not None else [] if any(given[1:]) else [self._returns]:
            if not _is_error(value):
                result.encode(value)  # raises CodecError now, where a real result of this kind would fail the workflow
        self._left = self._fresh_answers()

    def _fresh_answers(self) -> Iterator[Any]:
        return iter(self._answers or ())

    def afresh(self, removed: Callable[[Stub], None]) -> Stub:
        """A stub of the same kind that nobody has called."""
        other = copy.copy(self)
        other._removed, other.calls, other.runs = removed, [], []
        other._left = other._fresh_answers()
        return other

    def answer(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The next answer: a result, an awaitable of one, or an error that is raised."""
        if self._call is not None:
            return self._call(*args, **kwargs)
        value = self._raises if self._raises is not None else self._returns
        if self._answers is not None:
            value = next(self._left, NOTHING)
            if value is NOTHING:
                raise AssertionError(
                    f"the stub of {self.name!r} has no answer left: it was given {len(self._answers)}, and is called once more"
                )
        if _is_error(value):
            raise value
        return value

    def remove(self) -> None:
        """End it: the real body runs again."""
        self._removed(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"<stub of {self.name!r}, called {len(self.calls) + len(self.runs)} times>"


def _is_error(value: object) -> TypeGuard[BaseException | type[BaseException]]:
    return isinstance(value, BaseException) or (isinstance(value, type) and issubclass(value, BaseException))


def _answers_of(name: str, side_effect: Any) -> Iterable[Any]:
    if isinstance(side_effect, (str, bytes)) or not isinstance(side_effect, Iterable):
        raise ConfigurationError(
            f"side_effect= of the stub of {name!r} takes a function, or several answers (results and errors), not "
            f"{side_effect!r}"
        )
    if inspect.isgenerator(side_effect):
        raise ConfigurationError(f"side_effect= of the stub of {name!r}: make a list of the generator")
    return side_effect

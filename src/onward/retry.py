"""When to try again: the `Retry` policy of steps and workflows, and `RetryLater`, which user code raises.

Pure arithmetic, called by the engine's runner; it knows no clock (delays are returned, never slept) and draws its jitter
from a generator that the caller injects.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

from onward.errors import ConfigurationError, OnwardError

Duration: TypeAlias = float | timedelta
"""Seconds as a float (or int), or a `datetime.timedelta`."""


def seconds(value: Duration, what: str = "duration") -> float:
    """Return a duration in seconds; refuse what is negative, NaN, infinite or no duration at all."""
    if isinstance(value, timedelta):
        result = value.total_seconds()
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        result = float(value)
    else:
        raise ConfigurationError(f"{what} must be seconds or a timedelta, not {value!r}")
    if not 0 <= result < float("inf"):
        raise ConfigurationError(f"{what} must be zero or more and finite, not {value!r}")
    return result


@dataclass(frozen=True, slots=True)
class Retry:
    """How often, how late and on which errors something is tried again.

    Args:
        tries: tries in all, the first included (default 3; a step without a policy has 1).
        delay: wait before the second try; seconds or timedelta (default 1).
        factor: each further wait is this many times longer (default 2).
        max_delay: no wait is longer (default 1 hour).
        jitter: the share of a wait that is random: 0.1 (the default) gives 90 % to 100 % of it, so that many
            failures of one cause do not return in one instant.
        retry_on: only errors of these classes are tried again (default: every `Exception`).
        give_up_on: errors of these classes are not, even where `retry_on` has them.

    >>> [Retry(tries=4, delay=1, jitter=0).delay_before(n) for n in (2, 3, 4)]
    [1.0, 2.0, 4.0]
    """

    tries: int = 3
    delay: Duration = 1.0
    factor: float = 2.0
    max_delay: Duration = 3600.0
    jitter: float = 0.1
    retry_on: tuple[type[Exception], ...] = (Exception,)
    give_up_on: tuple[type[Exception], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.tries, int) or isinstance(self.tries, bool) or self.tries < 1:
            raise ConfigurationError(f"Retry(tries=) must be a whole number of at least 1, not {self.tries!r}")
        if not self.factor >= 1:
            raise ConfigurationError(f"Retry(factor=) must be at least 1, not {self.factor!r}")
        if not 0 <= self.jitter <= 1:
            raise ConfigurationError(f"Retry(jitter=) must lie between 0 and 1, not {self.jitter!r}")
        seconds(self.delay, "Retry(delay=)")
        seconds(self.max_delay, "Retry(max_delay=)")
        for name in ("retry_on", "give_up_on"):
            object.__setattr__(self, name, exception_classes(getattr(self, name), f"Retry({name}=)"))

    def wants(self, error: BaseException) -> bool:
        """Whether this error is one to try again."""
        return isinstance(error, self.retry_on) and not isinstance(error, self.give_up_on)

    def delay_before(self, try_number: int, rng: random.Random | None = None) -> float:
        """Seconds to wait before try `try_number` (2 is the first that waits)."""
        longest = seconds(self.max_delay)
        try:
            wait: float = min(longest, seconds(self.delay) * self.factor ** (try_number - 2))
        except OverflowError:
            wait = longest
        return wait if rng is None else wait * (1 - self.jitter * rng.random())


def exception_classes(value: object, what: str) -> tuple[type[Exception], ...]:
    """One exception class or several as a tuple; refuse anything else."""
    classes = (value,) if isinstance(value, type) else tuple(value) if isinstance(value, Iterable) else None
    if classes is None or not all(isinstance(cls, type) and issubclass(cls, Exception) for cls in classes):
        raise ConfigurationError(f"{what} takes exception classes, not {value!r}")
    return classes


NO_RETRY = Retry(tries=1)
"""The policy of a step that names none."""


def workflow_backoff(attempt: int) -> float:
    """Seconds before a workflow's next attempt after `attempt` failed ones: min(30, 2**n) minutes."""
    return 60.0 * min(30.0, 2.0 ** min(attempt, 10))


class RetryLater(OnwardError):
    """Raise this in a step to put that step off without spending a try.

    Args:
        after: wait this long, seconds or timedelta.
        until: or wait until this moment (timezone-aware).

    >>> raise RetryLater(after=30)
    Traceback (most recent call last):
    onward.retry.RetryLater: again after 30 s
    """

    def __init__(self, *, after: Duration | None = None, until: datetime | None = None) -> None:
        if (after is None) == (until is None):
            raise ConfigurationError("RetryLater takes either after= or until=")
        if until is not None and until.tzinfo is None:
            raise ConfigurationError(f"RetryLater(until=) needs a timezone-aware datetime, not {until!r}")
        self.after_s = None if after is None else seconds(after, "RetryLater(after=)")
        self.until = until
        super().__init__(f"again after {self.after_s:g} s" if self.after_s is not None else f"again at {until}")

"""The time of a database that has no clock of its own: the machine's, made never to fall.

Every store that is not a server builds one `SteadyClock` and asks it wherever the protocol says "the database's clock". It is
called from the event loop and from the store's threads.
"""

from __future__ import annotations

from time import time_ns

from onward._store.base import Clock


class SteadyClock:
    """A clock, by default the machine's, that repeats its last value instead of falling (a machine's clock may be set back)."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock
        self._last = 0

    def now_us(self) -> int:
        """Microseconds since 1970 UTC, never less than what any thread was given before this call."""
        now = time_ns() // 1000 if self._clock is None else self._clock.now_us()
        if now <= self._last:
            return self._last
        self._last = now
        return now

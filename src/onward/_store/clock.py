"""The time of a database that has no clock of its own: the machine's, made never to fall.

Every store that is not a server builds one `SteadyClock` and asks it wherever the protocol says "the database's clock". It is
called from the event loop and from the store's threads.
"""

from __future__ import annotations

import threading
import time

from onward._store.base import Clock


class MachineClock:
    """The machine's clock."""

    def now_us(self) -> int:
        """Microseconds since 1970 UTC."""
        return time.time_ns() // 1000


class SteadyClock:
    """A clock that repeats its last value instead of falling (the machine's clock may be set back)."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock: Clock = clock or MachineClock()
        self._last = 0
        self._lock = threading.Lock()

    def now_us(self) -> int:
        """Microseconds since 1970 UTC, never less than what any thread has seen before."""
        with self._lock:
            self._last = max(self._last, self._clock.now_us())
            return self._last

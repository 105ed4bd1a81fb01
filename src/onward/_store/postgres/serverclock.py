"""The database's clock as this process knows it between two answers: a lower bound, so that nothing is ever early.

Each answer that carries the server's `clock_timestamp()` sets it; in between, this machine's monotonic clock carries it on.
This machine's wall clock is never asked once the server has answered. Tests inject a clock, which then stands for the server's.
"""

from __future__ import annotations

import time

from onward._store.base import Clock
from onward._store.clock import SteadyClock


class ServerClock:
    """Used by the event loop and by the lease thread."""

    def __init__(self, injected: Clock | None = None) -> None:
        self.injected = None if injected is None else SteadyClock(injected)
        self._ahead_us: int | None = None
        """Server's clock minus this machine's monotonic one, at the last receipt."""
        self._last = 0

    def observe(self, server_us: int) -> None:
        """The server's clock, as read some time before now."""
        self._ahead_us = server_us - time.monotonic_ns() // 1000

    def now_us(self) -> int:
        """A lower bound of the server's clock, never falling."""
        if self.injected is not None:
            return self.injected.now_us()
        ahead = self._ahead_us
        if ahead is None:  # not open yet: a guess, which must not outlive the first answer
            return time.time_ns() // 1000
        now = ahead + time.monotonic_ns() // 1000
        if now <= self._last:
            return self._last
        self._last = now
        return now

    def sql(self) -> str:
        """The expression that stands for "now" in a statement: one value a statement, fit for an index condition."""
        if self.injected is None:
            return "(SELECT clock_timestamp())"
        us = self.injected.now_us()
        return f"(timestamptz 'epoch' + {us // 1_000_000} * interval '1 second' + {us % 1_000_000} * interval '1 microsecond')"

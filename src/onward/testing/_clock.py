"""Time that stands still until somebody moves it, and the bodies that sleep in it.

One `LeapingClock` is the clock of every store object of an environment, so that the database, the workers and the clients
agree on the time. `Alarms` is for stubs that take a while: their bodies sleep in this time, not in that of the machine.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from datetime import datetime

from onward.info import microseconds

SECOND_US = 1_000_000


class LeapingClock:
    """The clock of an environment; called from any thread.

    Args:
        start: the time at first (timezone-aware); default the machine's, without the fraction of a second.
    """

    def __init__(self, start: datetime | None = None) -> None:
        self._lock = threading.Lock()
        self._now_us = time.time_ns() // 1000 // SECOND_US * SECOND_US if start is None else microseconds(start)

    def now_us(self) -> int:
        """Microseconds since 1970 UTC."""
        with self._lock:
            return self._now_us

    def move_to(self, at_us: int) -> None:
        """Let this be the time now; it never falls."""
        with self._lock:
            self._now_us = max(self._now_us, at_us)


class Alarms:
    """The bodies that sleep in the environment's time.

    Args:
        clock: that time.
        changed: called when one of them falls asleep.
    """

    def __init__(self, clock: LeapingClock, changed: Callable[[], None]) -> None:
        self._clock = clock
        self._changed = changed
        self._sleepers: dict[asyncio.Future[None], tuple[int, tuple[str, str]]] = {}

    @property
    def next_at(self) -> int | None:
        """When the first of them wakes up."""
        return min((at for at, _ in self._sleepers.values()), default=None)

    def asleep(self) -> list[tuple[str, str]]:
        """(workflow id, step key) of each that sleeps now."""
        return [who for future, (_, who) in self._sleepers.items() if not future.done()]

    async def sleep(self, seconds: float, who: tuple[str, str]) -> None:
        """Sleep until so many seconds of the environment's time have passed."""
        if seconds <= 0:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers[future] = (self._clock.now_us() + round(seconds * SECOND_US), who)
        self._changed()
        try:
            await future
        finally:
            del self._sleepers[future]

    def ring(self) -> None:
        """Wake those whose time has come."""
        now = self._clock.now_us()
        for future, (at, _) in self._sleepers.items():
            if at <= now and not future.done():
                future.set_result(None)

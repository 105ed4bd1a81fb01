"""The wall clock as an object, so that tests can move time; the engine never calls `time.time` elsewhere."""

from __future__ import annotations

import time


class SystemClock:
    """The machine's clock."""

    def now_us(self) -> int:
        """Microseconds since 1970 UTC."""
        return time.time_ns() // 1000

"""One callback of `Store.subscribe`, brought to its loop from any thread and coalesced."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable


class Subscriber:
    """One callback on one loop; many publications before it runs are one call."""

    def __init__(self, loop: asyncio.AbstractEventLoop, notify: Callable[[], None]) -> None:
        self._loop = loop
        self._notify = notify
        self._is_due = False
        self._lock = threading.Lock()
        self.is_over = False

    def signal(self) -> None:
        """Something was committed; from any thread."""
        with self._lock:
            if self._is_due or self.is_over:
                return
            self._is_due = True
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(self._run)

    def _run(self) -> None:
        with self._lock:
            self._is_due = False
        if not self.is_over:
            self._notify()

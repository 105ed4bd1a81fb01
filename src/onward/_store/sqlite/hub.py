"""Tells subscribers that something was committed: at once for commits of this process, within 20 ms for those of others.

`publish` is called by every connection of this process right after a commit. While anyone is subscribed, one thread looks
every 14 ms (every 3 ms for a while after a commit) whether the write-ahead log has changed, and if so asks `PRAGMA
data_version` on a connection of its own: the number changes when any other connection, in any process, has committed. A
hint only; nothing depends on it but latency.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from onward._store.sqlite.connection import connect
from onward._store.subscriber import Subscriber

POLL_S = 0.014
BUSY_POLL_S = 0.003
BUSY_S = 0.5
"""For so long after a commit, the next one is expected soon and looked for more often."""
ASK_EACH = 10
"""Looks at the log file between two questions to SQLite: a look costs a tenth, but two commits within one tick of the file
system's clock may look alike."""
_log = logging.getLogger("onward.store")


class Hub:
    """The subscribers of one file in this process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log = f"{path}-wal"
        self._lock = threading.Lock()
        self._subscribers: tuple[Subscriber, ...] = ()
        self._stop: threading.Event | None = None
        self._busy_until = 0.0

    def publish(self) -> None:
        """Tell every subscriber; called from any thread, after the commit."""
        self._busy_until = time.monotonic() + BUSY_S
        for subscriber in self._subscribers:
            subscriber.signal()

    def subscribe(self, loop: asyncio.AbstractEventLoop, notify: Callable[[], None]) -> Callable[[], None]:
        """Add a subscriber; the first one starts the watching thread, the end of the last one stops it."""
        subscriber = Subscriber(loop, notify)
        with self._lock:
            self._subscribers = (*self._subscribers, subscriber)
            if self._stop is None:
                self._stop = threading.Event()
                threading.Thread(target=self._watch, args=(self._stop,), name="onward-watch", daemon=True).start()

        def unsubscribe() -> None:
            subscriber.is_over = True
            with self._lock:
                self._subscribers = tuple(one for one in self._subscribers if one is not subscriber)
                if not self._subscribers and self._stop is not None:
                    self._stop.set()
                    self._stop = None

        return unsubscribe

    def _log_state(self) -> tuple[int, int] | None:
        """Size and time of the log; None where they cannot be trusted. Never opens it: closing a handle drops locks."""
        if sys.platform == "win32":
            return None
        try:
            found = os.stat(self._log)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size

    def _watch(self, stop: threading.Event) -> None:
        try:
            conn = connect(self._path, read_only=True)
        except sqlite3.Error as error:
            _log.warning(
                "commits of other processes are not noticed", extra={"database": str(self._path), "error": str(error)}
            )
            return
        with contextlib.closing(conn):
            cursor = conn.cursor()
            last: int | None = None
            seen: tuple[int, int] | None = None
            asks = 0
            for tick in itertools.count():
                is_busy = time.monotonic() < self._busy_until
                time.sleep(BUSY_POLL_S if is_busy else POLL_S)  # half the CPU time of stop.wait(...)
                if stop.is_set():
                    return
                now = self._log_state()
                if now is None or now != seen or tick % ASK_EACH == 0:
                    asks = 2  # again at the next look: a commit may be in the log and not yet in force
                seen = now
                if not asks:
                    continue
                asks -= 1
                try:
                    version: int = cursor.execute("PRAGMA data_version").fetchone()[0]
                except sqlite3.Error:  # busy in a recovery, or the file is gone: the writers will say so
                    continue
                if version != last:  # the first time, too: what was committed before is told by nobody else
                    last = version
                    self.publish()

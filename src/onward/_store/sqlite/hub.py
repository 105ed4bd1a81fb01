"""Tells subscribers that something was committed: at once for commits of this process, within 20 ms for those of others.

`publish` is called by every connection of this process right after a commit. While anyone is subscribed, one thread waits
for changes of the write-ahead log (changes.py), and then asks `PRAGMA data_version` on a connection of its own: the number
changes when any other connection, in any process, has committed. While this process commits all the time, the answer is
always yes; so the thread has a writer ask on its connection then, whose own commits do not count, and nobody is told of
what he knows. A hint only; nothing depends on it but latency.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

from onward._store.sqlite.changes import Changes, watch
from onward._store.sqlite.connection import Writer, connect
from onward._store.subscriber import Subscriber

PAUSES_S = (0.0005, 0.001, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064)
"""Between the questions that follow a change of the log."""
BUSY_PAUSE_S = 0.01
"""Between the questions of a process that commits all the time."""
QUIET_S = 1.0
"""Between the questions while nothing changes."""
_log = logging.getLogger("onward.store")


class Hub:
    """The subscribers of one file in this process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log = path.with_name(f"{path.name}-wal")
        self._lock = threading.Lock()
        self._subscribers: tuple[Subscriber, ...] = ()
        self._stop: threading.Event | None = None
        self._changes: Changes | None = None
        self._own_commits = 0
        self._asks_writer = False
        """The next writer that commits is to look for commits of others."""

    def publish(self, conn: sqlite3.Connection | None = None, *, is_news: bool = True) -> None:
        """Tell every subscriber; called from any thread, after the commit, `conn` being its own. Entries alone are no news:
        they make nothing due and end nothing."""
        self._own_commits += 1
        if is_news:
            self._tell()
        if self._asks_writer and type(conn) is Writer:
            self._asks_writer = False
            version = _version(conn)
            if version is not None and version != conn.seen_version:
                conn.seen_version = version
                self._tell()

    def _tell(self) -> None:
        for subscriber in self._subscribers:
            subscriber.signal()

    def subscribe(self, loop: asyncio.AbstractEventLoop, notify: Callable[[], None]) -> Callable[[], None]:
        """Add a subscriber; the first one starts the watching thread, the end of the last one stops it."""
        subscriber = Subscriber(loop, notify)
        with self._lock:
            self._subscribers = (*self._subscribers, subscriber)
            if self._stop is None:
                self._stop, self._changes = threading.Event(), watch(self._log)
                threading.Thread(
                    target=self._watch, args=(self._stop, self._changes), name="onward-watch", daemon=True
                ).start()

        def unsubscribe() -> None:
            subscriber.is_over = True
            with self._lock:
                self._subscribers = tuple(one for one in self._subscribers if one is not subscriber)
                if not self._subscribers and self._stop is not None and self._changes is not None:
                    self._stop.set()
                    self._changes.interrupt()
                    self._stop = self._changes = None

        return unsubscribe

    def _watch(self, stop: threading.Event, changes: Changes) -> None:
        with contextlib.closing(changes):
            try:
                conn = connect(self._path, read_only=True)
            except sqlite3.Error as error:
                _log.warning(
                    "commits of other processes are not noticed",
                    extra={"database": str(self._path), "error": str(error)},
                )
                return
            with contextlib.closing(conn):
                last: int | None = None  # the first answer is told: nobody else tells what was committed before it
                pauses = iter(PAUSES_S)
                while not stop.is_set():
                    # What is seen in the log may not be in force yet: in between lies the commit's wait for the disk.
                    if changes.wait(next(pauses, QUIET_S)):
                        pauses = iter(PAUSES_S)
                    own_commits, self._own_commits = self._own_commits, 0
                    if own_commits > 1:  # the log is ours to a good part, and every commit of ours is told anyway
                        self._asks_writer = True
                        stop.wait(BUSY_PAUSE_S)
                        if not self._asks_writer:
                            continue
                        self._asks_writer = False
                    version = _version(conn)
                    if version is not None and version != last:
                        last = version
                        self._tell()


def _version(conn: sqlite3.Connection) -> int | None:
    try:
        version: int = conn.execute("PRAGMA data_version").fetchone()[0]
    except sqlite3.Error:  # busy in a recovery, or the file is gone: the writers will say so
        return None
    return version

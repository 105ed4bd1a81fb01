"""Waits until the write-ahead log of a database has been written to, by any process.

On Linux the kernel says so (inotify on the folder: the log itself comes and goes), which costs nothing while nothing happens
and has no delay. Elsewhere, or where the kernel gives no watch, the log's size and time are looked at. Used by the watching
thread of hub.py. It never opens the log: closing a handle of it would drop SQLite's locks.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Protocol

LOOK_S = 0.014
"""Between two looks where the kernel does not tell."""
SPACING_S = 0.001
"""Between two changes that are told: a busy database changes thousands of times a second."""

_IN_MODIFY, _IN_CREATE = 0x2, 0x100
_EVENT = struct.Struct("iIII")


class Changes(Protocol):
    """A watch on one log, for one thread."""

    def wait(self, timeout_s: float) -> bool:
        """Wait for a change, at most for so long; whether there may have been one."""
        ...

    def interrupt(self) -> None:
        """End a wait now; from any thread, also after `close`."""
        ...

    def close(self) -> None:
        """End the watch."""
        ...


class KernelChanges:
    """Told by inotify. Raises OSError where there is no inotify, or no watch left."""

    def __init__(self, log: Path) -> None:
        self._name = os.fsencode(log.name)
        self._lock = threading.Lock()
        self._is_closed = False
        self._told_at = 0.0
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self._events = _watch_folder(log.parent)
        except BaseException:
            os.close(self._bell)
            raise
        self._poll = select.poll()
        self._poll.register(self._bell, select.POLLIN)
        self._poll.register(self._events, select.POLLIN)

    def wait(self, timeout_s: float) -> bool:
        """As Changes.wait."""
        spacing_s = self._told_at + SPACING_S - time.monotonic()
        if spacing_s > 0:
            time.sleep(spacing_s)
        if self._events not in [fd for fd, _ in self._poll.poll(timeout_s * 1000)]:
            return False
        self._told_at = time.monotonic()
        return self._names_the_log(os.read(self._events, 65536))

    def _names_the_log(self, events: bytes) -> bool:
        at = 0
        while at < len(events):
            length = _EVENT.unpack_from(events, at)[3]
            at += _EVENT.size + length
            if length == 0 or events[at - length : at].rstrip(b"\0") == self._name:  # no name: events were lost
                return True
        return False

    def interrupt(self) -> None:
        """As Changes.interrupt."""
        with self._lock:
            if not self._is_closed:
                os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        """End the watch."""
        with self._lock:
            self._is_closed = True
            os.close(self._events)
            os.close(self._bell)


def _watch_folder(folder: Path) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "inotify_init1 failed")
    if libc.inotify_add_watch(fd, os.fsencode(folder), _IN_MODIFY | _IN_CREATE) < 0:
        error = ctypes.get_errno()
        os.close(fd)
        raise OSError(error, "inotify_add_watch failed")
    return fd


class LookedAtChanges:
    """Told by size and time of the log; always "perhaps" where those cannot be trusted."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._seen: tuple[int, int] | None = None
        self._looks = 0

    def wait(self, timeout_s: float) -> bool:
        """As Changes.wait. Two commits within one tick of the file system's clock may look alike: some looks just say yes."""
        time.sleep(min(timeout_s, LOOK_S))
        self._looks += 1
        now = self._state()
        is_changed = now is None or now != self._seen or self._looks % 10 == 0
        self._seen = now
        return is_changed

    def _state(self) -> tuple[int, int] | None:
        if sys.platform == "win32":
            return None
        try:
            found = self._log.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size

    def interrupt(self) -> None:
        """No wait is long."""

    def close(self) -> None:
        """Nothing to end."""


def watch(log: Path) -> Changes:
    """The best watch that this machine gives."""
    if sys.platform == "linux":
        try:
            return KernelChanges(log)
        except (OSError, AttributeError):  # no watch left, or a kernel or libc without inotify
            return LookedAtChanges(log)
    return LookedAtChanges(log)

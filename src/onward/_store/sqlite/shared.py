"""What all connections of this process to one file share: the mutex of its writers and the hub of its commits.

SQLite has one write lock a file, and waits for it by polling; whoever polls less eagerly starves. Inside one process we need
not poll: `FairMutex` hands the turn on in order of arrival, so that the lease thread gets its turn between two flushes.
A forked child starts with none of it: the parent's threads do not exist there.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from pathlib import Path
from types import TracebackType
from weakref import WeakValueDictionary

from onward._store.sqlite.hub import Hub


class FairMutex:
    """A lock that is handed over in order of arrival. Not reentrant."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._is_held = False
        self._waiting: deque[threading.Lock] = deque()

    def __enter__(self) -> None:
        with self._guard:
            if not self._is_held:
                self._is_held = True
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        turn.acquire()

    def enter_now(self) -> bool:
        """Enter, if that needs no waiting; leave by `__exit__`."""
        with self._guard:
            is_free = not self._is_held
            self._is_held = True
            return is_free

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._is_held = False


class SharedFile:
    """The mutex and the hub of one database file in this process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mutex = FairMutex()
        self.hub = Hub(path)


_files: WeakValueDictionary[Path, SharedFile] = WeakValueDictionary()
_files_lock = threading.Lock()


def shared_file(path: Path) -> SharedFile:
    """The one SharedFile of this path; it lives as long as someone holds it."""
    with _files_lock:
        found = _files.get(path)
        if found is None:
            found = _files[path] = SharedFile(path)
        return found


def _forget_after_fork() -> None:
    global _files, _files_lock
    _files = WeakValueDictionary()
    _files_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)

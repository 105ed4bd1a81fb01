"""A worker's proof of life: a kernel lock (`flock`) on a file of its own beside the database, `<file>-workers/<id>.lock`.

The kernel frees it when the process dies, however it dies; pids prove nothing across containers or after reuse. The database
file itself is never locked here: closing any handle on it would drop SQLite's own locks. Where there is no `flock` (Windows)
nothing is proved, and only the lease counts.
"""

from __future__ import annotations

import contextlib
import os
import sys
import weakref
from pathlib import Path

if sys.platform != "win32":
    import fcntl

HAS_FLOCK = sys.platform != "win32"


def lock_directory(database: Path) -> Path:
    """Where the lock files of a database's workers are."""
    return database.with_name(database.name + "-workers")


def is_held(path: Path) -> bool | None:
    """Whether somebody holds this lock file; None if there is none, or it cannot be asked.

    Asked by a shared lock for an instant: whoever locks a file for the first time in that very instant is turned away, so
    never ask for one that is just being made.
    """
    if sys.platform == "win32":
        return None
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(fd)
    return False


class LockFile:
    """One lock file; `path` is kept open while it is held."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd
        _held.add(self)

    @classmethod
    def try_lock(cls, path: Path, *, create: bool) -> LockFile | None:
        """Lock the file, or None if another process (or handle) has it. Raises FileNotFoundError unless `create`."""
        if sys.platform == "win32":
            return None
        while True:
            fd = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o644)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(fd)
                if isinstance(error, BlockingIOError):
                    return None
                raise
            with contextlib.suppress(FileNotFoundError):
                if os.fstat(fd).st_ino == os.stat(path).st_ino:
                    return cls(path, fd)
            os.close(fd)  # somebody tidied the file away between our open and our lock

    def release(self, *, unlink: bool) -> None:
        """Give the lock up; `unlink` first, so that nobody ever locks a file that is about to go."""
        if self._fd < 0:
            return
        if unlink:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        self.drop()

    def drop(self) -> None:
        """Close the handle; the file stays, and the lock with it while another process shares the handle."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


_held: weakref.WeakSet[LockFile] = weakref.WeakSet()


def _drop_in_child() -> None:
    """A forked child shares its parent's handles: its mere life must not prove the parent's."""
    for lock in list(_held):
        lock.drop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_in_child)

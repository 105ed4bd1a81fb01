"""Opens connections to one file, and refuses files that SQLite cannot keep safe.

Every connection of the store comes from `connect`. Only `connect(create=True)` may make a new file.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from pathlib import Path
from typing import TypeVar

from onward._store.scripts import Script, run
from onward.errors import ConfigurationError

T = TypeVar("T")

MINIMUM_VERSION = (3, 37, 0)
"""STRICT tables came with 3.37; everything else used here is older."""

_NETWORK = frozenset({
    "nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "ncpfs", "afs", "coda", "9p", "ceph", "lustre", "glusterfs", "beegfs",
    "gpfs", "gfs2", "ocfs2", "davfs", "fuse.sshfs", "fuse.s3fs", "fuse.glusterfs", "fuse.rclone", "fuse.davfs2",
    "fuse.gcsfuse", "fuse.smbnetfs", "fuse.ceph", "fuse.goofys",
})  # fmt: skip


class Writer(sqlite3.Connection):
    """A connection of the store that commits.

    Attributes:
        seen_version: the `PRAGMA data_version` of which the subscribers were told (hub.py).
    """

    seen_version: int | None = None


def check_version(version: tuple[int, int, int] = sqlite3.sqlite_version_info) -> None:
    """Raise ConfigurationError if Python's SQLite is too old."""
    if version < MINIMUM_VERSION:
        have, need = (".".join(map(str, v)) for v in (version, MINIMUM_VERSION))
        raise ConfigurationError(
            f"this Python uses SQLite {have}, but Onward needs {need} or newer; use a newer Python build "
            "(its sqlite3 module brings the library along) or upgrade the system's SQLite"
        )


def check_file_system(path: Path, mounts: str | None = None) -> None:
    """Raise ConfigurationError if the file lies on a network file system, where SQLite's locks do not hold.

    Where it lies is not known everywhere, see `file_system`.
    """
    kind, point = file_system(path, mounts)
    if kind in _NETWORK:
        raise ConfigurationError(
            f"{path} lies on a network file system ({kind}, mounted at {point}), where SQLite's locks do not protect the data; "
            "put the file on a local disk, or use PostgreSQL to share workflows between machines"
        )


def file_system(path: Path, mounts: str | None = None) -> tuple[str, str]:
    """The kind of the file system that the file lies on, and where that is mounted.

    `mounts` is the text of /proc/mounts; where there is none (macOS, Windows) both are empty.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return "", ""
    best, kind = "", ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = fields[1].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
        inside = path == Path(point) or Path(point) in path.parents
        if inside and len(point) >= len(best):
            best, kind = point, fields[2]
    return kind, best


def check_place(path: Path, *, create: bool) -> None:
    """Raise ConfigurationError if there is no such directory, or a directory where the file should be."""
    if path.is_dir():
        raise ConfigurationError(f"{path} is a directory; name a file in it, for instance sqlite:///{path}/onward.db")
    if create and not path.parent.is_dir():
        raise ConfigurationError(f"the directory {path.parent} does not exist; create it, or name another file")


def connect(
    path: Path,
    *,
    create: bool = False,
    read_only: bool = False,
    busy_s: float = 2.0,
    factory: type[sqlite3.Connection] = sqlite3.Connection,
) -> sqlite3.Connection:
    """A connection in autocommit mode; raises sqlite3.Error (a missing file is SQLITE_CANTOPEN unless `create`)."""
    uri = f"{path.as_uri()}?mode={'rwc' if create else 'rw'}"
    conn = sqlite3.connect(
        uri,
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=busy_s,
        cached_statements=256,
        factory=factory,
    )
    try:
        conn.execute("PRAGMA synchronous = FULL")
        conn.execute("PRAGMA temp_store = MEMORY")
        if sys.platform == "darwin":  # its fsync does not reach the disk otherwise
            conn.execute("PRAGMA fullfsync = ON")
            conn.execute("PRAGMA checkpoint_fullfsync = ON")
        if read_only:
            # Not mode=ro: a reader of a WAL file has to write to the shared-memory file beside it.
            conn.execute("PRAGMA query_only = ON")
    except BaseException:
        conn.close()
        raise
    return conn


def run_on(conn: sqlite3.Connection, script: Script[T]) -> T:
    """Carry out a script on one of the store's own connections."""
    return run(script, lambda sql, parameters: conn.execute(sql, parameters).fetchall())


def absolute(path: str | os.PathLike[str]) -> Path:
    """The one name of a file for all who open it: absolute, symbolic links resolved."""
    return Path(path).expanduser().resolve()

"""A look at one SQLite file for `onward doctor`: the library, the place, the schema, durability, integrity, room.

Reads only, by a connection of its own, and goes on as far as the file lets it; what fails is a finding. The work itself is
read by facts.py and judged by the checks that all databases share.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from onward._store.checks import daily_bytes, process_count
from onward._store.diagnosis import Diagnosis, Finding, Level, Work
from onward._store.quantities import counted, size, span
from onward._store.schema import pending_migrations
from onward._store.sqlite.connection import check_file_system, check_place, check_version, connect, file_system
from onward._store.sqlite.database import Database
from onward._store.sqlite.facts import file_pages, read_work, within
from onward._store.sqlite.faults import classify
from onward._store.sqlite.locks import is_held, lock_directory
from onward._store.sqlite.migrations import applied_migrations, check_exists, known_migrations, own_objects, url_of
from onward._store.sqlite.transfer import read_moves
from onward._store.transfer import move_findings
from onward.errors import ConfigurationError, FatalStoreError, SchemaError

WAL_RESET_FIXED = ((3, 51, 3), (3, 50, 7), (3, 44, 6))
"""The first corrected version of each line; every line above the first is corrected."""
LARGE_WAL = 256_000_000
LOW_DISK, NO_DISK = 1_000_000_000, 100_000_000
WEEK = 7
QUICK_CHECK_S = 30.0
"""How long `PRAGMA quick_check` may take, unless the look is to be thorough."""
LEFT_OVER_S = 60.0
"""A lock file without a worker's row is left over once it is older; a younger one may be in the making."""
_VOLATILE = frozenset({"tmpfs", "ramfs"})


def diagnose(database: Database, *, thorough: bool) -> Diagnosis:
    """Look at the file. Raises ConfigurationError where there is none."""
    check_place(database.path, create=False)
    check_exists(database)
    found = [*_place(database.path), *_permissions(database.path)]
    work: Work | None = None
    try:
        check_version()
        with contextlib.closing(connect(database.path, read_only=True)) as conn:
            schema = [*_schema(conn, database)]
            found += [*schema, *_durability(conn, database.path)]
            if not any(finding.is_unusable for finding in schema):
                found += move_findings(read_moves(conn))
                work = read_work(conn, database, thorough=thorough)
            found += [*_integrity(conn, thorough=thorough), *_size(conn, database.path)]
    except ConfigurationError as error:
        found.append(Finding(check="sqlite", level="fail", text=str(error), is_unusable=True))
    except sqlite3.Error as error:
        found.append(_unreadable(error, database))
    found = [_library(0 if work is None else process_count(work)), *found, *_disk(database.path, work)]
    if work is not None:
        found += _lock_files(database.path, work)
    return Diagnosis(url=url_of(database), findings=tuple(found), work=work)


def has_wal_reset_bug(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> bool:
    """Whether two processes that write at once can, very rarely, damage the file with this version of SQLite."""
    newest = WAL_RESET_FIXED[0]
    return version < newest and not any(fixed <= version < (*fixed[:2], 1000) for fixed in WAL_RESET_FIXED)


def _library(processes: int) -> Finding:
    version = sqlite3.sqlite_version
    data = {"sqlite": version, "worker_processes": processes, "has_wal_reset_bug": has_wal_reset_bug()}
    if not has_wal_reset_bug():
        return Finding(check="sqlite", level="ok", text=f"SQLite {version}", data=data)
    if processes < 2:
        text = (
            f"SQLite {version}, fit for one process that writes ({counted(processes, 'worker process')} now); two of them, "
            "clients included, could meet its WAL-reset bug (below 3.51.3)"
        )
        return Finding(check="sqlite", level="ok", text=text, data=data)
    return Finding(
        check="sqlite",
        level="warn",
        text=f"SQLite {version} has the WAL-reset bug (below 3.51.3): two processes that write in the same instant can, very "
        f"rarely, damage the file; {processes} worker processes are on it now, and clients in other processes count too",
        cure="use a Python with SQLite 3.51.3 or newer, or let one process write: a client beside a Worker in it",
        data=data,
    )


def _place(path: Path) -> Iterator[Finding]:
    kind, point = file_system(path)
    data = {"path": str(path), "file_system": kind or None, "mounted_at": point or None}
    try:
        check_file_system(path)
    except ConfigurationError as error:
        yield Finding(check="file-system", level="fail", text=str(error), data=data, is_unusable=True)
        return
    if kind in _VOLATILE:
        yield Finding(
            check="file-system",
            level="warn",
            text=f"{path} lies in memory ({kind} on {point}): it is gone after a restart of the machine",
            cure="put the file on a disk",
            data=data,
        )
    elif kind == "overlay":
        yield Finding(
            check="file-system",
            level="warn",
            text=f"{path} lies in the container's own layer ({kind} on {point}), and goes with the container",
            cure="mount a volume, and put the file there",
            data=data,
        )
    else:
        yield Finding(check="file-system", level="ok", text=f"{path} on {kind or 'a file system not known'}", data=data)


def _permissions(path: Path) -> Iterator[Finding]:
    """What this user, or another, may do with the files."""
    files = [path, *(one for one in (_beside(path, "-wal"), _beside(path, "-shm")) if one.exists())]
    locks = lock_directory(path)
    places = [*files, path.parent, *([locks] if locks.is_dir() else [])]
    locked = [str(place) for place in places if not _may_write(place)]
    if locked:
        yield Finding(
            check="permissions",
            level="fail",
            text=f"this user cannot write to {', '.join(locked)}",
            cure="run as the user of the workers, or make the file, its directory and what lies beside it writable",
            data={"not_writable": locked},
        )
    owners = {one.stat().st_uid: _owner(one) for one in files}
    if len(owners) > 1:
        yield Finding(
            check="permissions",
            level="warn",
            text=f"the file and its log belong to several users: {', '.join(owners.values())}",
            cure="run every process on the file as one user (was something run with sudo?)",
            data={"owners": list(owners.values())},
        )
    is_open_to_all = bool(path.stat().st_mode & stat.S_IWOTH) and sys.platform != "win32"
    if is_open_to_all:
        yield Finding(
            check="permissions",
            level="warn",
            text=f"everybody on this machine may write to {path}",
            cure=f"chmod o-w {path}",
        )
    if not (locked or len(owners) > 1 or is_open_to_all):
        yield Finding(check="permissions", level="ok", text="the file, its directory and its log are writable")


def _schema(conn: sqlite3.Connection, database: Database) -> Iterator[Finding]:
    applied, known = applied_migrations(conn), known_migrations()
    version = max((one.number for one in applied), default=0)
    data = {"version": version, "known": len(known)}
    cure = f"run: onward migrate --url {url_of(database)}"
    try:
        pending = pending_migrations(known, applied, database=database.name)
    except SchemaError as error:
        yield Finding(check="schema", level="fail", text=str(error), data=data, is_unusable=True)
        return
    if pending:
        text = "has no Onward schema" if not applied else f"lacks migration {pending[0].number} ({pending[0].name})"
        yield Finding(
            check="schema", level="fail", text=f"{database.name} {text}", cure=cure, data=data, is_unusable=True
        )
        return
    there = {name for (name,) in conn.execute("SELECT name FROM sqlite_schema")}
    missing = {name: made for name, made in own_objects().items() if name not in there}
    if missing:
        is_table_missing = any(kind == "table" for kind, _ in missing.values())
        yield Finding(
            check="schema",
            level="fail",
            text=f"schema {version}, but somebody has removed {', '.join(f'{made[0]} {name}' for name, made in missing.items())}",
            cure="restore a backup"
            if is_table_missing
            else "make it again: " + "; ".join(sql for _, sql in missing.values()),
            data={**data, "missing": sorted(missing)},
            is_unusable=is_table_missing,
        )
    elif version > len(known):
        name = next(one.name for one in applied if one.number == version)
        text = f"schema {version} ({name}), made by a newer onward that lets this one go on"
        yield Finding(check="schema", level="ok", text=text, data=data)
    else:
        yield Finding(check="schema", level="ok", text=f"schema {version}, up to date", data=data)


def _durability(conn: sqlite3.Connection, path: Path) -> Iterator[Finding]:
    names = ("journal_mode", "synchronous", "fullfsync", "wal_autocheckpoint")
    values = {name: conn.execute(f"PRAGMA {name}").fetchone()[0] for name in names}
    if values["journal_mode"] != "wal":
        yield Finding(
            check="durability",
            level="warn",
            text=f"journal_mode is {values['journal_mode']!r}, not 'wal': readers and writers of {path} wait for each other",
            cure="the next worker or start sets it back; find out which program changes it",
            data=values,
        )
        return
    disk = f", fullfsync={'ON' if values['fullfsync'] else 'OFF'}" if sys.platform == "darwin" else ""
    synchronous = {0: "OFF", 1: "NORMAL", 2: "FULL", 3: "EXTRA"}.get(values["synchronous"], values["synchronous"])
    yield Finding(
        check="durability", level="ok", text=f"journal_mode=wal, synchronous={synchronous}{disk}: what is committed stays",
        data=values,
    )  # fmt: skip


def _integrity(conn: sqlite3.Connection, *, thorough: bool) -> Iterator[Finding]:
    check = "integrity_check" if thorough else "quick_check"
    began = time.monotonic()
    rows = within(conn, None if thorough else QUICK_CHECK_S, lambda: conn.execute(f"PRAGMA {check}(10)").fetchall())
    if rows is None:
        text = f"no damage found within {span(QUICK_CHECK_S)}, which did not suffice for the whole file: --full takes its time"
        yield Finding(check="integrity", level="ok", text=text, data={"method": check, "is_complete": False})
        return
    took = span(time.monotonic() - began)
    problems = [str(row[0]) for row in rows if row[0] != "ok"]
    data = {"method": check, "is_complete": True, "problems": problems}
    if not problems:
        text = f"no damage found by {check} ({took})"
        yield Finding(check="integrity", level="ok", text=text, data=data)
        return
    yield Finding(
        check="integrity",
        level="fail",
        text=f"the file is damaged: {'; '.join(problems[:3])}",
        cure="stop all workers; restore a backup, or save what can be saved: sqlite3 FILE .recover",
        data=data,
        is_unusable=True,
    )


def _size(conn: sqlite3.Connection, path: Path) -> Iterator[Finding]:
    used, free = file_pages(conn)
    wal = _beside(path, "-wal")
    wal_size = wal.stat().st_size if wal.exists() else 0
    data = {"file": path.stat().st_size, "wal": wal_size, "free_pages": free}
    text = f"file {size(data['file'])}, log {size(wal_size)}"
    if used and free > used / 2 and free > 100_000_000:
        text += f"; {size(free)} of the file are free and will be used again (VACUUM gives them back)"
    if wal_size <= LARGE_WAL:
        yield Finding(check="size", level="ok", text=text, data=data)
        return
    yield Finding(
        check="size",
        level="warn",
        text=f"{text}: the log cannot be folded into the file",
        cure="some program keeps a read transaction open for long: find it, and end it",
        data=data,
    )


def _disk(path: Path, work: Work | None) -> Iterator[Finding]:
    free = shutil.disk_usage(path.parent).free
    per_day = None if work is None else daily_bytes(work)
    days = free / per_day if per_day else None
    data = {"free": free, "days_left": None if days is None else round(days, 1)}
    text = f"{size(free)} free" + (f", enough for {span(days * 86400)} at this pace" if days and days < 365 else "")
    is_short = free < LOW_DISK or (days is not None and days < WEEK)
    level: Level = "fail" if free < NO_DISK else "warn" if is_short else "ok"
    cure = "a full disk stops all workers: free some space; onward prune makes room in the file" if is_short else ""
    yield Finding(check="disk", level=level, text=text, cure=cure, data=data)


def _lock_files(path: Path, work: Work) -> Iterator[Finding]:
    """Lock files that no worker's row belongs to: their process died between making the one and the other."""
    known = {worker.id for worker in work.workers if not worker.is_dead}
    left: list[Path] = []
    for file in sorted(lock_directory(path).glob("*.lock")):
        with contextlib.suppress(FileNotFoundError):
            is_old = time.time() - file.stat().st_mtime > LEFT_OVER_S
            if file.stem not in known and is_old and is_held(file) is False:
                left.append(file)
    if not left:
        yield Finding(check="lock-files", level="ok", text="none is left over", data={"left_over": 0})
        return
    yield Finding(
        check="lock-files",
        level="warn",
        text=f"{counted(len(left), 'lock file')} of workers that are no more, in {left[0].parent}",
        cure=f"they do no harm; to remove them: rm {' '.join(str(one) for one in left[:5])}{' …' if left[5:] else ''}",
        data={"left_over": len(left)},
    )


def _unreadable(error: sqlite3.Error, database: Database) -> Finding:
    classified = classify(error, database=database.name)
    return Finding(
        check="integrity" if isinstance(classified, FatalStoreError) else "access",
        level="fail",
        text=str(classified),
        is_unusable=True,
    )


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _may_write(place: Path) -> bool:
    mode = os.W_OK | (os.X_OK if place.is_dir() else 0)
    return os.access(place, mode, effective_ids=os.access in os.supports_effective_ids)


def _owner(path: Path) -> str:
    """The owner's name, or number where it has none (in a container)."""
    try:
        return path.owner()
    except (KeyError, NotImplementedError):
        return str(path.stat().st_uid)

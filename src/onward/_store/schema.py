"""Which database schemas this library can use: migrations as values, and the rules that compare them with what is there.

Pure; every store reads its numbered `sql/migrations/NNNN_name.sql` through `load_migrations` and hands the rows of its
migrations table to `pending_migrations`. A file begins with `-- oldest library: X.Y.Z`: the oldest library that may go on
working on the schema once this migration has been applied, so that old workers live on during a rolling upgrade.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from onward._store.statements import sql_folder
from onward._version import __version__
from onward.errors import SchemaError

_FILE = re.compile(r"^(\d{4})_([a-z0-9_]+)\.sql$")
_OLDEST = re.compile(r"\A-- oldest library: (\d+\.\d+\.\d+)\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file."""

    number: int
    name: str
    oldest_library: str
    checksum: str
    sql: str


@dataclass(frozen=True, slots=True)
class AppliedMigration:
    """One row of the migrations table."""

    number: int
    name: str
    oldest_library: str
    checksum: str


def load_migrations(package: str) -> list[Migration]:
    """The migrations of a store, by number, without gaps."""
    found: list[Migration] = []
    for file in (sql_folder(package) / "migrations").iterdir():
        named = _FILE.match(file.name)
        if named is None:
            continue
        sql = file.read_text(encoding="utf-8")
        oldest = _OLDEST.match(sql)
        if oldest is None:
            raise ValueError(f"{file.name} must begin with '-- oldest library: X.Y.Z'")
        checksum = hashlib.sha256(sql.encode()).hexdigest()
        found.append(Migration(int(named[1]), named[2], oldest[1], checksum, sql))
    found.sort(key=lambda migration: migration.number)
    if [migration.number for migration in found] != list(range(1, len(found) + 1)):
        raise ValueError(f"the migrations of {package} are not numbered 1, 2, 3, …")
    return found


def version_key(version: str) -> tuple[int, ...]:
    """`"0.10.2"` → `(0, 10, 2)`."""
    return tuple(int(part) for part in version.split("."))


def pending_migrations(
    known: Sequence[Migration], applied: Sequence[AppliedMigration], *, database: str, library: str = __version__
) -> list[Migration]:
    """What has still to be applied; raises SchemaError if this library must not touch the database."""
    by_number = {migration.number: migration for migration in known}
    for row in applied:
        mine = by_number.get(row.number)
        if mine is None:
            if version_key(row.oldest_library) > version_key(library):
                raise SchemaError(
                    f"{database} has schema {row.number} ({row.name}), which needs onward >= {row.oldest_library}; "
                    f"this is onward {library}: upgrade it with pip install -U onward"
                )
        elif mine.checksum != row.checksum:
            raise SchemaError(
                f"{database}: migration {row.number} ({row.name}) is recorded with another content than this onward "
                f"{library} has; the database was made by a modified or unreleased version: use that one, or a new database"
            )
    done = {row.number for row in applied}
    return [migration for migration in known if migration.number not in done]

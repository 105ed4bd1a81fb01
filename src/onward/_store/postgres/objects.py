"""What Onward's own migrations make in a schema: names, kinds, and the statement of each; read from the files themselves.

Used to tell what is missing (`onward doctor`), what may be removed (`migrate --drop`) and what roles need rights on.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

from onward._store.postgres.statements import PACKAGE, place
from onward._store.schema import load_migrations

Kind: TypeAlias = Literal["table", "view", "index", "function", "trigger"]
_MADE = re.compile(
    r"^CREATE (?:OR REPLACE )?(?:UNIQUE |CONSTRAINT )?(?P<kind>TABLE|VIEW|INDEX|FUNCTION|TRIGGER) (?:onward\.)?(?P<name>[a-z_]+)",
    re.MULTILINE,
)
_INDEX = re.compile(r"^CREATE (?:UNIQUE )?INDEX (?P<name>[a-z_]+)\s.*?;$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Own:
    """One object of the schema."""

    name: str
    kind: Kind
    migration: int
    """The number of the migration that makes it."""
    sql: str = ""
    """Of an index: the statement that makes it."""


@functools.cache
def own_objects() -> tuple[Own, ...]:
    """Everything that the migrations make, in their order, the table `migrations` first; what one makes anew is the newer one."""
    found = {("table", "migrations"): Own("migrations", "table", 1)}
    for migration in load_migrations(PACKAGE):
        indexes = {match["name"]: " ".join(match[0].split()) for match in _INDEX.finditer(migration.sql)}
        for match in _MADE.finditer(migration.sql):
            kind: Kind = match["kind"].lower()  # type: ignore[assignment]  # the expression admits no others
            found[kind, match["name"]] = Own(match["name"], kind, migration.number, indexes.get(match["name"], ""))
    return tuple(found.values())


def names_of(kind: Kind) -> list[str]:
    """The names of one kind."""
    return [own.name for own in own_objects() if own.kind == kind]


def statement_of(own: Own, quoted_schema: str) -> str:
    """The statement that makes an index, placed into its schema."""
    return place(own.sql, quoted_schema)

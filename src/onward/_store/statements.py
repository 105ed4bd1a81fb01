"""Named SQL statements and their parameters.

Statements lie in `sql/*.sql` beside a store: `-- name: xyz` opens one, the next name or the file's end closes it. Hot
statements take one JSON text for a whole batch.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import msgspec

_NAME = re.compile(r"^-- name: ([a-z_]+)[ \t]*$", re.MULTILINE)


def load_statements(package: str, file: str) -> dict[str, str]:
    """All statements of `<package>/sql/<file>.sql` by name; a name given twice is an error."""
    text = (sql_folder(package) / f"{file}.sql").read_text(encoding="utf-8")
    parts = _NAME.split(text)
    names, bodies = parts[1::2], parts[2::2]
    if len(set(names)) != len(names):
        raise ValueError(f"{package}/sql/{file}.sql gives one name to two statements")
    return {name: body.strip().rstrip(";") for name, body in zip(names, bodies, strict=True)}


def sql_folder(package: str) -> Path:
    """Where a store's statements lie. A plain path: importlib.resources takes 5 ms to import, for packages within archives,
    where msgspec's extension could not be loaded anyway."""
    return Path(str(importlib.import_module(package).__file__)).parent / "sql"


def json_text(value: object) -> str:
    """A statement's one parameter: rows as a JSON array of arrays."""
    return msgspec.json.encode(value).decode()

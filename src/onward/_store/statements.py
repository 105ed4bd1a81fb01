"""Named SQL statements and their parameters.

Statements lie in `sql/*.sql` beside a store: `-- name: xyz` opens one, the next name or the file's end closes it. Hot
statements take one JSON text for a whole batch.
"""

from __future__ import annotations

import re
from importlib.resources import files

import msgspec

_NAME = re.compile(r"^-- name: ([a-z_]+)[ \t]*$", re.MULTILINE)


def load_statements(package: str, file: str) -> dict[str, str]:
    """All statements of `<package>/sql/<file>.sql` by name; a name given twice is an error."""
    text = files(package).joinpath("sql", f"{file}.sql").read_text(encoding="utf-8")
    parts = _NAME.split(text)
    names, bodies = parts[1::2], parts[2::2]
    if len(set(names)) != len(names):
        raise ValueError(f"{package}/sql/{file}.sql gives one name to two statements")
    return {name: body.strip().rstrip(";") for name, body in zip(names, bodies, strict=True)}


def json_text(value: object) -> str:
    """A statement's one parameter: rows as a JSON array of arrays."""
    return msgspec.json.encode(value).decode()

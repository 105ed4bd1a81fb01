"""Named statements of `sql/*.sql`, made ready for the wire.

In the files a parameter is `:name`, a table `onward.name`, the time `{now}`; other `{name}`s are fragments, which several
statements share. Here they become `$1`, the schema of this database, and the server's clock. Nothing else is ever put into the
text of a statement.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from onward._store.postgres.address import DEFAULT_SCHEMA
from onward._store.postgres.serverclock import ServerClock
from onward._store.statements import load_statements

PACKAGE = "onward._store.postgres"
FILES = (
    "claims", "diagnosis", "endings", "journal", "leases", "mailbox", "prune", "reads", "server", "session", "starts", "transfer",
    "within",
)  # fmt: skip
_PARAMETER = re.compile(r"(?<![:\w]):([a-z_]+)")
_SCHEMA = re.compile(rf"\b{DEFAULT_SCHEMA}\.(?=[a-z_])")

Value: TypeAlias = "bytes | str | int | bool | None"
_encode = msgspec.json.Encoder().encode


def as_json(value: object) -> bytes:
    """A whole batch as one parameter."""
    return _encode(value)


def as_texts(values: Sequence[str]) -> bytes:
    """Texts as one array parameter."""
    joined = '","'.join(values)
    if "\\" in joined or joined.count('"') != 2 * max(0, len(values) - 1):
        joined = "\0".join(values)  # which no text of PostgreSQL's may hold
        if joined.count("\0") == len(values) - 1:
            joined = joined.replace("\\", "\\\\").replace('"', '\\"').replace("\0", '","')
        else:
            joined = '","'.join([value.replace("\\", "\\\\").replace('"', '\\"') for value in values])
    return f'{{"{joined}"}}'.encode() if values else b"{}"


def as_array(values: Sequence[int]) -> bytes:
    """Integers or booleans as one array parameter."""
    return f"{{{','.join(map(str, values))}}}".encode()


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement of one database."""

    name: str
    text: str
    parameters: tuple[str, ...]
    clock: ServerClock
    wire: bytes
    """The text as it is sent, where no test has injected a clock."""

    def bind(self, **values: Value) -> Call:
        """The statement with its values."""
        return Call(self, [_wire_value(values[name]) for name in self.parameters])

    def sql(self) -> str:
        """The text as it runs now."""
        return self.text.replace("{now}", self.clock.sql())


@dataclass(frozen=True, slots=True)
class Call:
    """A statement on its way to the server; without `Statement.name` in a prepared form."""

    statement: Statement
    values: Sequence[bytes | None]


def _wire_value(value: Value) -> bytes | None:
    kind = type(value)
    if kind is bytes or value is None:
        return value  # type: ignore[return-value]  # bytes or None
    if kind is bool:
        return b"t" if value else b"f"
    return str(value).encode()


def place(text: str, quoted_schema: str) -> str:
    """Put a text of the files into the schema of this database."""
    return text if quoted_schema == DEFAULT_SCHEMA else _SCHEMA.sub(lambda _: f"{quoted_schema}.", text)


def statement(name: str, text: str, clock: ServerClock) -> Statement:
    """One statement; the schema stands in its text already."""
    names: list[str] = []

    def number(found: re.Match[str]) -> str:
        if found[1] not in names:
            names.append(found[1])
        return f"${names.index(found[1]) + 1}"

    numbered = _PARAMETER.sub(number, text)
    wire = numbered.replace("{now}", "(SELECT clock_timestamp())").encode()
    return Statement(name, numbered, tuple(names), clock, wire)


def compile_statements(quoted_schema: str, clock: ServerClock) -> Mapping[str, Statement]:
    """Every statement of every file, by name; those called `fragment_…` are put where `{…}` stands."""
    texts: dict[str, str] = {}
    for file in FILES:
        for name, text in load_statements(PACKAGE, file).items():
            if name in texts:
                raise ValueError(f"two statements are called {name}")
            texts[name] = text
    prefix = "fragment_"
    fragments = {
        name.removeprefix(prefix): _without_comments(text) for name, text in texts.items() if name.startswith(prefix)
    }
    made: dict[str, Statement] = {}
    for name, text in texts.items():
        if name.startswith(prefix):
            continue
        for _ in range(3):  # fragments may hold fragments
            for fragment, inner in fragments.items():
                text = text.replace(f"{{{fragment}}}", inner)
        text = place(_without_comments(text), quoted_schema)
        made[name] = statement(name, text, clock)
        if name == "lock_rows":  # the same, waiting for whoever holds a row
            made["lock_rows_waiting"] = statement("lock_rows_waiting", text.replace(" SKIP LOCKED", ""), clock)
    return made


def _without_comments(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--"))

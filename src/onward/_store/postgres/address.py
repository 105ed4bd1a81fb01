"""Reads a PostgreSQL URL: what goes to libpq, and what Onward keeps for itself (`schema`, `poll_only`).

Pure, and the only place that knows what may stand after the '?'. Everything that is not Onward's is handed to libpq as it is
(`sslmode`, `target_session_attrs`, several hosts …).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote, urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict

from onward.errors import ConfigurationError

DEFAULT_SCHEMA = "onward"
_SCHEMA = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,47}")
_TRUE, _FALSE = frozenset({"1", "true", "yes", "on", ""}), frozenset({"0", "false", "no", "off"})
_DEFAULTS: dict[str, str] = {
    "application_name": "onward",
    "connect_timeout": "10",
    # A dead peer is noticed long before the kernel's default of hours: within a lease.
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "12000",
}


@dataclass(frozen=True, slots=True)
class Address:
    """A database, and a schema in it."""

    url: str
    """For people: without the password."""
    parameters: dict[str, str]
    """libpq's connection parameters."""
    schema: str
    is_poll_only: bool
    """No LISTEN, no advisory lock, no prepared statement, no session setting: fit for a pooler in transaction mode."""

    @property
    def quoted_schema(self) -> str:
        """As an SQL identifier."""
        return self.schema if self.schema == self.schema.lower() else f'"{self.schema}"'


def parse_address(url: str) -> Address:
    """Read `postgresql://user:password@host:port/database?schema=…&poll_only=1&…`. Raises ConfigurationError."""
    base, _, query = url.partition("?")
    schema, is_poll_only = DEFAULT_SCHEMA, False
    passed_on: list[tuple[str, str]] = []
    for name, value in parse_qsl(query, keep_blank_values=True):
        match name:
            case "schema":
                schema = value
            case "poll_only":
                is_poll_only = _flag(name, value)
            case _:
                passed_on.append((name, value))
    if not _SCHEMA.fullmatch(schema):
        raise ConfigurationError(
            f"schema={schema!r} in the database URL is no schema name: up to 48 letters, digits and underscores, "
            "not beginning with a digit"
        )
    conninfo = f"{base}?{urlencode(passed_on, quote_via=quote)}" if passed_on else base
    try:
        found = conninfo_to_dict(conninfo)
    except psycopg.ProgrammingError as error:
        raise ConfigurationError(
            f"the database URL {_shown(base)} is not understood: {str(error).strip()}; "
            "write postgresql://user:password@host:5432/database"
        ) from None
    parameters = {name: str(value) for name, value in found.items() if value is not None}
    own = [("schema", schema)] if schema != DEFAULT_SCHEMA else []
    if is_poll_only:
        own.append(("poll_only", "1"))
    public = [(name, value) for name, value in passed_on if name not in ("password", "sslpassword")] + own
    shown = _without_password(base) + (f"?{urlencode(public, safe='/', quote_via=quote)}" if public else "")
    return Address(shown, {**_DEFAULTS, **parameters}, schema, is_poll_only)


def _flag(name: str, value: str) -> bool:
    if value.lower() in _TRUE:
        return True
    if value.lower() in _FALSE:
        return False
    raise ConfigurationError(f"{name}={value!r} in the database URL is neither 1 nor 0")


def _without_password(base: str) -> str:
    scheme, _, rest = base.partition("://")
    authority, slash, path = rest.partition("/")
    credentials, at, place = authority.rpartition("@")
    user = unquote(credentials.partition(":")[0])
    return f"{scheme}://{user}{at if user else ''}{place}{slash}{path}"


def _shown(base: str) -> str:
    return repr(_without_password(base))

"""Turns a database URL into a Store that is not open yet. The only place that knows all stores."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import unquote

from onward._store.base import Clock, Store
from onward._store.urls import ENVIRONMENT_VARIABLE
from onward.errors import ConfigurationError

if TYPE_CHECKING:
    from onward._store.sqlite.database import Probe

_FORMS = (
    "write sqlite:///onward.db (relative to the working directory), sqlite:////var/lib/app/onward.db, "
    "postgresql://user:password@host:5432/database, or memory://"
)


def open_store(url: str, clock: Clock | None = None, *, probe: Probe | None = None) -> Store:
    """The store of a URL: sqlite:///relative.db, sqlite:////absolute.db, postgresql://…/database or memory://.

    A PostgreSQL URL may have options: `schema=name` (default onward), `poll_only=1` behind a pooler in transaction mode, and
    those of libpq. Nothing is touched before `Store.open`. `probe` is for fault tests and the testing kit. Raises
    ConfigurationError, which names ONWARD_DATABASE_URL if it is that variable's URL.
    """
    try:
        return _store(url, clock, probe)
    except ConfigurationError as error:
        if url and url == os.environ.get(ENVIRONMENT_VARIABLE):
            raise ConfigurationError(f"{ENVIRONMENT_VARIABLE}: {error}") from error.__cause__
        raise


def _store(url: str, clock: Clock | None, probe: Probe | None) -> Store:
    scheme, separator, rest = url.partition("://")
    if not separator:
        hint = f"; for a file write sqlite:///{url}" if url and ":" not in url else ""
        raise ConfigurationError(f"{url!r} is not a database URL{hint or f'; {_FORMS}'}")
    if scheme.lower() in ("postgresql", "postgres"):
        return _postgres_store(url, clock, probe)
    if "?" in rest or "#" in rest:
        raise ConfigurationError(
            f"the database URL {_shown(url)} has options after '?' or '#', but takes none; {_FORMS}"
        )
    match scheme.lower():
        case "sqlite":
            from onward._store.sqlite.store import SqliteStore

            return SqliteStore(_sqlite_path(url, rest), clock=clock, probe=probe)
        case "memory":
            from onward._store.memory.store import MemoryStore

            return MemoryStore(unquote(rest), clock=clock, probe=probe)
    raise ConfigurationError(f"{_shown(url)}: there is no database {scheme!r} in Onward; {_FORMS}")


def _postgres_store(url: str, clock: Clock | None, probe: Probe | None) -> Store:
    try:
        from onward._store.postgres.store import PostgresStore
    except ModuleNotFoundError as error:
        if error.name != "psycopg":
            raise
        raise ConfigurationError("PostgreSQL needs a driver: pip install 'onward[postgres]'") from None
    return PostgresStore(url, clock=clock, probe=probe)


def _sqlite_path(url: str, rest: str) -> str:
    host, slash, path = rest.partition("/")
    if host:
        raise ConfigurationError(
            f"{url!r} names a host ({host!r}), but an SQLite file has none: it takes three slashes, sqlite:///{host}{slash}{path}"
        )
    if path in ("", ":memory:", "/"):
        raise ConfigurationError(f"{url!r} names no file; {_FORMS}")
    if path.endswith("/"):
        raise ConfigurationError(f"{url!r} names a directory; write {url}onward.db")
    return unquote(path)


def _shown(url: str) -> str:
    """The URL without a password."""
    scheme, _, rest = url.partition("://")
    credentials, at, place = rest.rpartition("@")
    return repr(f"{scheme}://{credentials.partition(':')[0]}:…@{place}" if at else url)

"""Turns a database URL into a Store that is not open yet. The only place that knows all stores."""

from __future__ import annotations

from urllib.parse import unquote

from onward._store.base import Clock, Store
from onward._store.memory.store import MemoryStore
from onward._store.sqlite.database import Probe
from onward._store.sqlite.store import SqliteStore
from onward.errors import ConfigurationError

_FORMS = "write sqlite:///onward.db (relative to the working directory), sqlite:////var/lib/app/onward.db, or memory://"


def open_store(url: str, clock: Clock | None = None, *, probe: Probe | None = None) -> Store:
    """The store of a URL: sqlite:///relative.db, sqlite:////absolute.db or memory://.

    Nothing is touched before `Store.open`. `probe` is for fault tests (SQLite only). Raises ConfigurationError.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        hint = f"; for a file write sqlite:///{url}" if url else ""
        raise ConfigurationError(f"{url!r} is not a database URL{hint or f'; {_FORMS}'}")
    if "?" in rest or "#" in rest:
        raise ConfigurationError(
            f"the database URL {_shown(url)} has options after '?' or '#', but takes none; {_FORMS}"
        )
    match scheme.lower():
        case "sqlite":
            return SqliteStore(_sqlite_path(url, rest), clock=clock, probe=probe)
        case "memory":
            return MemoryStore(unquote(rest), clock=clock)
        case "postgresql" | "postgres":
            raise ConfigurationError(
                "PostgreSQL comes with the [postgres] extra in a later release of Onward; for now use SQLite: sqlite:///onward.db"
            )
    raise ConfigurationError(f"{_shown(url)}: there is no database {scheme!r} in Onward; {_FORMS}")


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

"""Opens the database for a command and says which one it is. Only commands that create it open it with `creates=True`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onward._store.base import Store
from onward._store.opening import open_store
from onward._store.urls import database_url
from onward.cli.settings import Failure, Settings
from onward.errors import ConfigurationError, StoreError

if TYPE_CHECKING:
    from onward._engine.connection import Connection
    from onward.client import AsyncClient

UNUSABLE = 5
"""Exit code: the database cannot be used."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An open database: the client, and below it what the client does not offer (children, workers, the clock)."""

    client: AsyncClient
    connection: Connection

    @property
    def store(self) -> Store:
        """The store."""
        return self.connection.store


@asynccontextmanager
async def opened(
    settings: Settings, *, creates: bool = False, is_quiet: bool = False, is_all: bool = False
) -> AsyncIterator[Opened]:
    """The database that the options name, open. Says on stderr which one, unless `is_quiet` (--json).

    Without `creates` a missing file or schema is an error and nothing is made. `is_all`: what this command does in it needs
    no other process, so that it may be a database in memory.
    """
    from onward.client import AsyncClient  # `onward worker` comes to this file, too, and does without

    if not is_all:
        _refuse_memory(settings)
    if creates and not is_quiet:
        announce(settings)
    client = AsyncClient(settings.url, _migrate=creates)
    try:
        with unusable():
            connection = await client._connection()
        if not creates and not is_quiet:
            click.echo(f"database: {place(connection.store.url)}", err=True)
        yield Opened(client, connection)
    finally:
        await client.close()


@contextmanager
def unusable() -> Iterator[None]:
    """What goes wrong in here means that the database cannot be used: exit code 5."""
    try:
        yield
    except (ConfigurationError, StoreError) as error:
        raise Failure(str(error), UNUSABLE) from error


def _refuse_memory(settings: Settings) -> None:
    url = database_url(settings.url)
    if url.startswith("memory:"):
        raise Failure(
            f"{url} is gone when this command ends, and no other process sees it: name a file (--url sqlite:///onward.db), "
            "or use onward run",
            UNUSABLE,
        )


def checked_url(settings: Settings) -> str:
    """The absolute URL of the database that the options name; nothing is opened."""
    with unusable():
        return open_store(database_url(settings.url)).url


def announce(settings: Settings, *, creates: bool = True) -> str:
    """Say on stderr which database is meant before it is opened, and with `creates` perhaps made; returns its URL."""
    url = checked_url(settings)
    is_new = (
        creates and url.startswith("sqlite:") and Path(place(url)).parent.is_dir() and not Path(place(url)).exists()
    )
    click.echo(f"database: {place(url)}{' (a new file)' if is_new else ''}", err=True)
    return url


def place(url: str) -> str:
    """A store's URL as people know the place: the absolute path of a file, else the URL."""
    return url.removeprefix("sqlite:///") if url.startswith("sqlite:///") else url

"""`onward migrate`: create or upgrade the schema."""

from __future__ import annotations

import asyncio

import click

from onward._store.opening import open_store
from onward.cli.database import announce, unusable
from onward.cli.settings import Failure, Settings, common_options, pass_settings
from onward.errors import SchemaError


@click.command()
@common_options
@click.option("--check", is_flag=True, help="Change nothing; exit with 5 if there is something to do.")
@pass_settings
def migrate(settings: Settings, check: bool) -> None:
    """Create or upgrade the database's schema.

    Commands that make workflows (start, run, worker) do it by themselves on SQLite.
    """
    settings.start_logging()
    url = announce(settings)
    try:
        with unusable():
            asyncio.run(_open(url, migrate=False))
    except Failure as failure:
        if check or not isinstance(failure.__cause__, SchemaError):
            raise
        with unusable():
            asyncio.run(_open(url, migrate=True))
        click.echo("the schema was brought up to date")
    else:
        click.echo("the schema is up to date")


async def _open(url: str, *, migrate: bool) -> None:
    store = open_store(url)
    try:
        await store.open(migrate=migrate)
    finally:
        await store.close()

"""`onward migrate`: create or upgrade the schema, print it or its roles, or remove Onward from a database."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import click

from onward._store.diagnosis import Removal
from onward._store.opening import open_store
from onward._store.quantities import counted
from onward.cli.database import announce, checked_url, opened, place, unusable
from onward.cli.settings import Failure, Settings, common_options, one_line, pass_settings
from onward.errors import OnwardError, SchemaError

REFUSED, BAD_USAGE = 4, 2


@click.command(short_help="Create, upgrade, print or remove the schema.")
@common_options
@click.option("--check", is_flag=True, help="Change nothing; exit with 5 if there is something to do.")
@click.option("--sql", is_flag=True, help="Print the statements that make the schema, and do nothing else.")
@click.option(
    "--roles", is_flag=True, help="PostgreSQL: print a script of minimal roles, for psql, and do nothing else."
)
@click.option("--drop", is_flag=True, help="Remove Onward's tables, with all workflows, and nothing else.")
@click.option("--yes", is_flag=True, help="With --drop: do not ask.")
@click.option("--force", is_flag=True, help="With --drop: even while workers are alive.")
@pass_settings
def migrate(settings: Settings, check: bool, sql: bool, roles: bool, drop: bool, yes: bool, force: bool) -> None:
    """Create or upgrade the database's schema, print it or its roles, or remove it.

    Commands that make workflows (start, run, worker) create and upgrade it by themselves on SQLite.
    """
    if check + sql + roles + drop > 1:
        raise click.UsageError("--check, --sql, --roles and --drop are different things: choose one")
    if (yes or force) and not drop:
        raise click.UsageError("--yes and --force belong to --drop")
    settings.start_logging()
    if sql:
        _print_sql(settings)
    elif roles:
        _print_roles(settings)
    elif drop:
        _drop(settings, is_confirmed=yes, force=force)
    else:
        _bring_up_to_date(settings, check=check)


def _bring_up_to_date(settings: Settings, *, check: bool) -> None:
    url = announce(settings, creates=not check)
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


def _print_sql(settings: Settings) -> None:
    url = checked_url(settings)
    sql = open_store(url).schema_sql()
    if not sql:
        raise Failure(f"{url} has no schema", BAD_USAGE)
    click.echo(sql, nl=False)


def _print_roles(settings: Settings) -> None:
    url = checked_url(settings)
    script = open_store(url).roles_sql()
    if not script:
        raise Failure(f"{place(url)} has no roles: only PostgreSQL has", BAD_USAGE)
    click.echo(script, nl=False)


def _drop(settings: Settings, *, is_confirmed: bool, force: bool) -> None:
    url = checked_url(settings)
    name = _name(url)
    click.echo(f"database: {place(url)}", err=True)
    if not is_confirmed:
        _confirm(settings, name)
    with unusable():
        removal = asyncio.run(open_store(url).drop_schema(force=force))
    if removal.alive:
        raise Failure(_refusal(removal), REFUSED)
    if removal.removed:
        click.echo(f"removed: {', '.join(removal.removed)}")
        if removal.is_empty:
            click.echo(f"nothing else is in {place(url)}: remove it as you like", err=True)
    else:
        click.echo("there is nothing of Onward in it")


def _name(url: str) -> str:
    """What to type in order to drop it: the name of the file or of the database."""
    shown = place(url)
    return (urlsplit(shown).path if "://" in shown else shown).rpartition("/")[2] or url


def _confirm(settings: Settings, name: str) -> None:
    click.echo(f"this removes Onward's tables and {asyncio.run(_inventory(settings))}", err=True)
    try:
        answer = click.prompt(f"to go on, type {name}", default="", show_default=False, err=True)
    except click.Abort:
        raise Failure("nothing was removed: nobody is there to confirm it; add --yes", BAD_USAGE) from None
    if answer != name:
        raise Failure(f"nothing was removed: {answer!r} is not {name!r}", BAD_USAGE)


async def _inventory(settings: Settings) -> str:
    """What would be lost, in words; a database in which it cannot be counted can be dropped all the same."""
    try:
        async with opened(settings, is_quiet=True) as database:
            counts = await database.store.counts()
    except (Failure, OnwardError) as error:
        return f"whatever is in them ({error})"
    unfinished = sum(counts.get(status, 0) for status in ("pending", "running", "waiting"))
    return f"all {counted(sum(counts.values()), 'workflow')} in them, {unfinished} of them unfinished"


def _refusal(removal: Removal) -> str:
    names = one_line(", ".join(worker.name for worker in removal.alive))
    return (
        f"nothing was removed: {counted(len(removal.alive), 'worker')} alive ({names}); stop them first, or add --force"
    )

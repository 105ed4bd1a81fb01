"""`onward copy`: move all workflows, those in flight included, to another database."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias, TypeVar

import click

from onward._engine import failpoints
from onward._engine.moving import Copying, Moved, Progress, copy_under_way
from onward._store.base import Store, Transfer
from onward._store.opening import open_store
from onward._store.quantities import counted, size
from onward._store.transfer import Place
from onward.cli.database import UNUSABLE, place, unusable
from onward.cli.settings import Failure, Settings, common_options, pass_settings
from onward.errors import ConfigurationError, SchemaError

T = TypeVar("T")
Sides: TypeAlias = tuple[Store, Store]

CONFLICT = 4
OWN_TABLES = "only Onward's tables are copied: your own tables stay where they are"


@click.command()
@common_options
@click.argument("source_url", metavar="FROM-URL")
@click.argument("target_url", metavar="TO-URL")
@click.option("--dry-run", is_flag=True, help="Say what would be copied and whether it can be; change nothing.")
@click.option("--abort", is_flag=True, help="Give up a copy that is not complete: empty TO, and let FROM go on.")
@click.option(
    "--force",
    is_flag=True,
    help="With --abort: let FROM go on although it was moved elsewhere. Only if that place is lost.",
)
@pass_settings
def copy(settings: Settings, source_url: str, target_url: str, dry_run: bool, abort: bool, force: bool) -> None:
    """Move all workflows from one database to another, empty one.

    Those in flight go along: sleeping, waiting, backing off, running. First FROM is fenced: its workers end (exit code 6)
    and nothing is accepted there any more; then all is copied, compared, and TO is opened. Whatever ends this command in
    between, the same command goes on where it stopped. Your own tables are not copied.
    """
    if force and not abort:
        raise click.UsageError("--force goes with --abort")
    if dry_run and abort:
        raise click.UsageError("--dry-run and --abort exclude each other")
    settings.start_logging()
    failpoints.arm(os.environ.get("ONWARD_FAILPOINT"))
    with unusable():
        sides = open_store(source_url), open_store(target_url)
    click.echo(f"from: {place(sides[0].url)}\nto:   {place(sides[1].url)}", err=True)
    with _refusals():
        if dry_run:
            asyncio.run(_survey(sides))
        elif abort:
            asyncio.run(_abort(sides, force=force))
        else:
            asyncio.run(_move(sides))


async def _move(sides: Sides) -> None:
    source, target = sides
    screen = Screen(source.url, target.url)
    with unusable():
        transfers = source.transfer(), target.transfer()
    try:
        await transfers[0].look(counts=False)  # before anything is made
        await target.open(migrate=True)
        await target.close()
        moved = await Copying(*transfers, screen.told).move()
    finally:
        screen.wiped()
        await _close(transfers)
    click.echo(_end(moved, target.url))


def _end(moved: Moved, url: str) -> str:
    count = counted(moved.counts["workflows"], "workflow")
    if not moved.is_new:
        return f"the copy to {url} is complete already; nothing was done"
    return f"moved {count}; {OWN_TABLES}\nnow start the workers and clients with {url}"


async def _abort(sides: Sides, *, force: bool) -> None:
    source, target = sides
    transfers = source.transfer(), target.transfer()
    try:
        was_there = await Copying(*transfers).abort(force=force)
    finally:
        await _close(transfers)
    if was_there:
        click.echo(f"given up: {place(target.url)} is empty, and {place(source.url)} goes on; start its workers again")
    else:
        click.echo("there is no copy from there to here; nothing was done")


async def _survey(sides: Sides) -> None:
    source, target = sides
    transfers = source.transfer(), target.transfer()
    try:
        here = await transfers[0].look()
        for line in _sizes(here):
            click.echo(line)
        try:
            there = await transfers[1].look()
        except SchemaError:
            click.echo(f"{place(target.url)} has no Onward schema yet: it would be made")
            return
        known = copy_under_way(here, there)
    finally:
        await _close(transfers)
    if known is None:
        click.echo(f"{place(target.url)} is empty: the copy can begin")
    elif known.ended_at is None:
        click.echo(f"{place(target.url)} has {counted(sum(there.counts.values()), 'row')} of this copy: it would go on")
    else:
        click.echo("this copy is complete already")


def _sizes(here: Place) -> Iterator[str]:
    for name, count in here.counts.items():
        yield f"{name:<14}{count:>12,}"
    yield (
        f"{counted(here.unfinished_count, 'workflow')} not finished, {here.running_count:,} of them running; "
        f"{size(here.size)} in all"
    )
    if here.worker_count:
        yield f"{counted(here.worker_count, 'worker')} would be told to end"
    yield OWN_TABLES


async def _close(transfers: tuple[Transfer, Transfer]) -> None:
    for side in transfers:
        await side.close()


@contextmanager
def _refusals() -> Iterator[None]:
    """Databases that cannot be source and target: exit code 4. Those that cannot be used at all: 5."""
    try:
        yield
    except SchemaError as error:
        raise Failure(str(error), UNUSABLE) from error
    except ConfigurationError as error:
        raise Failure(str(error), CONFLICT) from error


class Screen:
    """Says what is done: a line for each table, and on a terminal the rows so far."""

    def __init__(self, source_url: str, target_url: str) -> None:
        self._source, self._target = place(source_url), place(target_url)
        self._is_live = sys.stderr.isatty()
        self._is_shown = False

    def told(self, progress: Progress) -> None:
        """One step has been done."""
        match progress.stage:
            case "marked":
                self._say(f"{self._target} is taken: nothing can be started there before the copy is complete")
            case "fenced":
                self._say(f"{self._source} is fenced: its workers end, and nothing is accepted there any more")
            case "copied" if progress.done == progress.total:
                self._say(f"copied {progress.table}: {counted(progress.total, 'row')}")
            case "copied" if self._is_live:
                self.wiped()
                click.echo(f"copying {progress.table}: {progress.done:,} of {progress.total:,} ", nl=False, err=True)
                self._is_shown = True
            case "verified":
                self._say(f"verified {progress.table}: {counted(progress.total, 'row')} equal")
            case "opened":
                self._say(f"{self._target} is open")

    def _say(self, text: str) -> None:
        self.wiped()
        click.echo(text, err=True)

    def wiped(self) -> None:
        """Make room for a line."""
        if self._is_shown:
            click.echo(f"\r{'':<70}\r", nl=False, err=True)
            self._is_shown = False

"""`onward prune`: delete workflows that finished long ago."""

from __future__ import annotations

import asyncio
import sys

import click
import msgspec

from onward._engine.pruning import prune as prune_all
from onward._store.pruning import PruneBatch
from onward._store.quantities import counted, span
from onward._store.records import FINAL
from onward.cli.database import opened
from onward.cli.parameters import duration
from onward.cli.settings import Settings, common_options, pass_settings
from onward.repair import PATIENCE_S, prune_request


def final_statuses(text: str | tuple[str, ...]) -> tuple[str, ...]:
    """Statuses with commas in between.

    >>> final_statuses("completed, failed")
    ('completed', 'failed')
    """
    if isinstance(text, tuple):
        return text
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in FINAL:
            raise click.BadParameter(
                f"{name!r} is none of {', '.join(sorted(FINAL))}: only finished workflows are deleted"
            )
    return names


@click.command()
@common_options
@click.option(
    "--older-than",
    type=duration,
    required=True,
    metavar="DURATION",
    help="Finished longer ago: 30d, 12h, 90 (seconds).",
)
@click.option(
    "--status",
    "statuses",
    type=final_statuses,
    multiple=True,
    metavar="STATUS[,STATUS]",
    help="Only these: completed, failed, cancelled (repeatable).  [default: all three]",
)
@click.option("--type", "type_name", metavar="NAME", help="Only workflows of this type.")
@click.option("--dry-run", is_flag=True, help="Count what would be deleted, and delete nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@pass_settings
def prune(
    settings: Settings,
    older_than: float,
    statuses: tuple[tuple[str, ...], ...],
    type_name: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Delete workflows that finished long ago, with their journals.

    A workflow goes with all its descendants, when it and every one of them has finished longer ago; --status and --type
    are those of the uppermost one. Workers go on meanwhile. An id whose workflow is deleted is new again.
    """
    settings.start_logging()
    wanted = [name for names in statuses for name in names]
    progress = Progress(is_shown=not as_json and not dry_run and sys.stderr.isatty())

    async def work() -> PruneBatch:
        async with opened(settings, is_quiet=as_json) as database:
            store = database.store
            request = prune_request(store.now_us(), older_than, wanted, type_name, dry_run=dry_run)
            return await prune_all(store, request, patience_s=PATIENCE_S, told=progress.told)

    try:
        pruned = asyncio.run(work())
    except BaseException:
        progress.interrupted()
        raise
    progress.wiped()
    if as_json:
        shown = {"workflows": pruned.workflows, "children": pruned.children, "dry_run": dry_run}
        click.echo(msgspec.json.encode(shown))
        return
    verb = "would delete" if dry_run else "deleted"
    ended = f"finished more than {span(older_than)} ago" if older_than else "finished"
    below = f", {pruned.children:,} of them below another one" if pruned.children else ""
    click.echo(f"{verb} {counted(pruned.workflows, 'workflow')} that {ended}{below}")


class Progress:
    """The number of workflows deleted so far: on a terminal on a line of its own, and where the command is cut off."""

    def __init__(self, *, is_shown: bool) -> None:
        self._is_shown = is_shown
        self._count = 0

    def told(self, count: int) -> None:
        """So many so far."""
        if self._is_shown and count != self._count:
            click.echo(f"\rdeleted {counted(count, 'workflow')} so far ", nl=False, err=True)
        self._count = count

    def wiped(self) -> None:
        """Make room for the result."""
        if self._is_shown and self._count:
            click.echo(f"\r{'':<60}\r", nl=False, err=True)

    def interrupted(self) -> None:
        """Say what was done before."""
        self.wiped()
        if self._count:
            click.echo(f"deleted {counted(self._count, 'workflow')} before it was cut off", err=True)

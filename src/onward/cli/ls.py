"""`onward ls`: workflows, newest first, as a table or as JSON lines."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from datetime import datetime

import click
import msgspec

from onward.cli import words
from onward.cli.database import opened
from onward.cli.parameters import moment, tag
from onward.cli.settings import Settings, common_options, one_line, pass_settings
from onward.info import WorkflowInfo
from onward.info import moment as instant_of

STATUSES = ("pending", "running", "waiting", "completed", "failed", "cancelled")
COLUMNS = ("ID", "TYPE", "STATE", "STEP", "CREATED")


@click.command()
@common_options
@click.option("--status", "statuses", type=click.Choice(STATUSES), multiple=True, help="Only these (repeatable).")
@click.option("--type", "type_name", metavar="NAME", help="Only workflows of this type.")
@click.option(
    "--tag", "tags", type=tag, metavar="NAME=VALUE", multiple=True, help="Only with this tag (repeatable: all of them)."
)
@click.option(
    "--since", type=moment, metavar="AGE|TIME", help="Created in the last 2h, 3d …, or since 2026-07-28T09:30Z."
)
@click.option("--before", metavar="ID", help="The page after this workflow (the last one of the page before).")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@pass_settings
def ls(
    settings: Settings,
    statuses: tuple[str, ...],
    type_name: str | None,
    tags: tuple[tuple[str, str], ...],
    since: datetime | None,
    before: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """List workflows, newest first."""
    settings.start_logging()

    async def read() -> tuple[list[WorkflowInfo], datetime]:
        async with opened(settings, is_quiet=as_json) as database:
            client = database.client
            last = None if before is None else await client.handle(before).info()
            infos = await client.list(
                status=statuses, type=type_name, tags=dict(tags), created_after=since, before=last, limit=limit
            )
            return infos, instant_of(database.store.now_us())

    infos, now = asyncio.run(read())
    if as_json:
        for info in infos:
            click.echo(msgspec.json.encode(as_object(info)))
        return
    if not infos:
        click.echo("no workflows" + (" fit" if statuses or type_name or tags or since or before else " yet"), err=True)
        return
    print_table(COLUMNS, [row_of(info, now) for info in infos], [info.status for info in infos])
    if len(infos) == limit:
        click.echo(f"there may be more: onward ls --before {infos[-1].id}", err=True)


def as_object(info: WorkflowInfo) -> dict[str, object]:
    """What --json shows of a workflow: its `WorkflowInfo`, with `state`."""
    fields: dict[str, object] = msgspec.to_builtins(info)
    return {
        "id": fields.pop("id"),
        "type": fields.pop("type"),
        "status": fields.pop("status"),
        "state": info.state,
        **fields,
    }


def row_of(info: WorkflowInfo, now: datetime) -> tuple[str, ...]:
    """The cells of one workflow."""
    return (
        info.id,
        one_line(info.type),
        words.brief_state(info, now),
        one_line(info.step or ""),
        words.relative(info.created_at, now),
    )


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], statuses: Sequence[str]) -> None:
    """Through rich on a terminal where it is installed; otherwise aligned plain lines, never cut."""
    if sys.stdout.isatty() and importlib.util.find_spec("rich") is not None:
        importlib.import_module("onward.cli.tables").print_rich(columns, rows, statuses)
        return
    for line in plain_table([columns, *rows]):
        click.echo(line)


def plain_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Cells in columns, two blanks apart."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]

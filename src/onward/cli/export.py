"""`onward export`: histories of workflows as JSON documents, for `onward.testing.replay`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from onward.cli.database import Opened, opened
from onward.cli.settings import Failure, Settings, common_options, pass_settings

WRONG = 2
IN_FLIGHT = ("pending", "running", "waiting")


@click.command(short_help="Export histories, to replay them with changed code.")
@common_options
@click.argument("workflow_ids", metavar="[ID]...", nargs=-1)
@click.option("--type", "type_name", metavar="NAME", help="Without IDs: workflows of this type only.")
@click.option(
    "--limit",
    type=click.IntRange(1, 1000),
    default=20,
    show_default=True,
    help="Without IDs: at most so many, newest first.",
)
@click.option(
    "--to",
    "folder",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write a file for each, ID.json.",
)
@pass_settings
def export(
    settings: Settings, workflow_ids: tuple[str, ...], type_name: str | None, limit: int, folder: Path | None
) -> None:
    """Export histories, to replay them with other code before it is deployed.

    One ID goes to stdout. With --to: each ID into a file of its own; without IDs the workflows that are in flight. A history
    holds arguments, results and the seed of the random numbers: keep it as you keep those.
    """
    if folder is None and len(workflow_ids) != 1:
        raise Failure("give one ID, or say where the files go: onward export --to DIR [ID]...", WRONG)
    if workflow_ids and type_name is not None:
        raise Failure("--type chooses among all workflows; leave the IDs away, or --type", WRONG)
    settings.start_logging()
    asyncio.run(_export(settings, workflow_ids, type_name, limit, folder))


async def _export(
    settings: Settings, workflow_ids: tuple[str, ...], type_name: str | None, limit: int, folder: Path | None
) -> None:
    async with opened(settings, is_quiet=folder is None) as database:
        if folder is None:
            click.echo(await database.client.handle(workflow_ids[0]).export())
            return
        chosen = workflow_ids or await _in_flight(database, type_name, limit)
        if not chosen:
            click.echo("no workflows fit", err=True)
        for workflow_id in dict.fromkeys(chosen):
            path = folder / f"{workflow_id.replace('/', '~')}.json"
            text = await database.client.handle(workflow_id).export() + "\n"
            try:
                folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240  # this loop has nothing else to do
                path.write_text(text, encoding="utf-8")
            except OSError as error:
                raise Failure(
                    f"{path} cannot be written: {error.strerror or error}; name another --to", WRONG
                ) from error
            click.echo(str(path))


async def _in_flight(database: Opened, type_name: str | None, limit: int) -> list[str]:
    infos = await database.client.list(status=IN_FLIGHT, type=type_name, limit=limit)
    return [info.id for info in infos]

"""`onward show`: one workflow with its journal as a timeline, and why it waits."""

from __future__ import annotations

import asyncio
import shutil
import sys

import click
import msgspec

from onward.cli import timeline
from onward.cli.database import opened
from onward.cli.ls import as_object
from onward.cli.settings import Settings, common_options, pass_settings
from onward.info import WorkflowInfo, moment


@click.command()
@common_options
@click.argument("workflow_id", metavar="ID")
@click.option("--full", is_flag=True, help="Cut nothing, and show tracebacks.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with `journal` and `children`.")
@pass_settings
def show(settings: Settings, workflow_id: str, full: bool, as_json: bool) -> None:
    """Show one workflow and its journal as a timeline.

    Its state, the reason of any wait and until when, arguments, result or error, tries, and children.
    """
    settings.start_logging()

    async def read() -> timeline.Picture:
        async with opened(settings, is_quiet=as_json) as database:
            handle = database.client.handle(workflow_id)
            return timeline.Picture(
                info=await handle.info(),
                journal=tuple(await handle.journal()),
                children=tuple(WorkflowInfo.of(row) for row in await database.store.children(workflow_id)),
                workers=tuple(await database.store.workers()),
                now=moment(database.store.now_us()),
            )

    picture = asyncio.run(read())
    if as_json:
        shown = as_object(picture.info)
        shown["journal"] = msgspec.to_builtins(picture.journal)
        shown["children"] = [as_object(child) for child in picture.children]
        click.echo(msgspec.json.encode(shown))
        return
    width = None if full else (shutil.get_terminal_size().columns if sys.stdout.isatty() else 160)
    for line in timeline.lines(picture, width=width):
        click.echo(line)

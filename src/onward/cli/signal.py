"""`onward signal`: send a signal to one workflow."""

from __future__ import annotations

import asyncio
from typing import Any

import click
import msgspec

from onward.cli.database import opened
from onward.cli.settings import Failure, Settings, common_options, pass_settings
from onward.context import Signal


@click.command()
@common_options
@click.argument("workflow_id", metavar="ID")
@click.argument("name")
@click.argument("value", metavar="[JSON]", default="null")
@pass_settings
def signal(settings: Settings, workflow_id: str, name: str, value: str) -> None:
    """Send a signal to a workflow.

    NAME is the signal's, the JSON value its payload (default null). It is kept until the workflow
    waits for it, and delivered once.
    """
    settings.start_logging()
    try:
        payload = msgspec.json.decode(value)
    except msgspec.DecodeError as error:
        raise Failure(f"the value is no JSON: {error}; a text needs its own quotes: '\"{value[:80]}\"'", 2) from error
    message: Signal[Any] = Signal(name, Any)

    async def send() -> None:
        async with opened(settings) as database:
            await database.client.signal(workflow_id, message, payload)

    asyncio.run(send())
    click.echo(f"{workflow_id}: signal {name} sent")

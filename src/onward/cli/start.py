"""`onward start`: start a workflow, and with --wait wait for its result."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import click
import msgspec

from onward.cli import words
from onward.cli.database import opened
from onward.cli.loading import arguments_of, find_workflow
from onward.cli.parameters import duration, tag
from onward.cli.settings import Failure, Settings, common_options, one_line, pass_settings
from onward.definitions import BoundWorkflow
from onward.errors import WorkflowFailed
from onward.handle import AsyncHandle
from onward.info import WorkflowInfo

FAILED = 1


@click.command()
@common_options
@click.argument("target", metavar="MODULE:WORKFLOW")
@click.argument("arguments", metavar="[JSON-ARGS]", required=False)
@click.option("--id", "workflow_id", help="Its id; starting an id again gives that workflow.  [default: a new one]")
@click.option("--queue", help="The queue it waits in.  [default: the definition's]")
@click.option("--priority", type=int, help="Lower runs first.  [default: 0]")
@click.option("--delay", type=duration, metavar="DURATION", help="Start no sooner than this: 30s, 5m, 2h, 3d.")
@click.option(
    "--timeout", type=duration, metavar="DURATION", help="Ended with WorkflowTimedOut so long after its first start."
)
@click.option("--tag", "tags", type=tag, metavar="NAME=VALUE", multiple=True, help="For finding it again (repeatable).")
@click.option("--wait", is_flag=True, help="Wait for its end and print the result, or exit with 1.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object: id, created, status, result or error.",
)
@pass_settings
def start(settings: Settings, /, target: str, arguments: str | None, wait: bool, as_json: bool, **options: Any) -> None:
    """Start a workflow and print its id.

    It is durable then, and runs once a worker takes it. JSON-ARGS is an array (by position) or an object (by name):
    '[42, "welcome"]' or '{"user_id": 42}'.
    """
    settings.start_logging()
    bound = bound_workflow(target, arguments, options)

    async def work() -> WorkflowInfo:
        async with opened(settings, creates=True, is_quiet=as_json) as database:
            handle: AsyncHandle[Any] = await database.client.start(bound)
            info = await handle.info()
            if as_json and wait:
                info = await ended(database.client.handle(handle.id))
            if as_json:
                click.echo(msgspec.json.encode(summary(info, is_created=handle.created)))
                return info
            if not handle.created:
                click.echo(f"it exists already: {one_line(info.state)}", err=True)
            click.echo(handle.id)
            if wait:
                info = await ended(database.client.handle(handle.id))
            return info

    info = asyncio.run(work())
    if wait:
        if info.status != "completed":
            raise Failure(ending(info), FAILED)
        if not as_json:
            click.echo(words.json_line(info.result))


def bound_workflow(target: str, arguments: str | None, options: dict[str, Any]) -> BoundWorkflow[Any]:
    """The workflow with its options and arguments, all checked."""
    workflow = find_workflow(target)
    args, kwargs = arguments_of(workflow, arguments)
    given = {name.removeprefix("workflow_"): value for name, value in options.items() if value not in (None, ())}
    if "tags" in given:
        given["tags"] = dict(given["tags"])
    return workflow.using(**given).bind(*args, **kwargs)


async def ended(handle: AsyncHandle[Any]) -> WorkflowInfo:
    """Wait for the end; how it ended is in the info."""
    with contextlib.suppress(WorkflowFailed):
        await handle.result()
    return await handle.info()


def ending(info: WorkflowInfo) -> str:
    """Why there is no result."""
    why = f": {words.error_line(info.error)}" if info.error is not None and info.status == "failed" else ""
    return f"workflow {info.id!r} {'was cancelled' if info.status == 'cancelled' else 'failed'}{why}; see: onward show {info.id}"


def summary(info: WorkflowInfo, *, is_created: bool) -> dict[str, object]:
    """What --json prints."""
    shown: dict[str, object] = {"id": info.id, "created": is_created, "status": info.status}
    if info.status == "completed":
        shown["result"] = info.result
    elif info.error is not None:
        shown["error"] = msgspec.to_builtins(info.error)
    return shown

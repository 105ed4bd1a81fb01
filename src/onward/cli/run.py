"""`onward run`: start or resume a workflow, work on it in this process, and print its result."""

from __future__ import annotations

import asyncio
from typing import Any

import click
import msgspec

from onward._engine.starts import new_workflow_id
from onward.cli.database import opened
from onward.cli.parameters import duration, tag
from onward.cli.settings import Failure, Settings, common_options, pass_settings
from onward.cli.start import FAILED, bound_workflow, ending
from onward.errors import ConfigurationError, StoreError, StoreImporting, StoreMoved, WorkflowIdConflict
from onward.info import WorkflowInfo

INTERRUPTED = 130


@click.command()
@common_options
@click.argument("target", metavar="MODULE:WORKFLOW")
@click.argument("arguments", metavar="[JSON-ARGS]", required=False)
@click.option("--id", "workflow_id", help="Its id; running an id again resumes it.  [default: a new one]")
@click.option(
    "--timeout", type=duration, metavar="DURATION", help="Ended with WorkflowTimedOut so long after its first start."
)
@click.option("--tag", "tags", type=tag, metavar="NAME=VALUE", multiple=True, help="For finding it again (repeatable).")
@pass_settings
def run(settings: Settings, /, target: str, arguments: str | None, **options: Any) -> None:
    """Start or resume a workflow and work on it here.

    Prints its result. No worker is needed. An error or Ctrl-C leaves it pending: running the same id again goes on from there.
    """
    settings.start_logging("error")  # warnings speak of the next attempt, but nobody makes one here
    workflow_id = options["workflow_id"] = options["workflow_id"] or new_workflow_id()
    bound = bound_workflow(target, arguments, options)

    async def work() -> Any:
        async with opened(settings, creates=True, is_all=True) as database:
            click.echo(f"workflow: {workflow_id}", err=True)
            try:
                return await database.client.run(bound)
            except (ConfigurationError, StoreError, StoreImporting, StoreMoved, WorkflowIdConflict):
                raise
            except (Exception, SystemExit) as error:  # whatever left the user's code
                info = await database.client.handle(workflow_id).info()
                raise Failure(_why(info, error), FAILED) from error

    try:
        result = asyncio.run(work())
    except KeyboardInterrupt:
        click.echo(f"\nstopped; to go on, run the same with --id {workflow_id}", err=True)
        click.get_current_context().exit(INTERRUPTED)
    click.echo(msgspec.json.encode(result))


def _why(info: WorkflowInfo, error: BaseException) -> str:
    if info.finished_at is not None:
        return ending(info)
    return (
        f"{type(error).__name__}: {error}; workflow {info.id!r} is {info.state}: "
        f"to go on, run the same with --id {info.id}"
    )

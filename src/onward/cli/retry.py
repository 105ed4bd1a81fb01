"""`onward retry`: run failed or cancelled workflows again, and those that are backing off now."""

from __future__ import annotations

import click

from onward.cli.settings import Settings, common_options, pass_settings
from onward.cli.several import for_each


@click.command()
@common_options
@click.argument("workflow_ids", metavar="ID...", nargs=-1, required=True)
@pass_settings
def retry(settings: Settings, workflow_ids: tuple[str, ...]) -> None:
    """Run failed or cancelled workflows again.

    They go on from where they failed: steps recorded before that do not run again. A workflow that is backing off is tried now.
    """
    for_each(settings, workflow_ids, lambda handle: handle.retry(), "start a new one to do it again")

"""`onward cancel`: ask workflows to end."""

from __future__ import annotations

import click

from onward.cli.settings import Settings, common_options, pass_settings
from onward.cli.several import for_each


@click.command()
@common_options
@click.argument("workflow_ids", metavar="ID...", nargs=-1, required=True)
@pass_settings
def cancel(settings: Settings, workflow_ids: tuple[str, ...]) -> None:
    """Ask workflows to end.

    One that never ran is cancelled at once; another gets CancelledError where it waits, and may clean up.
    """
    for_each(settings, workflow_ids, lambda handle: handle.cancel(), "there is nothing left to cancel")

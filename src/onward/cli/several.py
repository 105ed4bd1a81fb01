"""What `cancel` and `retry` share: one operation on several ids, each answered by a line; the first refusal decides the exit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import click

from onward.cli import words
from onward.cli.database import opened
from onward.cli.settings import Failure, Settings
from onward.errors import WorkflowNotFound
from onward.handle import AsyncHandle
from onward.info import moment

NOT_FOUND, ENDED = 3, 4


def for_each(
    settings: Settings, ids: Sequence[str], apply: Callable[[AsyncHandle[Any]], Awaitable[bool]], refusal: str
) -> None:
    """Apply to each id; `refusal` completes `ID is completed: …` where it had no effect."""

    async def work() -> int:
        code = 0
        async with opened(settings) as database:
            for workflow_id in dict.fromkeys(ids):
                handle = database.client.handle(workflow_id)
                try:
                    is_done = await apply(handle)
                    info = await handle.info()
                except WorkflowNotFound as error:
                    Failure(str(error), NOT_FOUND).show()
                    code = code or NOT_FOUND
                    continue
                if is_done:
                    click.echo(f"{workflow_id}: {words.state(info, moment(database.store.now_us()))}")
                else:
                    Failure(f"workflow {workflow_id!r} is {info.status}: {refusal}", ENDED).show()
                    code = code or ENDED
        return code

    settings.start_logging()
    if code := asyncio.run(work()):
        click.get_current_context().exit(code)

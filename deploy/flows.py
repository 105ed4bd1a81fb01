"""A workflow to try the files of this folder with; put your own modules in its place."""

import asyncio

from onward import Retry, step, workflow


@step(retry=Retry(tries=4, delay=1.0))
def send(user: str, template: str) -> str:
    return f"{template} sent to {user}"


@workflow
async def welcome(user: str, pause: float = 3600) -> str:
    await send(user, "welcome")
    await asyncio.sleep(pause)
    return await send(user, "follow-up")

"""Wrong uses of the testing kit: a type checker must report each line that is marked, and no other."""

from __future__ import annotations

from onward import Signal, workflow
from onward.testing import BlockingEnvironment, Environment

approved = Signal("approved", bool)


@workflow
async def purchase(amount: int) -> str:
    return f"{amount}"


async def asynchronous(env: Environment) -> None:
    number: int = await env.run(purchase, 5)  # error
    await env.run(purchase, "5")  # error
    await env.start(purchase)  # error
    await env.signal("a", approved, "yes")  # error
    await env.crash_everywhere(purchase, "5")  # error
    await env.advance("1 day")  # error
    print(number)


def blocking(env: BlockingEnvironment) -> None:
    env.run(purchase, "5")  # error
    env.crash_after(5)  # error

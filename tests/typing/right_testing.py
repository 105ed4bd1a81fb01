"""Typing of the kit."""

from __future__ import annotations

from typing import assert_type

from onward import AsyncHandle, Handle, Signal, step, workflow
from onward.testing import CrashReport, Environment, StepCall, replay

approved = Signal("approved", bool)


@step
def charge(amount: int) -> str:
    return f"{amount}"


@workflow
async def purchase(amount: int) -> str:
    return await charge(amount)


async def asynchronous() -> None:
    async with Environment() as env:
        assert_type(await env.run(purchase, 5), str)
        assert_type(await env.run(purchase.using(id="a").bind(5)), str)
        handle = await env.start(purchase, 5)
        assert_type(handle, AsyncHandle[str])
        await env.signal(handle, approved, True)
        with env.stub(charge, returns="x") as stub:
            assert_type(stub.calls, list[StepCall])
        assert_type(await env.crash_everywhere(purchase, 5), CrashReport)

        async def scenario(env: Environment) -> int:
            return 1

        await env.crash_everywhere(scenario)
        replay(purchase, await handle.export())


def blocking() -> None:
    with Environment() as env:
        assert_type(env.run(purchase, 5), str)
        assert_type(env.start(purchase, 5), Handle[str])

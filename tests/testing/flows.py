"""Workflows for the tests of the testing kit, as an application would have them in a module of its own."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

import onward
from onward import Retry, Signal, step, workflow

approved = Signal("approved", bool)


class Declined(Exception):
    """What a step's caller may catch."""


@step
async def send(address: str, template: str = "welcome") -> str:
    return f"{template} to {address}"


@step(retry=Retry(tries=3, delay=60.0, jitter=0), raises=(Declined,))
def charge(amount: int) -> str:
    return f"charged {amount}"


@step(timeout=10.0)
async def slow(amount: int) -> int:
    return amount


@workflow
async def onboarding(address: str) -> list[str]:
    first = await send(address)
    await asyncio.sleep(timedelta(days=3).total_seconds())
    return [first, await send(address, "follow-up")]


@workflow
async def clock() -> list[datetime]:
    times = [onward.now()]
    await onward.sleep(timedelta(hours=1))
    times.append(onward.now())
    await onward.sleep_until(times[0] + timedelta(days=1))
    return [*times, onward.now()]


@workflow
async def purchase(amount: int) -> str:
    try:
        receipt = await charge(amount)
    except Declined as error:
        return f"declined: {error}"
    return f"{receipt}; {await send('shop')}"


@workflow
async def patient(amount: int) -> str:
    try:
        async with asyncio.timeout(60):
            return f"got {await slow(amount)}"
    except TimeoutError:
        return "timed out"


@workflow
async def approval(days: float | None) -> str:
    try:
        answer = await approved.wait(timeout=None if days is None else timedelta(days=days))
    except TimeoutError:
        return "nobody answered"
    return "yes" if answer else "no"


@workflow
async def parent(count: int) -> list[str]:
    return list(await asyncio.gather(*(purchase(number) for number in range(count))))

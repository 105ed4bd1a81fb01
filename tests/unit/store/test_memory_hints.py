"""The in-memory store tells its subscribers of changes only: workers that find nothing must not wake each other for ever."""

from __future__ import annotations

import asyncio

from onward._store.memory.store import MemoryStore
from onward._store.operations import StartOp
from tests.conformance.support import new, request, worker_row


def test_a_look_that_changes_nothing_wakes_nobody() -> None:
    async def body() -> list[str]:
        store = MemoryStore()
        await store.open()
        store.leases().register(worker_row("w1"), 10**9)
        told: list[str] = []
        stage = ""
        store.subscribe(lambda: told.append(stage))

        async def turns() -> None:
            for _ in range(5):
                await asyncio.sleep(0)

        await turns()
        for stage in ("nothing", "start", "claim", "release"):
            if stage == "start":
                await store.write([StartOp(new())])
            if stage != "start":
                await store.claim(request())
            if stage != "claim":
                await store.reconcile("w1", [])
            await store.adopt_diverged("v1")
            await turns()
        await store.close()
        return [stage for stage in told if stage]

    assert asyncio.run(body()) == ["start", "claim", "release"]

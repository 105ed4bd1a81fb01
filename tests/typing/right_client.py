"""Right uses of clients, handles, workers and what workflow code calls: accepted, and inferred as asserted."""

from datetime import datetime, timedelta
from typing import assert_type
from uuid import UUID

import onward
from onward import AsyncClient, AsyncHandle, ChildHandle, Client, Handle, Pruned, Signal, Worker, step, workflow

approved = Signal("approved", bool)


@step
def double(number: int) -> int:
    return 2 * number


@workflow
async def child(item: str, times: int = 1) -> list[str]:
    return [item] * times


@workflow
async def parent(number: int) -> str:
    handle = await onward.start(child, "a", times=2)
    assert_type(handle, ChildHandle[list[str]])
    assert_type(await handle.result(), list[str])
    assert_type(await onward.start(child.using(queue="q"), "a"), ChildHandle[list[str]])
    assert_type(await onward.start(child.bind("a")), ChildHandle[list[str]])
    assert_type(await approved.wait(timeout=timedelta(days=1)), bool)
    assert_type(onward.now(), datetime)
    assert_type(onward.uuid4(), UUID)
    assert_type(onward.random(), float)
    assert_type(onward.patched("p"), bool)
    await onward.sleep(3.5)
    onward.progress({"at": 1})
    onward.log.info("doubled %s", await double(number))
    return onward.current().id


async def with_async_client(users: list[int]) -> None:
    async with AsyncClient("sqlite:///x.db") as client:
        assert_type(await client.start(parent, 42), AsyncHandle[str])
        assert_type(await client.start(parent.using(id="p", delay=timedelta(hours=1)), number=42), AsyncHandle[str])
        assert_type(await client.start(child, "a", times=3), AsyncHandle[list[str]])
        assert_type(await client.start(child.bind("a")), AsyncHandle[list[str]])
        assert_type(await client.start_many(parent.using(id=f"o-{u}").bind(u) for u in users), list[AsyncHandle[str]])
        assert_type(await client.run(parent, 42), str)
        assert_type(await client.handle("p", parent).result(timeout=30), str)
        await client.signal("p", approved, True)
        assert_type(await client.repair.prune(timedelta(days=30), status="failed", type=child), Pruned)


def with_client(users: list[int]) -> None:
    client = Client()
    assert_type(client.start(parent, 42), Handle[str])
    assert_type(client.start(parent, 42).result(), str)
    assert_type(client.start_many([parent.bind(user) for user in users]), list[Handle[str]])
    assert_type(client.handle("p", child).result(), list[str])
    assert_type(onward.run(parent.using(id="p"), 42), str)
    client.signal(client.handle("p"), approved, False)
    assert_type(client.repair.prune(3600, status=["completed", "failed"], dry_run=True), Pruned)


async def with_worker() -> None:
    async with Worker("sqlite:///x.db", workflows=[parent, child], slots=10, retention=timedelta(days=30)):
        pass

"""Starts, signals and cancels in the application's own transaction, on every kind of connection that `tx=` takes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from onward import (
    Client,
    NotCommitted,
    Signal,
    WorkflowAlreadyEnded,
    WorkflowIdConflict,
    WorkflowNotFound,
    workflow,
)
from tests.engine.support import Lab
from tests.engine.txsupport import KINDS, lab_of
from tests.engine.txsupport import own as own_on

approved = Signal("approved", bool)


@workflow
async def flow(n: int) -> int:
    """The plainest one."""
    return n


@workflow
async def other(n: int) -> int:
    """Another type."""
    return n


@workflow
async def wait_for_approval() -> bool:
    """Ends with the signal."""
    return await approved.wait()


@pytest.fixture
def lab(kind: str, tmp_path: Path) -> Lab:
    """A database that the application has a table in."""
    return lab_of(kind, tmp_path)


each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
async def test_a_start_is_there_once_the_transaction_is_committed_and_not_before(lab: Lab, kind: str) -> None:
    async with own_on(lab, kind) as own, lab.running(flow) as client:
        await own.begin()
        await own.order("a")
        handle = await own.start(flow.using(id="w", tx=own.tx).bind(7))
        assert (handle.id, handle.created) == ("w", True)
        assert (own.orders(), own.workflows()) == ([], [])
        await own.commit()
        assert (own.orders(), own.workflows()) == (["a"], ["w"])
        assert await client.handle("w", flow).result(timeout=10) == 7


@each_kind
async def test_a_start_is_gone_with_the_transaction_that_is_rolled_back(lab: Lab, kind: str) -> None:
    async with own_on(lab, kind) as own:
        await own.begin()
        await own.start(flow.using(id="w", tx=own.tx).bind(7))
        await own.order("a")
        await own.rollback()
        assert (own.orders(), own.workflows()) == ([], [])
        await own.begin()
        assert (await own.start(flow.using(id="w", tx=own.tx).bind(8))).created
        await own.commit()
        assert own.workflows() == ["w"]


@each_kind
async def test_an_id_gives_the_workflow_that_has_it_or_a_conflict_that_spoils_nothing(lab: Lab, kind: str) -> None:
    async with own_on(lab, kind) as own, lab.client() as client:
        await client.start(flow.using(id="old"), 1)
        await own.begin()
        assert not (await own.start(flow.using(id="old", tx=own.tx).bind(1))).created
        assert (await own.start(flow.using(id="new", tx=own.tx).bind(2))).created
        assert not (await own.start(flow.using(id="new", tx=own.tx).bind(n=2))).created
        for conflicting in (flow.using(id="old", tx=own.tx).bind(3), other.using(id="new", tx=own.tx).bind(2)):
            with pytest.raises(WorkflowIdConflict):
                await own.start(conflicting)
        await own.order("a")
        await own.commit()
        assert (own.orders(), own.workflows()) == (["a"], ["new", "old"])


@each_kind
async def test_start_many_starts_all_or_none(lab: Lab, kind: str) -> None:
    async with own_on(lab, kind) as own:
        await own.begin()
        handles = await own.start_many([flow.using(id=f"w{n}", tx=own.tx).bind(n) for n in range(3)])
        assert [(handle.id, handle.created) for handle in handles] == [("w0", True), ("w1", True), ("w2", True)]
        with pytest.raises(WorkflowIdConflict, match="w1"):
            await own.start_many([flow.using(id=f"w{n}", tx=own.tx).bind(9) for n in (7, 1, 8)])
        await own.order("a")
        await own.commit()
        assert (own.orders(), own.workflows()) == (["a"], ["w0", "w1", "w2"])


@each_kind
async def test_a_signal_arrives_with_the_commit_and_never_after_a_rollback(lab: Lab, kind: str) -> None:
    async with own_on(lab, kind) as own, lab.running(wait_for_approval) as client:
        handle = await client.start(wait_for_approval.using(id="w"))
        await lab.parked(handle, "approved")
        await own.begin()
        await own.signal("w", approved, False)
        await own.rollback()
        assert lab.sql("SELECT signals FROM onward_workflows") == [(0,)]
        await own.begin()
        await own.signal(handle, approved, True)
        assert lab.sql("SELECT count(*), (SELECT signals FROM onward_workflows) FROM onward_mailbox") == [(0, 0)]
        await own.commit()
        assert await handle.result(timeout=10) is True


@each_kind
async def test_a_start_and_its_signal_may_share_a_transaction(lab: Lab, kind: str) -> None:
    async with own_on(lab, kind) as own, lab.running(wait_for_approval) as client:
        await own.begin()
        handle = await own.start(wait_for_approval.using(tx=own.tx).bind())
        await own.signal(handle, approved, True)
        await own.commit()
        assert await client.handle(handle.id, wait_for_approval).result(timeout=10) is True


@each_kind
async def test_what_cannot_be_signalled_is_an_error_that_spoils_nothing(lab: Lab, kind: str) -> None:
    async with own_on(lab, kind) as own, lab.client() as client:
        await client.start(wait_for_approval.using(id="over"))
        await client.handle("over").cancel()
        await own.begin()
        with pytest.raises(WorkflowNotFound, match="nobody"):
            await own.signal("nobody", approved, True)
        with pytest.raises(WorkflowAlreadyEnded, match="cancelled"):
            await own.signal("over", approved, True)
        with pytest.raises(WorkflowNotFound, match="nobody"):
            await own.cancel("nobody")
        assert not await own.cancel("over")
        await own.order("a")
        await own.commit()
        assert own.orders() == ["a"]
        assert lab.sql("SELECT count(*) FROM onward_mailbox") == [(0,)]


@each_kind
async def test_a_cancel_takes_effect_with_the_commit(lab: Lab, kind: str) -> None:
    async with own_on(lab, kind) as own, lab.running(wait_for_approval) as client:
        waiting = await client.start(wait_for_approval.using(id="waiting"))
        unbegun = await client.start(flow.using(id="unbegun"), 1)  # no worker runs this type
        await lab.parked(waiting, "approved")
        await own.begin()
        assert await own.cancel("waiting")
        assert await own.cancel("unbegun")
        await own.rollback()
        assert [await waiting.status(), await unbegun.status()] == ["waiting", "pending"]
        await own.begin()
        assert await own.cancel("waiting")
        assert await own.cancel("unbegun")
        await own.commit()
        assert await unbegun.status() == "cancelled"
        await lab.in_status(waiting, "cancelled")


@each_kind
async def test_a_handle_that_is_asked_before_the_commit_says_so(lab: Lab, kind: str) -> None:
    async with own_on(lab, kind) as own:
        await own.begin()
        handle = await own.start(flow.using(id="w", tx=own.tx).bind(7))
        calls = (handle.result, handle.status, handle.info, handle.journal, handle.cancel, handle.retry)
        for call in calls:
            with pytest.raises(NotCommitted, match="commit the transaction") as caught:
                await own.do(call)
            assert caught.value.workflow_id == "w"
        with pytest.raises(NotCommitted):
            await own.do(lambda: own.client.signal(handle, approved, True))
        await own.commit()
        assert await own.do(handle.status) == "pending"
        assert await own.do(handle.cancel)


@each_kind
async def test_a_handle_of_a_start_that_was_rolled_back_says_so(lab: Lab, kind: str) -> None:
    async with own_on(lab, kind) as own:
        await own.begin()
        handle = await own.start(flow.using(tx=own.tx).bind(7))
        await own.rollback()
        with pytest.raises(NotCommitted, match="rolled back"):
            await own.do(handle.result)


@each_kind
async def test_only_the_given_connection_is_used_and_it_stays_open(lab: Lab, kind: str) -> None:
    """The blocking client makes no thread, the async one no connection, and the application goes on with what it gave."""
    async with own_on(lab, kind) as own:
        for name in ("a", "b"):
            await own.begin()
            await own.start(flow.using(id=name, tx=own.tx).bind(1))
            await own.order(name)
            await own.commit()
        assert (own.orders(), own.workflows()) == (["a", "b"], ["a", "b"])
        if isinstance(own.client, Client):
            assert own.client._private is None


@pytest.mark.parametrize("kind", ["aiosqlite", "async-psycopg", "asyncpg", "async-sqlalchemy-asyncpg"])
async def test_calls_that_share_an_async_connection_take_turns(lab: Lab, kind: str) -> None:
    """`gather` over one connection starts each workflow once; a conflict among them takes back itself alone."""
    async with own_on(lab, kind) as own:
        await own.begin()
        calls = [own.start(flow.using(id=f"w{n % 5}", tx=own.tx).bind(n % 5)) for n in range(20)]
        calls.append(own.start(flow.using(id="w0", tx=own.tx).bind(1)))
        calls += [own.start(flow.using(id=f"x{n}", tx=own.tx).bind(1)) for n in range(5)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(getattr(outcome, "created", False) for outcome in outcomes) == 10
        assert [type(outcome) for outcome in outcomes if isinstance(outcome, Exception)] == [WorkflowIdConflict]
        await own.commit()
        assert own.workflows() == [*(f"w{n}" for n in range(5)), *(f"x{n}" for n in range(5))]

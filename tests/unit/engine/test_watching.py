"""Waiting for outcomes: one reader for all who wait, woken by hints, with a slow poll underneath."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from onward._engine.watching import LINGER_S, POLL_S, OutcomeWatcher
from onward._store.base import Store
from onward._store.records import WorkflowRow
from onward.errors import FatalStoreError, StoreError, StoreMoved, TransientStoreError


def row(workflow_id: str) -> WorkflowRow:
    values: dict[str, Any] = dict.fromkeys(WorkflowRow.__struct_fields__)
    return WorkflowRow(**{**values, "id": workflow_id, "status": "completed"})


class FakeStore:
    """The protocol's `outcomes`, `check_serving` and `subscribe`."""

    def __init__(self) -> None:
        self.final: set[str] = set()
        self.looks: list[list[str]] = []
        self.errors: list[StoreError] = []
        self.listeners: list[Callable[[], None]] = []
        self.moved: StoreMoved | None = None

    async def check_serving(self) -> None:
        if self.moved is not None:
            raise self.moved

    async def outcomes(self, workflow_ids: Sequence[str]) -> list[WorkflowRow]:
        self.looks.append(sorted(workflow_ids))
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)
        return [row(workflow_id) for workflow_id in workflow_ids if workflow_id in self.final]

    def subscribe(self, notify: Callable[[], None]) -> Callable[[], None]:
        self.listeners.append(notify)
        return lambda: self.listeners.remove(notify)

    def commit(self, *workflow_ids: str) -> None:
        """These end, and everyone is told that something was committed."""
        self.final.update(workflow_ids)
        for listener in self.listeners:
            listener()


def watching() -> tuple[FakeStore, OutcomeWatcher]:
    store = FakeStore()
    return store, OutcomeWatcher(cast("Store", store))


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_a_workflow_that_is_final_already_is_found_at_once() -> None:
    """Without a hint and without a pause."""
    store, watcher = watching()
    store.final.add("a")
    assert (await watcher.wait("a")).id == "a"
    assert now() == 0.0
    await watcher.close()
    assert store.listeners == []


async def test_a_hint_ends_the_wait_long_before_the_poll() -> None:
    """Latency is that of the store's hint."""
    store, watcher = watching()
    waiting = asyncio.ensure_future(watcher.wait("a"))
    await asyncio.sleep(POLL_S / 10)
    assert not waiting.done()
    store.commit("a")
    assert (await waiting).id == "a"
    assert now() == pytest.approx(POLL_S / 10, abs=0.001)
    await watcher.close()


async def test_a_lost_hint_costs_one_poll() -> None:
    """Polling is the truth."""
    store, watcher = watching()
    waiting = asyncio.ensure_future(watcher.wait("a"))
    await asyncio.sleep(POLL_S / 10)
    store.final.add("a")
    await waiting
    assert POLL_S <= now() < POLL_S * 1.01
    await watcher.close()


async def test_who_waits_where_the_workflows_have_moved_is_told_at_the_next_poll() -> None:
    """Nothing ends there any more; what had ended before is still given."""
    store, watcher = watching()
    waiting = asyncio.ensure_future(watcher.wait("a"))
    await asyncio.sleep(POLL_S / 10)
    store.moved = StoreMoved("sqlite:///here.db", "sqlite:///there.db")
    with pytest.raises(StoreMoved):
        await waiting
    assert POLL_S <= now() < POLL_S * 1.01
    store.final.add("b")
    assert (await watcher.wait("b")).id == "b"
    await watcher.close()


async def test_all_who_wait_share_one_reader() -> None:
    """A hundred waiters cost one look for each hint, not a hundred; several may wait for one workflow."""
    store, watcher = watching()
    names = [f"w{number:02}" for number in range(50)]
    waiting = [asyncio.ensure_future(watcher.wait(name)) for name in names * 2]
    await asyncio.sleep(POLL_S / 10)
    assert store.looks == [names]
    assert len(store.listeners) == 1
    store.commit(*names)
    rows = await asyncio.gather(*waiting)
    assert [found.id for found in rows] == names * 2
    assert store.looks == [names, names]
    await watcher.close()
    assert store.listeners == []


async def test_only_those_still_waited_for_are_read() -> None:
    """Ended and abandoned ones are left out of the next look."""
    store, watcher = watching()
    a, b, c = (asyncio.ensure_future(watcher.wait(name)) for name in "abc")
    await asyncio.sleep(0.1)
    store.commit("a")
    await a
    b.cancel()
    await asyncio.sleep(0.1)
    store.commit("c")
    await c
    await asyncio.gather(b, return_exceptions=True)
    assert store.looks == [["a", "b", "c"], ["a", "b", "c"], ["c"]]
    await watcher.close()


async def test_one_waiter_that_gives_up_leaves_the_other_of_that_workflow_waiting() -> None:
    """A time-out of one `result()` is no other's."""
    store, watcher = watching()
    first, second = (asyncio.ensure_future(watcher.wait("a")) for _ in range(2))
    await asyncio.sleep(0.1)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    store.commit("a")
    assert (await second).id == "a"
    await watcher.close()


async def test_the_reader_ends_some_time_after_the_last_waiter_and_begins_again_with_the_next() -> None:
    """It lingers, reading nothing; then nobody subscribes for nobody."""
    store, watcher = watching()
    waiting = asyncio.ensure_future(watcher.wait("a"))
    await asyncio.sleep(0.1)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    looks = len(store.looks)
    await asyncio.sleep(LINGER_S / 2)
    assert len(store.listeners) == 1
    await asyncio.sleep(LINGER_S + POLL_S)
    assert store.listeners == []
    assert len(asyncio.all_tasks()) == 1
    assert len(store.looks) == looks
    store.final.add("b")
    assert (await watcher.wait("b")).id == "b"
    await watcher.close()


async def test_a_wait_that_begins_while_the_reader_lingers_is_answered_at_once() -> None:
    """By the same subscription."""
    store, watcher = watching()
    store.final.update(("a", "b"))
    await watcher.wait("a")
    await asyncio.sleep(LINGER_S / 2)
    began = now()
    await watcher.wait("b")
    assert now() == pytest.approx(began, abs=0.001)
    assert len(store.listeners) == 1
    await watcher.close()


async def test_a_wait_that_begins_while_the_reader_looks_is_not_overlooked() -> None:
    """Its workflow, final already, is found by the next look, without the poll."""
    store, watcher = watching()
    first = asyncio.ensure_future(watcher.wait("a"))
    while not store.looks:
        await asyncio.sleep(0)
    store.final.add("b")
    await watcher.wait("b")
    assert now() < POLL_S / 10
    store.commit("a")
    await first
    await watcher.close()


async def test_a_database_that_is_away_for_a_moment_is_asked_again() -> None:
    """Passing errors are nobody's result."""
    store, watcher = watching()
    store.errors = [TransientStoreError("busy")]
    store.final.add("a")
    assert (await watcher.wait("a")).id == "a"
    assert len(store.looks) == 2
    await watcher.close()


async def test_a_database_that_cannot_be_used_is_told_to_everyone_who_waits() -> None:
    """They would wait for ever."""
    store, watcher = watching()
    store.errors = [FatalStoreError("corrupt")]
    results = await asyncio.gather(watcher.wait("a"), watcher.wait("b"), return_exceptions=True)
    assert [str(error) for error in results] == ["corrupt", "corrupt"]
    await watcher.close()
    assert store.listeners == []


async def test_close_cancels_who_still_waits() -> None:
    """No task and no subscription is left."""
    store, watcher = watching()
    waiting = asyncio.ensure_future(watcher.wait("a"))
    await asyncio.sleep(0.1)
    await watcher.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert store.listeners == []

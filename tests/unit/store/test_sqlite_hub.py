"""The hub of one file: while this process commits all the time, its writers look for commits of others."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing

import pytest

from onward._store.operations import JournalOp
from onward._store.sqlite import hub as hub_module
from onward._store.sqlite.hub import Hub
from onward._store.sqlite.store import SqliteStore
from tests.conformance.support import SqliteWorld, entry, started_and_claimed


async def test_a_writer_that_is_asked_tells_of_commits_of_others_and_not_of_its_own(
    world: SqliteWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long workflow would otherwise wake its own worker a hundred times a second."""
    store = await world.open()
    assert isinstance(store, SqliteStore)
    world.worker(store)
    fence = await started_and_claimed(store)
    hub, told = store._database.shared.hub, 0

    def tell() -> None:
        nonlocal told
        told += 1

    monkeypatch.setattr(hub, "_tell", tell)

    async def commit(seq: int) -> int:
        nonlocal told
        told, hub._asks_writer = 0, True
        await store.write([JournalOp(fence, (entry(seq),))])
        assert not hub._asks_writer  # each question is answered once
        return told

    await commit(1)  # the first look has nothing to compare with
    assert await commit(2) == 0
    with closing(sqlite3.connect(world.path, isolation_level=None)) as other:
        other.execute("UPDATE onward_workflows SET updated_at = updated_at + 1")
    assert await commit(3) == 1
    assert await commit(4) == 0


class Stage(threading.Event):
    """The watching thread's event and its log: in each pause happens what is next, then all ends."""

    def __init__(self, hub: Hub, *pauses: Callable[[], None]) -> None:
        super().__init__()
        self._hub = hub
        self._pauses = list(pauses)

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        if timeout == hub_module.BUSY_PAUSE_S:
            self._pauses.pop(0)()
        else:
            self._hub._own_commits = 2  # the log has changed: there were commits of ours
            if not self._pauses:
                self._hub._own_commits = 0
                self.set()
        return True

    def interrupt(self) -> None:
        """Not needed."""

    def close(self) -> None:
        """Nothing to end."""


async def test_the_watch_asks_for_itself_only_where_no_writer_has(
    world: SqliteWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.open()
    hub = Hub(world.path)
    seen: list[str] = []

    def answered() -> None:
        assert hub._asks_writer
        hub._asks_writer = False
        seen.append("answered")

    def unanswered() -> None:
        assert hub._asks_writer
        seen.append("unanswered")

    def version(_: sqlite3.Connection) -> int:
        seen.append("asked")
        return len(seen)

    monkeypatch.setattr(hub_module, "_version", version)
    stage = Stage(hub, answered, unanswered, answered)
    hub._watch(stage, stage)
    assert seen == ["answered", "unanswered", "asked", "answered", "asked"]  # the last one: when all is quiet
    assert not hub._asks_writer

"""Hints of commits, where no notification can be heard."""

from __future__ import annotations

import asyncio

import pytest

from onward._store.postgres import hub
from onward._store.postgres.address import parse_address
from onward._store.postgres.database import Database
from onward._store.postgres.session import Session


def test_in_poll_only_mode_subscribers_are_told_again_and_again_until_they_leave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Behind a pooler nothing can be heard, and workers do not ask by themselves as often as that."""
    monkeypatch.setattr(hub, "POLL_S", 0.001)

    async def run() -> None:
        database = Database(parse_address("postgresql://nobody@nowhere.invalid/none?poll_only=1"))
        one = hub.Hub(database, Session(database))
        told, enough = 0, asyncio.Event()

        def tell() -> None:
            nonlocal told
            told += 1
            if told >= 3:
                enough.set()

        end = one.subscribe(asyncio.get_running_loop(), tell)
        await asyncio.wait_for(enough.wait(), 30)
        end()
        assert one._poll is None
        await one.close()

    asyncio.run(run())


def test_where_notifications_are_heard_nothing_polls() -> None:
    """An idle worker costs next to nothing."""

    async def run() -> None:
        database = Database(parse_address("postgresql://nobody@nowhere.invalid/none"))
        one = hub.Hub(database, Session(database))
        end = one.subscribe(asyncio.get_running_loop(), lambda: None)
        assert one._poll is None
        end()
        await one.close()

    asyncio.run(run())

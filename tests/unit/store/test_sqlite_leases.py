"""The lease connection of SQLite, where it differs from what every database does (tests/conformance)."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from onward._store.records import WorkerRow
from onward._store.sqlite.store import SqliteStore


async def test_a_renewal_is_no_news_but_the_coming_and_going_of_a_worker_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle worker would otherwise look for due rows after each renewal, once a second."""
    store = SqliteStore(str(tmp_path / "a.db"))
    await store.open()
    told: list[bool] = []
    monkeypatch.setattr(store._database.shared.hub, "publish", lambda conn=None, *, is_news=True: told.append(is_news))
    worker = WorkerRow(id="w1", name="w", host="h", pid=1, code_version="c", queues=("default",), types=("flow",))
    with contextlib.closing(store.leases()) as leases:
        leases.register(worker, 15_000_000)
        assert leases.renew("w1", 15_000_000)
        leases.retire("w1")
    await store.close()
    assert told == [True, False, True]

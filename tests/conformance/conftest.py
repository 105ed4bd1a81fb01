"""Every test of this directory runs once on each store."""

from __future__ import annotations

from pathlib import Path

import pytest

from onward._store.postgres import floors
from tests.conformance.support import WORLDS, World, pytest_pyfunc_call

__all__ = ["pytest_pyfunc_call"]


@pytest.fixture(params=sorted(WORLDS))
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    """An empty database."""
    return WORLDS[request.param](tmp_path)


@pytest.fixture(autouse=True)
def claims_look_at_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a loaded machine a claim takes long for once; what PostgreSQL's store does about claims that stay slow has tests of its
    own (tests/unit/store/test_postgres_floors.py), and delays rows that these tests want at once."""
    monkeypatch.setattr(floors, "SLOW_US", 10**12)

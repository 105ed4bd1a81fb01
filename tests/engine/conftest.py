"""Every test of this directory that takes `lab` runs in each mode, and fails if it leaves anything behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.support import MODES, STORES, Lab, no_leaks, pytest_pyfunc_call

__all__ = ["pytest_pyfunc_call"]


@pytest.fixture(autouse=True)
def leaks(tmp_path: Path) -> Iterator[None]:
    """Threads and connections end with the test."""
    with no_leaks(tmp_path):
        yield


@pytest.fixture(params=list(MODES))
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Lab:
    """An empty database, on each store and in each mode."""
    return Lab(MODES[request.param], tmp_path / "onward.db")


@pytest.fixture(params=STORES)
def plain_lab(request: pytest.FixtureRequest, tmp_path: Path) -> Lab:
    """An empty database on each store, for what no mode can change."""
    return Lab(MODES[request.param], tmp_path / "onward.db")


@pytest.fixture
def sqlite_lab(tmp_path: Path) -> Lab:
    """An empty SQLite file, for what only SQLite has."""
    return Lab(MODES["sqlite"], tmp_path / "onward.db")

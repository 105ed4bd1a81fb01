"""Tests of one store's own matters; async tests run as in tests/conformance."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.support import SqliteWorld, pytest_pyfunc_call

__all__ = ["pytest_pyfunc_call"]


@pytest.fixture
def world(tmp_path: Path) -> SqliteWorld:
    """An empty SQLite database."""
    return SqliteWorld(tmp_path)

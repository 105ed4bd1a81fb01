"""Every test of this directory runs once on each store."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.support import WORLDS, World, pytest_pyfunc_call

__all__ = ["pytest_pyfunc_call"]


@pytest.fixture(params=sorted(WORLDS))
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    """An empty database."""
    return WORLDS[request.param](tmp_path)

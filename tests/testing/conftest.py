"""Async tests run on a loop of their own, and nothing may be left behind: as in tests/engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from onward.testing import Environment
from tests.engine.support import no_leaks, pytest_pyfunc_call

__all__ = ["pytest_pyfunc_call"]


@pytest.fixture(autouse=True)
def leaks(tmp_path: Path) -> Iterator[None]:
    """Threads and connections end with the test."""
    with no_leaks(tmp_path):
        yield


@pytest.fixture(params=["memory", "sqlite"])
def environment(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Environment]:
    """Makes environments, in memory and on a file."""

    def make(**options: Any) -> Environment:
        return Environment(url=None if request.param == "memory" else f"sqlite:///{tmp_path}/onward.db", **options)

    return make

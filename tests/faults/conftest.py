"""Fixtures of the fault tests: the session's fork servers, and a scene for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.processes import ForkServers, fork_servers
from tests.faults.scenes import Scene


@pytest.fixture(scope="session")
def servers() -> Iterator[ForkServers]:
    """Fork servers with different hash seeds."""
    with fork_servers() as made:
        yield made


@pytest.fixture
def scene(tmp_path: Path, servers: ForkServers) -> Iterator[Scene]:
    """A database of one test; every process that it started is dead afterwards."""
    made = Scene(tmp_path / "scene", servers)
    yield made
    made.kill_all()

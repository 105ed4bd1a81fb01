"""Fixtures of the fault tests: the session's fork servers, and a scene on each database for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.databases import kinds_for
from tests.faults.processes import ForkServers, fork_servers
from tests.faults.scenes import Scene


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test that asks for a database runs on those that databases.py names for it."""
    if "kind" in metafunc.fixturenames:
        metafunc.parametrize("kind", kinds_for(metafunc.function.__name__), scope="module")


@pytest.fixture(scope="session")
def servers() -> Iterator[ForkServers]:
    """Fork servers with different hash seeds."""
    with fork_servers() as made:
        yield made


@pytest.fixture
def scene(tmp_path: Path, servers: ForkServers, kind: str) -> Iterator[Scene]:
    """A database of one test; every process that it started is dead afterwards."""
    made = Scene(tmp_path / "scene", servers, kind)
    yield made
    made.close()

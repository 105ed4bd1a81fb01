"""Fixtures of the tests on PostgreSQL: fork servers for worker processes, and a scene (tests/faults) in a database of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import servers
from tests.faults.databases import PostgresDatabase
from tests.faults.processes import ForkServers
from tests.postgres.loads import PostgresScene

__all__ = ["servers"]


@pytest.fixture
def scene(tmp_path: Path, servers: ForkServers) -> Iterator[PostgresScene]:
    """A database of one test; every process that it started is dead afterwards."""
    made = PostgresScene(tmp_path / "scene", servers, PostgresDatabase())
    yield made
    made.close()

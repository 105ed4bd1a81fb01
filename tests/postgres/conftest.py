"""Fixtures of the tests on PostgreSQL: fork servers for worker processes, a scene (tests/faults) in a database of its own, a lab (tests/engine)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.support import MODES, Lab, pytest_pyfunc_call
from tests.faults.conftest import servers
from tests.faults.databases import PostgresDatabase
from tests.faults.processes import ForkServers
from tests.postgres.loads import PostgresScene, start_trial

__all__ = ["pytest_pyfunc_call", "servers"]


@pytest.fixture
def scene(tmp_path: Path, servers: ForkServers) -> Iterator[PostgresScene]:
    """A database of one test; every process that it started is dead afterwards."""
    made = PostgresScene(tmp_path / "scene", servers, PostgresDatabase())
    yield made
    made.close()


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """An empty schema with a clock, workers and clients (tests/engine)."""
    return Lab(MODES["postgres"], tmp_path)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, servers: ForkServers) -> Iterator[PostgresScene]:
    """A trial (tests/faults/flows.py) that nothing has happened to."""
    made = PostgresScene(tmp_path_factory.mktemp("undisturbed"), servers, PostgresDatabase())
    start_trial(made)
    with made.worker():
        made.until_final()
    yield made
    made.close()

"""Settings for every test: how long hypothesis looks, no time limit on a single example on a busy machine, long files first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("default", deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", parent=settings.get_profile("default"), max_examples=25)
settings.register_profile("long", parent=settings.get_profile("default"), max_examples=2000)
settings.load_profile(os.environ.get("ONWARD_TEST_PROFILE", "default"))

HERE = Path(__file__).parent
LONG = (
    "docs/test_snippets.py", "faults/test_kill_loop.py", "examples/test_on_postgres.py", "faults/test_kill_points.py",
    "unit/store/test_sqlite_prune.py", "examples/test_demo.py", "postgres/test_errors.py", "postgres/test_lost_replies.py",
    "bench/test_benchmarks.py", "faults/test_copy.py", "conformance/test_agreement.py", "testing/test_fault_suite.py",
    "faults/test_kill_duties.py", "examples/test_ai_pipeline.py", "postgres/test_failover.py", "unit/store/test_postgres_floors.py",
    "postgres/test_chaos.py", "postgres/test_restarts.py", "postgres/test_terminations.py", "examples/test_examples.py",
    "cli/test_groups.py", "faults/test_blocked_worker.py", "postgres/test_diagnosis.py", "examples/test_webhook.py",
    "faults/test_poison.py", "faults/test_stalled_worker.py",
)  # fmt: skip
"""Files that take ten seconds and more, the longest first. `make test` gives each file to one of two processes: a long one that
comes last keeps one of them waiting for the other."""


def pytest_configure(config: pytest.Config) -> None:
    """By itself xdist begins with the files that have most tests, and those with few have the long ones."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; else everything as it was."""
    ranks = {HERE / name: rank for rank, name in enumerate(LONG)}
    items.sort(key=lambda item: ranks.get(item.path, len(LONG)))

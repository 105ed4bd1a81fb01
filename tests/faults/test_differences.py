"""The list of differences between the databases (databases.py) is about tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.faults.databases import LONG_ON_POSTGRES, ONLY_ON_SQLITE, kinds_for

TESTS = [
    name
    for file in Path(__file__).parent.glob("test_*.py")
    for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)
]


@pytest.mark.parametrize("part", [*ONLY_ON_SQLITE, *LONG_ON_POSTGRES])
def test_each_exception_is_about_one_test(part: str) -> None:
    """A test that is renamed does not silently run, or stay out, on the other database."""
    [name] = [one for one in TESTS if part in one]
    assert "sqlite" in kinds_for(name)

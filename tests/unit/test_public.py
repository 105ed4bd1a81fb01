"""The public names are those of `onward.__all__`, they exist, and importing the package costs next to nothing."""

from __future__ import annotations

import ast
import importlib
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import onward

SOURCE = Path(onward.__file__)


def _imported_for_type_checkers() -> dict[str, str]:
    """Name → module of the imports under TYPE_CHECKING."""
    blocks = [node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If)]
    return {
        alias.name: node.module or ""
        for block in blocks
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_every_public_name_exists() -> None:
    """What `__all__` promises can be imported, and is what its home module has under that name."""
    homes = _imported_for_type_checkers()
    assert {*homes, "__version__"} == set(onward.__all__)
    for name, home in homes.items():
        assert getattr(onward, name) is getattr(importlib.import_module(home), name)


def test_public_names_are_sorted_and_listed_by_dir() -> None:
    """dir(onward) and __all__ agree, in order."""
    assert onward.__all__ == sorted(onward.__all__) == dir(onward)


def test_every_error_is_public() -> None:
    """Whatever Onward raises can be caught by a public name."""
    errors = importlib.import_module("onward.errors")
    assert set(errors.__all__) <= set(onward.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    """hasattr() and a typing error work as with any module."""
    with pytest.raises(AttributeError, match="module 'onward' has no attribute 'worklfow'"):
        _ = onward.worklfow


def test_importing_the_package_loads_nothing_heavy() -> None:
    """`import onward` leaves asyncio, msgspec, click and sqlite3 alone."""
    script = (
        "import sys, onward; print(*sorted({'asyncio', 'msgspec', 'click', 'sqlite3', 'pydantic'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == ""


def test_the_version_is_shown_at_once() -> None:
    """`onward --version` takes under 150 ms of processor time (wall time would measure the machine's other work)."""
    assert min(_processor_seconds_of_version() for _ in range(5)) < 0.150


def _processor_seconds_of_version() -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run([sys.executable, "-m", "onward", "--version"], check=True, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert onward.__version__ in run.stdout
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

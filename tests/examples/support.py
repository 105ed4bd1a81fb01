"""How tests run an example: in a process of its own, with its files below the test's folder, or without a package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def require_demo() -> None:
    """Skip a test where `onward[demo]` is not installed."""
    for package in ("anthropic", "fastapi", "httpx", "stripe", "uvicorn"):
        pytest.importorskip(package)


def environment(folder: Path, url: str = "") -> dict[str, str]:
    """The environment of an example that puts its temporary files here; `url` names a PostgreSQL database instead."""
    return {**os.environ, "TMPDIR": str(folder), "ONWARD_DATABASE_URL": url}


def without(package: str, example: Path) -> str:
    """What an example says, and nothing but that, where a package is not installed; it must exit with 1."""
    require_demo()
    hide = f"import runpy, sys; sys.modules[{package!r}] = None; sys.path.insert(0, {str(example.parent)!r})"
    run = subprocess.run(
        [sys.executable, "-c", f"{hide}; runpy.run_path({str(example)!r}, run_name='__main__')"],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert run.returncode == 1
    assert run.stdout == ""
    return run.stderr

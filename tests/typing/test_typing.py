"""Both type checkers accept `right_*.py` and report exactly the lines of `wrong_*.py` that carry an error marker."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
RIGHT = sorted(HERE.glob("right_*.py"))
WRONG = sorted(HERE.glob("wrong_*.py"))

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def by_mypy() -> dict[str, set[int]]:
    """Lines that mypy --strict reports, by file name."""
    cache = ROOT / ".mypy_cache" / "typing_tests"
    run = _run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--no-pretty", "--cache-dir", str(cache)],
        {"MYPYPATH": str(ROOT / "src")},
    )
    assert run.returncode in (0, 1), f"mypy did not work:\n{run.stdout}{run.stderr}"
    found: dict[str, set[int]] = {}
    for line in run.stdout.splitlines():
        match = re.match(r"(?P<path>.+?):(?P<line>\d+): error: ", line)
        if match:
            found.setdefault(Path(match["path"]).name, set()).add(int(match["line"]))
    return found


@pytest.fixture(scope="module")
def by_pyright() -> dict[str, set[int]]:
    """Lines that pyright in strict mode reports, by file name."""
    run = _run(
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson"],
        {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
    )
    assert run.returncode in (0, 1), f"pyright did not work:\n{run.stdout}{run.stderr}"
    found: dict[str, set[int]] = {}
    for diagnostic in json.loads(run.stdout)["generalDiagnostics"]:
        if diagnostic["severity"] == "error":
            line = diagnostic["range"]["start"]["line"] + 1
            found.setdefault(Path(diagnostic["file"]).name, set()).add(line)
    return found


def _run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    files = [str(path.relative_to(ROOT)) for path in (*RIGHT, *WRONG)]
    return subprocess.run(
        [*command, *files], cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


def _marked(path: Path) -> set[int]:
    return {number for number, line in enumerate(path.read_text().splitlines(), 1) if line.endswith("# error")}


def test_there_is_something_to_check() -> None:
    """Right and wrong uses exist, and every file of wrong uses marks some."""
    assert RIGHT
    assert WRONG
    assert all(_marked(path) for path in WRONG)


@pytest.mark.parametrize("path", RIGHT, ids=lambda path: path.name)
def test_mypy_accepts_right_uses(path: Path, by_mypy: dict[str, set[int]]) -> None:
    """mypy --strict reports nothing in a file of right uses."""
    assert by_mypy.get(path.name, set()) == set()


@pytest.mark.parametrize("path", RIGHT, ids=lambda path: path.name)
def test_pyright_accepts_right_uses(path: Path, by_pyright: dict[str, set[int]]) -> None:
    """pyright reports nothing in a file of right uses."""
    assert by_pyright.get(path.name, set()) == set()


@pytest.mark.parametrize("path", WRONG, ids=lambda path: path.name)
def test_mypy_reports_wrong_uses(path: Path, by_mypy: dict[str, set[int]]) -> None:
    """mypy --strict reports exactly the marked lines."""
    assert by_mypy.get(path.name, set()) == _marked(path)


@pytest.mark.parametrize("path", WRONG, ids=lambda path: path.name)
def test_pyright_reports_wrong_uses(path: Path, by_pyright: dict[str, set[int]]) -> None:
    """pyright reports exactly the marked lines."""
    assert by_pyright.get(path.name, set()) == _marked(path)

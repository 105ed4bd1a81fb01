"""The layout check holds for this repository, and each of its rules finds what it is there to find."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tools import check_layout as layout

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small repository that keeps every rule."""
    write(tmp_path, "__init__.py", '__all__ = ["Client", "start"]')
    write(tmp_path, "errors.py", "")
    write(tmp_path, "_store/__init__.py", "")
    write(tmp_path, "_store/base.py", "from onward.errors import OnwardError")
    write(tmp_path, "_store/sqlite/__init__.py", "")
    write(tmp_path, "_store/sqlite/rows.py", "import sqlite3\nfrom onward._store.base import Store")
    write(tmp_path, "_engine/__init__.py", "")
    write(tmp_path, "_engine/runner.py", "from onward._store import base\nfrom onward.errors import OnwardError")
    write(tmp_path, "client.py", "from onward._engine import runner\n" + TWINS)
    write(tmp_path, "cli/__init__.py", "def main():\n    from onward.client import Client")
    return tmp_path


TWINS = """
class AsyncClient:
    async def start(self, number: int, *, key: str = "") -> AsyncHandle[str]: ...
    def handle(self) -> AsyncHandle[str]: ...
    async def _private(self) -> None: ...


class Client:
    def start(self, number: int, *, key: str = "") -> Handle[str]: ...
    def handle(self) -> Handle[str]: ...
"""


def write(root: Path, name: str, code: str) -> None:
    path = root / "src" / "onward" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'"""What it does."""\n{code}\n')


def findings(root: Path) -> list[str]:
    return [finding for rule in layout.RULES for finding in rule(root)]


@pytest.mark.parametrize("rule", layout.RULES, ids=lambda rule: rule.__name__)
def test_this_repository_keeps_the_rule(rule: Callable[[Path], list[str]]) -> None:
    """Nothing is found here."""
    assert rule(ROOT) == []


def test_a_tree_that_keeps_the_rules_has_no_findings(tree: Path) -> None:
    """The small repository of these tests is clean, so that each test below finds its own change only."""
    assert findings(tree) == []


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("long.py", "x = 1\n" * 499, "501 lines"),
        (
            "big.py",
            "class Big:\n" + "".join(f"    def m{n}(self): ...\n" for n in range(31)),
            "class Big has 31 public methods",
        ),
        ("utils.py", "", "named after its duty, not 'utils'"),
        ("_helpers.py", "", "not '_helpers'"),
        ("common/rows.py", "", "not 'common'"),
        ("_engine/a.py", "import sqlite3", "the engine imports the driver sqlite3"),
        ("_engine/a.py", "from onward._store.sqlite import rows", "the engine imports the driver onward._store.sqlite"),
        ("_engine/a.py", "from onward._store.sqlite.rows import x", "the engine imports the driver"),
        ("_engine/a.py", "import psycopg.rows", "the engine imports the driver psycopg.rows"),
        ("_engine/a.py", "from onward.client import Client", "_engine imports onward.client, which stands above it"),
        ("_engine/a.py", "from onward import client", "_engine imports onward.client"),
        ("_engine/a.py", "from ..client import Client", "_engine imports onward.client"),
        ("_engine/a.py", "from onward import Client", "imports the package's root"),
        ("_store/a.py", "import onward._engine.runner", "_store imports onward._engine.runner"),
        ("_store/sqlite/a.py", "from onward._engine import runner", "_store imports onward._engine"),
        ("retry.py", "from onward._store.base import Store", "retry imports onward._store.base"),
        ("worker.py", "from onward.cli import main", "worker imports onward.cli"),
        ("late.py", "def f():\n    import asyncio", "imports asyncio inside a function"),
        ("late.py", "class A:\n    async def f(self):\n        from onward.errors import X", "inside a function"),
        ("_codec/hints.py", "def f():\n    import attrs", "imports attrs inside a function"),
        ("start.py", "", "a module bears the name of the public onward.start"),
        ("client.py", TWINS.replace("key: str", "key: int", 1), "start() differs"),
        ("client.py", TWINS.replace("-> Handle[str]", "-> Handle[int]", 1), "start() differs"),
        ("client.py", TWINS + "    def more(self) -> None: ...", "more() differs"),
        ("client.py", TWINS.replace("Client:", "Other:"), "has no class AsyncClient, Client"),
        ("__init__.py", '__all__ = ["start", "Client"]', "__all__ is not sorted: start"),
        ("__init__.py", '__all__ = ["Client", "Client"]', "names something twice"),
        ("__init__.py", "__all__ = [*others]", "has no __all__ list"),
        ("web/__init__.py", "", "an empty package"),
        ("notes.md", "https://" + "pypi" + ".org/simple", "names the package registry's host"),
        ("uv.lock", "", "a lock file"),
    ],
)
def test_each_rule_finds_its_breach(tree: Path, name: str, code: str, says: str) -> None:
    """One change, one kind of finding, with the file's name in front."""
    write(tree, name, code)
    found = findings(tree)
    assert found
    assert all(says in finding and finding.startswith("src/onward") for finding in found), found


def test_a_module_says_what_it_does(tree: Path) -> None:
    """A file with code and without a docstring is found; an empty one is not."""
    (tree / "src/onward/bare.py").write_text("x = 1\n")
    (tree / "src/onward/empty.py").write_text("")
    assert [finding.partition(":")[0] for finding in findings(tree)] == ["src/onward/bare.py"]


def test_only_what_is_kept_counts(tree: Path) -> None:
    """In a git repository ignored files are left alone."""
    subprocess.run(["git", "init", "--quiet", str(tree)], check=True)
    (tree / ".gitignore").write_text("*.lock\n")
    (tree / "uv.lock").write_text("")
    assert findings(tree) == []
    (tree / "package-lock.json").write_text("")
    assert [finding.partition(":")[0] for finding in findings(tree)] == ["package-lock.json"]


def test_the_command_fails_with_findings(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`make check` stops where something was found."""
    assert layout.main(tree) == 0
    write(tree, "utils.py", "")
    assert layout.main(tree) == 1
    assert "1 findings" in capsys.readouterr().out

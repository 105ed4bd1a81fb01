"""The documents' links and code blocks hold, and the check finds those that do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import check_docs as docs

ROOT = Path(__file__).resolve().parents[2]


def test_the_documents_hold() -> None:
    """README, CHANGELOG and docs/ of this repository."""
    assert docs.check(ROOT) == []


def _page(root: Path, text: str) -> list[str]:
    (root / "docs").mkdir()
    (root / "docs" / "other.md").write_text("# Other page\n\n## What it's for: `code`\n")
    (root / "Makefile").write_text("test: x\n\tpytest\n")
    (root / "README.md").write_text(text)
    return docs.check(root)


def test_what_is_right_is_not_reported(tmp_path: Path) -> None:
    """Links to files, headings and other hosts; blocks with top-level await and in lists."""
    text = (
        "# Title\n[a](docs/other.md) [b](docs/other.md#what-its-for-code) [c](#title) [d](https://example.com/x)\n"
        "```python\nasync with f() as g:\n    await g\n```\n- item\n  ```console\n  $ make test\n  ```\n"
        "`[no](link)`\n```text\n[no](link)\n```\n"
    )
    assert _page(tmp_path, text) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[a](docs/missing.md)", "README.md:1: the link to docs/missing.md leads nowhere"),
        ("x\n![a](missing.png)", "README.md:2: the link to missing.png leads nowhere"),
        ("[a](docs/other.md#nothing)", "names no heading of other.md"),
        ("[a](#nothing)", "names no heading of README.md"),
        ("```python\nx = (\n```", "this Python does not compile"),
        ("```python\nx = 1\n", "opened and never closed"),
        ("```pyton\nx = 1\n```", "unknown language 'pyton'"),
        ("```console\n$ make tset\n```", "`make tset` is no target"),
    ],
)
def test_what_is_wrong_is_reported(tmp_path: Path, text: str, says: str) -> None:
    """Each finding names the page, the line and the problem."""
    (found,) = _page(tmp_path, text)
    assert says in found


def test_the_first_example_of_the_readme_is_the_shipped_one() -> None:
    """What a newcomer copies from the README is examples/hello.py, which the tests run."""
    first = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert first in (ROOT / "examples" / "hello.py").read_text()

"""Builds the documentation site: `python -m tools.build_docs`, which is what `make docs` runs after the checks.

Zensical makes the pages from mkdocs.yml, and any warning of it ends the build. Beside each page this puts its Markdown
(`tutorial.md` beside `tutorial.html`), and at the top `llms.txt`, which lists all pages with a sentence each, and
`llms-full.txt`, all of them in one file.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
_COMMENT = re.compile(r"^[ \t]*<!--.*?-->[ \t]*\n?", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")


@dataclass(frozen=True)
class Page:
    """A page as a reader sees it: its file under docs/, its section ("" at the top), and its Markdown without comments."""

    file: str
    section: str
    text: str

    @property
    def title(self) -> str:
        """The first heading."""
        return next(line[2:].strip() for line in self.text.splitlines() if line.startswith("# "))

    @property
    def sentence(self) -> str:
        """The first sentence: every page opens with one that says what it is about."""
        paragraph = self.text.partition("\n")[2].strip().partition("\n\n")[0]
        return re.split(r"(?<=[.])\s", " ".join(_LINK.sub(r"\1", paragraph).split()))[0]


def pages(root: Path) -> list[Page]:
    """All pages of the navigation in their order."""
    settings = yaml.safe_load((root / "mkdocs.yml").read_text())
    docs = root / settings["docs_dir"]
    return [Page(file, section, _visible((docs / file).read_text())) for section, file in _entries(settings["nav"])]


def _entries(nav: list[Any], section: str = "") -> Iterator[tuple[str, str]]:
    for entry in nav:
        if isinstance(entry, str):
            yield section, entry
        else:
            for name, below in entry.items():
                yield from _entries(below, name) if isinstance(below, list) else [(section, below)]


def _visible(text: str) -> str:
    """Without the comments, which speak to our tools; those inside code blocks stay."""
    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    kept = [part if number % 2 else _COMMENT.sub("", part) for number, part in enumerate(parts)]
    return re.sub(r"\n{3,}", "\n\n", "".join(kept)).strip() + "\n"


def index(root: Path) -> str:
    """The text of llms.txt."""
    settings = yaml.safe_load((root / "mkdocs.yml").read_text())
    lines = [f"# {settings['site_name']}", "", f"> {settings['site_description']}.", ""]
    section: str | None = None
    for page in pages(root):
        if page.section != section:
            section = page.section
            lines += ["", f"## {section or 'Start'}", ""]
        lines.append(f"- [{page.title}]({page.file}): {page.sentence}")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def build(root: Path) -> int:
    """Build everything into site/; the exit code, 0 if there was no warning."""
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    made = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if made.returncode:
        said = re.sub(r"\x1b\[[0-9;]*m", "", made.stdout + made.stderr)
        print(said.partition("Traceback (most recent call last)")[0].rstrip(), file=sys.stderr)
        return made.returncode
    site = root / "site"
    found = pages(root)
    for page in found:
        (site / page.file).write_text(page.text)
    (site / "llms.txt").write_text(index(root))
    (site / "llms-full.txt").write_text("\n".join(f"<!-- {page.file} -->\n{page.text}" for page in found))
    print(f"docs: {len(found)} pages in {site}")
    return 0


if __name__ == "__main__":
    sys.exit(build(ROOT))

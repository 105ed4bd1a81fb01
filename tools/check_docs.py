"""Checks the README and docs/: links lead somewhere, Python blocks compile, shell blocks name commands that exist.

Run by `make docs` and `make check`; tested by tests/unit/test_docs.py. It runs no block and opens no connection: links to
other hosts are not followed.
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)(?:\s+\"[^\"]*\")?\)|!\[[^\]]*\]\((?P<image>[^)\s]+)\)")
FENCE = re.compile(r"^(?P<indent> *)(?P<mark>```+|~~~+)(?P<language>[\w+-]*)[^\n]*$")
HEADING = re.compile(r"^#{1,6}\s+(?P<text>.+?)\s*#*$")
LANGUAGES = {
    "python", "console", "bash", "sh", "sql", "text", "toml", "json", "pycon", "yaml", "ini", "dockerfile", "html", "",
    "py",  # a signature: highlighted, neither compiled nor run
}  # fmt: skip
MAKE = re.compile(r"^\s*\$?\s*make ([a-z]+)", re.MULTILINE)


def check(root: Path) -> list[str]:
    """Every finding, one sentence each with the place in front."""
    pages = [
        page
        for page in [root / "README.md", root / "CHANGELOG.md", *sorted((root / "docs").rglob("*.md"))]
        if page.exists()
    ]
    found: list[str] = []
    targets = _make_targets(root)
    for page in pages:
        name = page.relative_to(root)
        text = page.read_text()
        found.extend(f"{name}:{line}: {problem}" for line, problem in _fence_problems(text, targets))
        found.extend(f"{name}:{line}: {problem}" for line, problem in _link_problems(text, page))
    return found


def _fence_problems(text: str, targets: set[str]) -> Iterator[tuple[int, str]]:
    for line, language, code in _fences(text):
        if code is None:
            yield line, "a code block is opened and never closed"
        elif language not in LANGUAGES:
            yield line, f"unknown language {language!r} of a code block"
        elif language == "python":
            try:
                compile(textwrap.dedent(code), "<block>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            except SyntaxError as error:
                yield line + (error.lineno or 0), f"this Python does not compile: {error.msg}"
        elif language in ("console", "bash", "sh"):
            for match in MAKE.finditer(code):
                if match[1] not in targets:
                    yield line, f"`make {match[1]}` is no target of the Makefile"


def _link_problems(text: str, page: Path) -> Iterator[tuple[int, str]]:
    for number, line in _prose(text):
        for match in LINK.finditer(re.sub(r"`[^`]*`", "", line)):
            target = match["target"] or match["image"]
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            if not file.exists():
                yield number, f"the link to {target} leads nowhere"
            elif anchor and file.suffix == ".md" and anchor not in _anchors(file.read_text()):
                yield number, f"{target} names no heading of {file.name}"


def _fences(text: str) -> Iterator[tuple[int, str, str | None]]:
    """Each code block: the line it opens at, its language, its text (None where it never closes)."""
    mark, start, language, code = "", 0, "", list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        match = FENCE.match(line)
        if mark:
            if match and match["mark"].startswith(mark) and not match["language"]:
                yield start, language, "\n".join(code)
                mark = ""
            else:
                code.append(line)
        elif match:
            mark, start, language, code = match["mark"], number, match["language"], []
    if mark:
        yield start, language, None


def _prose(text: str) -> Iterator[tuple[int, str]]:
    """The numbered lines outside of code blocks."""
    mark = ""
    for number, line in enumerate(text.splitlines(), 1):
        match = FENCE.match(line)
        if match and (not mark or (match["mark"].startswith(mark) and not match["language"])):
            mark = "" if mark else match["mark"]
        elif not mark:
            yield number, line


def _anchors(text: str) -> set[str]:
    headings = [match["text"] for _, line in _prose(text) if (match := HEADING.match(line))]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _make_targets(root: Path) -> set[str]:
    makefile = root / "Makefile"
    return set(re.findall(r"^([a-z]+):", makefile.read_text(), re.MULTILINE)) if makefile.exists() else set()


def main(root: Path) -> int:
    """Print every finding; 1 if there is any."""
    findings = check(root)
    for finding in findings:
        print(finding)
    print(f"docs: {len(findings)} findings" if findings else "docs: links and code blocks hold")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent.parent))

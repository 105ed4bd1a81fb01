"""The documentation holds together: its pages, its reference, the tests it names, and the site that is built of it."""

from __future__ import annotations

import ast
import inspect
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

import onward
from tools import build_docs, reference

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))


def test_every_page_is_in_the_navigation_once() -> None:
    """mkdocs.yml lists exactly the files of docs/."""
    listed = [page.file for page in build_docs.pages(ROOT)]
    assert sorted(listed) == PAGES


@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_with_its_title_and_a_sentence_that_says_what_it_is_about(name: str) -> None:
    """Both are what llms.txt and a search show of it."""
    page = next(page for page in build_docs.pages(ROOT) if page.file == name)
    assert page.text.startswith(f"# {page.title}\n\n")
    assert page.text.count("\n# ") == len(re.findall(r"^# ", _code(page.text), re.MULTILINE))
    assert re.match(r"[A-Z`*\"].{20,300}\.$", page.sentence), page.sentence


def _code(text: str) -> str:
    return "\n".join(re.findall(r"^```.*?^```", text, re.MULTILINE | re.DOTALL))


def test_the_reference_is_what_the_docstrings_say() -> None:
    """`make fmt` writes it; every public name is on one page."""
    written = reference.pages()
    for name, text in written.items():
        assert (DOCS / name).read_text() == text, f"docs/{name} is stale: run python -m tools.reference"
    headings = re.findall(r"^## (\w+)$", "\n".join(written.values()), re.MULTILINE)
    assert set(onward.__all__) - {"__version__"} <= set(headings)


@pytest.mark.parametrize(
    "test", sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (DOCS / "guarantees.md").read_text())))
)
def test_a_test_that_proves_a_promise_exists(test: tuple[str, str]) -> None:
    """guarantees.md names tests by file and function."""
    file, function = test
    tree = ast.parse((ROOT / file).read_text())
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert function in functions, f"{file} has no test {function!r}"


def test_each_promise_names_a_test() -> None:
    """Seven promises, word for word those of the README, each with its proof."""
    text = (DOCS / "guarantees.md").read_text()
    promises = re.split(r"^### ", text.partition("## Not promised")[0], flags=re.MULTILINE)[1:]
    titles = [promise.partition("\n")[0] for promise in promises]
    in_readme = re.findall(
        r"^- (.+)\.$", (ROOT / "README.md").read_text().partition("## What is promised")[2], re.MULTILINE
    )
    assert titles == in_readme[: len(titles)]
    assert len(titles) == 7
    assert all(re.search(r"`tests/\S+::test_\w+`", promise) for promise in promises)


def test_the_configuration_page_leaves_nothing_out() -> None:
    """Every environment variable that the library reads, and every option of a worker with its default."""
    text = (DOCS / "reference-configuration.md").read_text()
    source = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    for variable in sorted(set(re.findall(r"\bONWARD_[A-Z_]*[A-Z]\b", source))):
        assert f"`{variable}`" in text, variable
    worker = text.partition("## Worker options")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", worker, re.MULTILINE))
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(onward.Worker).parameters.items()
        if not name.startswith("_")
    }
    assert set(rows) == set(parameters)
    for name, parameter in parameters.items():
        if isinstance(parameter.default, int | float | bool):
            assert (
                rows[name].partition(" ")[0].strip("`") == f"{parameter.default:g}"
                or rows[name] == f"`{parameter.default}`"
            )


class _Links(HTMLParser):
    """Addresses of what a page loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in {"script", "img", "iframe"} and values.get("src"):
            self.loaded.append(values["src"] or "")
        if tag == "link" and values.get("rel") in {"stylesheet", "preconnect", "preload"}:
            self.loaded.append(values.get("href") or "")


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    """`make docs`: each page as HTML and as Markdown, llms.txt with a line for each."""
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    shutil.copytree(DOCS, tmp_path / "docs")
    assert build_docs.build(tmp_path) == 0
    site = tmp_path / "site"
    index = (site / "llms.txt").read_text()
    for name in PAGES:
        html = (site / name).with_suffix(".html").read_text()
        links = _Links()
        links.feed(html)
        assert links.loaded
        assert not [address for address in links.loaded if re.match(r"(https?:)?//", address)]
        assert not re.search(r"^[ \t]*<!-- *snippet:", (site / name).read_text(), re.MULTILINE), name
        assert re.search(rf"^- \[.+\]\({name}\): .+\.$", index, re.MULTILINE), name
    assert (site / "llms-full.txt").stat().st_size > 50_000


@pytest.mark.slow
def test_a_link_that_leads_nowhere_ends_the_build(tmp_path: Path) -> None:
    """Warnings of the generator are errors."""
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    shutil.copytree(DOCS, tmp_path / "docs")
    with (tmp_path / "docs" / "index.md").open("a") as page:
        page.write("\n[nowhere](nothing.md)\n")
    assert build_docs.build(tmp_path) != 0

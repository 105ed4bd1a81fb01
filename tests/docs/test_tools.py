"""The parts of the documentation tools: output is compared as a reader does, docstrings and signatures become Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, overload

import pytest

from tests.docs.blocks import BadInstruction, Block, blocks, commands
from tests.docs.shown import agrees, begins
from tools.build_docs import Page, index
from tools.docstrings import markdown
from tools.signatures import signature

HERE = Path("/tmp/somewhere/app")


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        ("one\ntwo", "one\ntwo\n"),
        ("a  b", "a     b  "),
        ("…\nlast", "one\ntwo\nlast"),
        ("first\n…", "first"),
        ("id … is there", "id 7 is there"),
        ("in /home/ann/app/x.db", "in /tmp/somewhere/app/x.db"),
        ("01a2030d-ed17-7bce-be92-19b2a3d54702", "01a20388-3bce-777f-ac00-388745b4fd12"),
        ("at 2026-11-22 11:39:36,440 INFO", "at 2027-01-01 00:00:01,001 INFO"),
        ("(in 3 d) +5.5 ms, 2 min 3 s", "(in 2 d 23 h) +12 ms, 9.5 s"),
        ("3 passed in 0.42s", "3 passed in 12.01s"),
    ],
)
def test_output_agrees_where_only_what_varies_is_different(shown: str, said: str) -> None:
    assert agrees(shown, said, HERE)


@pytest.mark.parametrize(
    ("shown", "said"),
    [("one", "two"), ("one", "one\ntwo"), ("one\ntwo", "one"), ("a.c", "abc"), ("3 tries", "4 tries"), ("…x", "y")],
)
def test_output_disagrees_where_anything_else_is_different(shown: str, said: str) -> None:
    assert not agrees(shown, said, HERE)


def test_a_beginning_is_enough_where_a_process_goes_on() -> None:
    assert begins("one\n…\nthree", "one\ntwo\nthree\nfour", HERE)
    assert not begins("one\ntwo\nthree", "one\ntwo", HERE)


def test_blocks_know_their_line_their_file_and_their_instructions() -> None:
    text = (
        "# T\n```python\n# a.py\nx = 1\n```\n- item\n  <!-- snippet: raises OSError -->\n  ```python\n  y\n  ```\n"
        "<!-- an ordinary comment -->\n<!-- snippet: setup\nz = 1\n-->\n"
    )
    first, second, third = blocks(text)
    assert (first.line, first.file, first.instructions) == (3, "a.py", {})
    assert (second.line, second.code, second.instructions) == (9, "y\n", {"raises": "OSError"})
    assert (third.line, third.language, third.code) == (13, "python", "z = 1\n")


def test_commands_have_the_output_below_them_and_go_on_behind_a_backslash() -> None:
    block = Block(5, "console", "$ one \\\n    --more\n$ two\n  said\n\n  more\n")
    assert [(command.line, command.text, command.output) for command in commands(block)] == [
        (5, "one --more", None),
        (7, "two", "  said\n\n  more"),
    ]


def test_an_instruction_that_is_unknown_or_stands_alone_is_refused() -> None:
    with pytest.raises(BadInstruction, match="line 1"):
        list(blocks("<!-- snippet: dance -->\n"))
    with pytest.raises(BadInstruction, match="right before a code block"):
        list(blocks("<!-- snippet: fresh -->\nwords\n"))


@overload
def overloaded(self: object, one: int, /, *rest: str) -> str: ...
@overload
def overloaded(self: object, one: str, /) -> str: ...
def overloaded(self: object, one: Any, /, *rest: Any) -> Any:
    """Two overloads."""


def plain(one: int, /, two: str = "x", *, three: float = 1.5, _private: int = 0) -> list[Callable[..., int]]:
    """No overloads."""
    return []


def test_a_signature_is_shown_as_one_writes_it() -> None:
    assert signature("overloaded", overloaded, is_method=True) == "overloaded(one: int, /, *rest: str) -> str"
    assert signature("plain", plain) == (
        "plain(one: int, /, two: str = 'x', *, three: float = 1.5) -> list[Callable[..., int]]"
    )
    long = signature("a_function_with_a_very_long_name", plain)
    assert long.startswith("a_function_with_a_very_long_name(\n    one: int,\n    /,\n    two: str = 'x',\n    *,\n")


def test_a_docstring_becomes_markdown() -> None:
    text = (
        "What it does, with ``code``.\n\nArgs:\n    one: the first,\n        on two lines. two: the second; e.g.: this.\n"
        "    three, four: more.\n\nRaises:\n    OSError: never. ValueError: always: yes.\n\n>>> 1 + 1\n2\n\nExample::\n\n    call()\n"
    )
    made = markdown(
        text, {"one", "two", "three", "four"}, {"OSError", "ValueError"}, lambda match: f"[{match[0]}](x.md)"
    )
    assert "What it does, with `code`." in made
    assert "- `one`: the first, on two lines.\n- `two`: the second; e.g.: this.\n- `three`, `four`: more.\n" in made
    assert "- [`OSError`](x.md): never.\n- [`ValueError`](x.md): always: yes.\n" in made
    assert "```pycon\n>>> 1 + 1\n2\n```" in made
    assert "```python\ncall()\n```" in made
    assert len(re.findall("snippet: skip, ", made)) == 2


def test_a_page_in_the_index_has_its_title_and_its_first_sentence(tmp_path: Path) -> None:
    page = Page("a.md", "", "# A title\n\nThe [first](b.md) sentence\ngoes on. The second.\n\nMore.\n")
    assert (page.title, page.sentence) == ("A title", "The first sentence goes on.")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("# A\n<!-- hidden -->\n\nOne. Two.\n```html\n<!-- shown -->\n```\n")
    (tmp_path / "mkdocs.yml").write_text(
        "site_name: S\nsite_description: D\ndocs_dir: docs\nnav:\n  - a.md\n  - Part: [a.md]\n"
    )
    assert index(tmp_path) == "# S\n\n> D.\n\n## Start\n\n- [A](a.md): One.\n\n## Part\n\n- [A](a.md): One.\n"

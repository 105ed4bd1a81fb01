"""Turns docstrings of our style into Markdown; used by reference.py, knows no module and no page."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TypeAlias

Link: TypeAlias = Callable[[re.Match[str]], str]


def markdown(text: str, names: set[str], errors: set[str], link: Link) -> str:
    """A docstring as Markdown: its sections as lists, its examples as code.

    `names` are the parameters and attributes that it may explain, `errors` the exceptions; `link` turns a public name in
    backticks into a link, or returns it as it is.
    """
    out: list[str] = []
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        line = lines[number]
        section = re.fullmatch(r"(Args|Attributes|Raises|Returns|Yields):", line)
        one_line = re.fullmatch(r"(Raises|Returns): (.+)", line)
        if section:
            body, number = _indented(lines, number + 1)
            out.extend(_section(section[1], body, errors if section[1] == "Raises" else names, link))
            continue
        if one_line:
            body, number = _indented(lines, number + 1)
            out.extend(_section(one_line[1], [one_line[2], *body], errors, link))
            continue
        if line.startswith(">>>"):
            end = next((later for later in range(number, len(lines)) if not lines[later].strip()), len(lines))
            out.extend(
                ["", "<!-- snippet: skip, run as a doctest of its module -->", "```pycon", *lines[number:end], "```"]
            )
            number = end
            continue
        if line.endswith("::"):
            body, number = _indented(lines, number + 1)
            code = [*body]
            while code and not code[0]:
                code.pop(0)
            out.extend(
                [f"{line[:-2]}:", "", "<!-- snippet: skip, a fragment of a docstring -->", "```python", *code, "```"]
            )
            continue
        out.append(inline(line, link))
        number += 1
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip("\n") + "\n"


def _indented(lines: list[str], start: int) -> tuple[list[str], int]:
    end = start
    while end < len(lines) and (not lines[end].strip() or lines[end].startswith("    ")):
        end += 1
    body = [line[4:] for line in lines[start:end]]
    while body and not body[-1].strip():
        body.pop()
    return body, end


def _section(title: str, body: list[str], known: set[str], link: Link) -> Iterator[str]:
    """`name: what` items as a list; several may stand on one line where their names are known."""
    text = " ".join(line.strip() for line in body)
    items = re.split(r"(?:(?<=[.;])|^)\s*(?=(?:\w+(?:, \w+)*): )", text)
    found: list[str] = []
    for item in items:
        name = item.partition(":")[0]
        if item and found and not all(part in known for part in name.split(", ")):
            found[-1] += f" {item}"
        elif item:
            found.append(item)
    yield from ("", f"{ {'Args': 'Arguments'}.get(title, title) }:", "")
    for item in found:
        name, colon, rest = item.partition(": ")
        words = inline(", ".join(f"`{part}`" for part in name.split(", ")), link)
        yield f"- {words}: {inline(rest.strip().rstrip(';'), link)}" if colon else f"- {inline(item, link)}"
    yield ""


def inline(text: str, link: Link) -> str:
    """Prose of a docstring as Markdown: public names and pages of docs/ become links."""
    text = re.sub(r"\bdocs/([\w-]+\.md)\b", r"[\1](\1)", text.replace("``", "`"))
    return re.sub(r"`(([A-Z]\w+)(?:\.[a-z]\w*)?)`", link, text)

"""Compares the output that a page shows with what a program really said; pure text.

Loosely, as a reader does: `…` stands for any text, a line that is nothing but `…` for any lines; runs of blanks count as
one; and what differs from run to run (ids, times, lengths of time, places, processes) is masked on both sides.
"""

from __future__ import annotations

import re
import socket
from pathlib import Path

ANYTHING = "…"
HOME = "/home/ann/app"
"""How pages write the directory that they are followed in."""

_TIME = r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?: UTC|Z|[+-]\d\d:\d\d)?"
_SPAN = r"(?<![\w.])\d+(?:\.\d+)?(?:e-\d+)? ?(?:us|µs|ms|min|s|h|d)\b"
_MASKS = (
    (re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), "<id>"),
    (re.compile(_TIME), "<time>"),
    (re.compile(r"\b\d{4}-\d\d-\d\d\b"), "<date>"),
    (re.compile(rf"{_SPAN}(?: {_SPAN})?"), "<span>"),
    (re.compile(r"\bhost:\d+\b"), "<process>"),
    (re.compile(r"\bjust now\b"), "<span> ago"),
)


def masked(text: str, here: Path) -> str:
    """The text without what is never the same twice."""
    text = text.replace(str(here.resolve()), "<here>").replace(str(here), "<here>").replace(HOME, "<here>")
    text = re.sub(rf"\b{re.escape(socket.gethostname())}:\d+\b", "<process>", text)
    for pattern, mask in _MASKS:
        text = pattern.sub(mask, text)
    lines = [re.sub(r"[ \t]+", " ", line).strip() for line in text.strip("\n").splitlines()]
    return "\n".join(lines)


def agrees(shown: str, said: str, here: Path) -> bool:
    """Whether all that was said is what the page shows."""
    return _pattern(shown, here).fullmatch(masked(said, here) + "\n") is not None


def begins(shown: str, said: str, here: Path) -> bool:
    """Whether all that the page shows has been said, and perhaps more after it."""
    return _pattern(shown, here).match(masked(said, here) + "\n") is not None


def _pattern(shown: str, here: Path) -> re.Pattern[str]:
    parts = []
    for line in masked(shown, here).split("\n"):
        if line == ANYTHING:
            parts.append(r"(?:.*\n)*?")
        else:
            parts.append(".*".join(re.escape(part) for part in line.split(ANYTHING)) + r"\n")
    return re.compile("".join(parts))

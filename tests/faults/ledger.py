"""The independent record of what really ran: one line for each beginning of a step body, appended to a plain file.

The bodies of flows.py write it from worker processes, the tests read it. It lies outside the database, so that the engine's
own word is never taken for what it did. A line is written by one `write` with O_APPEND: a SIGKILL loses none and tears none.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from time import time_ns  # by name: a test may put the clock of module `time` wrong
from typing import NamedTuple

from onward.context import current_step

_path: Path | None = None


class Line(NamedTuple):
    """One beginning of a step body."""

    workflow: str
    key: str
    tries: int
    pid: int
    at_us: int


def use_ledger(path: str | Path) -> None:
    """Bodies of this process write here from now on."""
    global _path
    _path = Path(path)


def note() -> Line:
    """Write a line for the body that is running, and return it."""
    assert _path is not None
    info = current_step()
    line = Line(info.workflow_id, info.key, info.try_number, os.getpid(), time_ns() // 1000)
    fd = os.open(_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(fd, (json.dumps(line) + "\n").encode())
    finally:
        os.close(fd)
    return line


def note_and_count() -> int:
    """The same; return how many lines this step has by now, this one included."""
    line = note()
    assert _path is not None
    return sum(other[:2] == line[:2] for other in read_ledger(_path))


def read_ledger(path: str | Path) -> list[Line]:
    """Every line so far, in the order of writing; a reader may come between the two halves of a write over a page's end."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [Line(*json.loads(line)) for line in text[: text.rfind("\n") + 1].splitlines()]

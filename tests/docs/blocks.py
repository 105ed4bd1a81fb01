"""Reads a page of the documentation into the blocks that the runner executes; pure text, nothing runs here.

A block is a fenced code block with the line it stands at and the hidden instructions right before it. An instruction is an
HTML comment that begins with `snippet:`; readers never see it. docs/development.md ("Docs that run") lists them all.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from tools.check_docs import FENCE

INSTRUCTIONS = {"skip", "file", "setup", "raises", "fresh", "output", "background", "kill", "worker", "postgres"}
_BARE = {"setup", "fresh", "output", "background", "worker", "postgres"}
_COMMENT = re.compile(r"<!--(.*?)-->", re.DOTALL)
_FILE_NAME = re.compile(r"# ([\w./-]+\.py)\s*")


class BadInstruction(ValueError):
    """A hidden instruction that cannot be followed; the message says where."""


@dataclass(frozen=True)
class Block:
    """One code block; `line` is that of its first line of code."""

    line: int
    language: str
    code: str
    instructions: dict[str, str] = field(default_factory=dict)

    @property
    def file(self) -> str | None:
        """The file that this block is: named by an instruction, or by a first line such as `# flows.py`."""
        named = self.instructions.get("file")
        match = _FILE_NAME.fullmatch(self.code.partition("\n")[0]) if self.language == "python" else None
        return named or (match[1] if match else None)


@dataclass(frozen=True)
class Command:
    """A line after `$ ` in a console block, and the output that is shown below it (None where none is)."""

    line: int
    text: str
    output: str | None


def blocks(text: str) -> Iterator[Block]:
    """Every block of a page in its order; hidden set-up code is a block of the language `python` as well."""
    waiting: dict[str, str] = {}
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        line = lines[number]
        fence = FENCE.match(line)
        if fence:
            end = next(
                (later for later in range(number + 1, len(lines)) if lines[later].strip() == fence["mark"]), len(lines)
            )
            code = textwrap.dedent("\n".join(lines[number + 1 : end])) + "\n"
            yield Block(number + 2, fence["language"], code, waiting)
            waiting = {}
            number = end
        elif line.lstrip().startswith("<!--"):
            end = next(later for later in range(number, len(lines)) if "-->" in lines[later])
            comment = _COMMENT.search("\n".join(lines[number : end + 1]))
            words = comment[1].strip() if comment else ""
            if words.startswith("snippet:"):
                name, rest = _instruction(words, number + 1)
                if name == "setup":
                    yield Block(number + 2, "python", rest + "\n", {"setup": ""})
                else:
                    waiting = {**waiting, name: rest}
            number = end
        elif line.strip() and waiting:
            raise BadInstruction(f"line {number + 1}: {sorted(waiting)} belong right before a code block")
        number += 1


def _instruction(words: str, line: int) -> tuple[str, str]:
    match = re.fullmatch(r"snippet:\s*(\w+)(?:,?[ \t]+|\n|$)(.*)", words, re.DOTALL)
    if match is None or match[1] not in INSTRUCTIONS:
        raise BadInstruction(f"line {line}: {words.splitlines()[0]!r}: there is {', '.join(sorted(INSTRUCTIONS))}")
    name, rest = match[1], match[2].rstrip()
    if name not in _BARE and not rest:
        raise BadInstruction(f"line {line}: `snippet: {name}` needs a word after it (skip: the reason)")
    return name, rest


def commands(block: Block) -> list[Command]:
    """The commands of a console block; a backslash at the end of a line goes on in the next."""
    found: list[Command] = []
    is_open = False
    for number, line in enumerate(block.code.rstrip("\n").split("\n"), block.line):
        if is_open:
            last = found[-1]
            found[-1] = replace(last, text=f"{last.text[:-1].rstrip()} {line.strip()}")
        elif line.startswith("$ "):
            found.append(Command(number, line[2:].strip(), None))
        elif found:
            last = found[-1]
            found[-1] = replace(last, output=line if last.output is None else f"{last.output}\n{line}")
        elif line.strip():
            raise BadInstruction(f"line {number}: a console block begins with a command: `$ …`")
        is_open = bool(found) and found[-1].output is None and found[-1].text.endswith("\\")
    return found

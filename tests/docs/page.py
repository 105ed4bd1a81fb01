"""Follows one page of the documentation from top to bottom, in a process and a directory of its own.

`main` is what that process runs (test_snippets.py starts it): every Python block in one namespace, as a script that grows;
blocks that name a file are written to it and imported; console blocks are typed into a terminal. The first thing that does
not do what the page says ends it with one message that names the page and the line.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import contextlib
import doctest
import importlib
import inspect
import io
import os
import re
import sys
import traceback
import types
from pathlib import Path
from typing import Any

from tests.docs.blocks import Block, blocks, commands
from tests.docs.postgres import OwnDatabase
from tests.docs.shown import agrees
from tests.docs.terminal import Terminal, WrongOutput

_ARROW = re.compile(r"#\s*->\s?(.*)$")


class Page:
    """The state of a reader: where they are, what they have typed and saved."""

    def __init__(self, path: Path, here: Path) -> None:
        self._path = path
        self._here = here
        self._runner = asyncio.Runner()
        self._module = types.ModuleType("__main__")
        self._terminal = Terminal(here)
        self._printed: dict[int, list[str]] = {}
        self._said = ""
        self._database: OwnDatabase | None = None
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._terminal.close()
        self._module = types.ModuleType("__main__")
        self._module.__dict__.update(__file__=str(self._path), print=self._print)
        sys.modules["__main__"] = self._module

    def close(self) -> None:
        """Stop what the page has started."""
        self._terminal.close()
        self._runner.close()
        if self._database is not None:
            self._database.close()

    def follow(self, block: Block) -> None:
        """Do what this block says."""
        told = block.instructions
        if "fresh" in told:
            self._begin_anew()
            self._here = self._terminal.here = self._here.parent / f"{self._path.stem}-{block.line}"
            self._here.mkdir()
            os.chdir(self._here)
        if "postgres" in told:
            self._database = OwnDatabase()
        if "skip" in told:
            return
        if "output" in told:
            if not agrees(block.code, self._said, self._here):
                raise WrongOutput(f"the code above should print\n{block.code}and printed\n{self._said}")
        elif "worker" in told:
            self._terminal.wait_for_worker(block.code)
        elif block.file is not None:
            self._save(block.file, block.code)
        elif block.language == "python":
            self._execute(block)
        elif block.language == "pycon":
            self._examples(block)
        elif block.language == "sql" and self._database is not None:
            line = block.line
            try:
                for line in self._database.run(block.line, block.code, self._here):  # noqa: B007  # of the statement under way
                    pass
            except Exception as error:
                raise _Located(line, error) from error
        elif block.language == "console":
            for command in commands(block):
                with _at(command.line):
                    self._terminal.type(command, in_background="background" in told, kill_once=told.get("kill"))

    def _save(self, name: str, code: str) -> None:
        """Write a file; one that can be imported is, so that it is known to be sound."""
        file = self._here / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code)
        if file.suffix == ".py" and all(
            part.isidentifier() for part in (*file.parent.parts[len(self._here.parts) :], file.stem)
        ):
            module = ".".join(file.relative_to(self._here).with_suffix("").parts)
            for known in [known for known in sys.modules if known == module or known.startswith(f"{module}.")]:
                del sys.modules[known]
            importlib.invalidate_caches()
            importlib.import_module(module)

    def _execute(self, block: Block) -> None:
        source = "\n" * (block.line - 1) + block.code
        expected = block.instructions.get("raises")
        output = io.StringIO()
        self._printed = {}
        try:
            with contextlib.redirect_stdout(output):
                self._run(
                    compile(source, str(self._path), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
                )
        except Exception as error:
            names = {cls.__name__ for cls in type(error).__mro__}
            if expected is None or not {name.strip() for name in expected.split(",")} & names:
                raise
        else:
            if expected is not None:
                raise WrongOutput(f"should raise {expected} and did not")
        self._said = output.getvalue()
        self._check_arrows(block)

    def _run(self, code: types.CodeType) -> None:
        if code.co_flags & inspect.CO_COROUTINE:
            self._runner.run(eval(code, self._module.__dict__))
        else:
            exec(code, self._module.__dict__)

    def _print(self, *values: object, **options: Any) -> None:
        """What the page's `print` is: as ever, and it is noted which line printed what."""
        frame = inspect.currentframe()
        caller = None if frame is None else frame.f_back
        if caller is not None and caller.f_code.co_filename == str(self._path):
            text = str(options.get("sep", " ")).join(map(str, values))
            self._printed.setdefault(caller.f_lineno, []).append(text)
        builtins.print(*values, **options)

    def _check_arrows(self, block: Block) -> None:
        """A line `print(…)  # -> text` has printed that text, each time that it ran, and it did run."""
        for number, line in enumerate(block.code.splitlines(), block.line):
            if match := _ARROW.search(line):
                printed = self._printed.get(number, [])
                if not printed or not all(agrees(match[1], text, self._here) for text in printed):
                    with _at(number):
                        raise WrongOutput(f"should print {match[1]!r} and printed {printed}")

    def _examples(self, block: Block) -> None:
        test = doctest.DocTestParser().get_doctest(
            block.code, self._module.__dict__, self._path.name, str(self._path), block.line - 1
        )
        report = io.StringIO()
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
        runner.run(test, out=report.write, clear_globs=False)
        if runner.summarize(verbose=False).failed:
            raise WrongOutput(report.getvalue())


class _Located(Exception):
    """What went wrong, and the line of the page."""

    def __init__(self, line: int, error: Exception) -> None:
        super().__init__(line, error)
        self.line, self.error = line, error


@contextlib.contextmanager
def _at(line: int) -> Any:
    try:
        yield
    except _Located:
        raise
    except Exception as error:
        raise _Located(line, error) from error


def main(path: str) -> int:
    """Follow a page in the present directory; 1 and a message on stderr where it is wrong."""
    file = Path(path)
    page = Page(file, Path.cwd())
    try:
        try:
            for block in blocks(file.read_text()):
                with _at(block.line):
                    page.follow(block)
        finally:
            page.close()
    except _Located as located:
        print(f"{file.name}:{located.line}: {_message(located.error, file)}", file=sys.stderr)
        return 1
    return 0


def _message(error: Exception, file: Path) -> str:
    if isinstance(error, WrongOutput):
        return str(error)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
    place = f" (line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}\n{''.join(traceback.format_exception(error))}"

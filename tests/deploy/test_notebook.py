"""The cells of docs/howto-notebook.md, run as a kernel runs them: all of them inside one running event loop."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from tests.deploy import support
from tests.docs.blocks import blocks

pytestmark = pytest.mark.slow

CELLS = [
    block.code
    for block in blocks((support.ROOT / "docs" / "howto-notebook.md").read_text())
    if block.language == "python"
]


def _promised(cell: str) -> list[str]:
    """What the page says that this cell prints."""
    return [match[1].strip() for match in re.finditer(r"# -> (.*)", cell)]


async def _run_cell(cell: str, names: dict[str, Any]) -> None:
    """As IPython does it: a cell that awaits is a coroutine of the running loop, any other is called from a task of it."""
    code = compile(cell, "<cell>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if code.co_flags & inspect.CO_COROUTINE:
        await eval(code, names)
    else:
        exec(code, names)


def test_the_cells_run_inside_a_running_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocking client, `onward.run`, the async client and a worker in the background."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ONWARD_DATABASE_URL", raising=False)
    notebook = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", notebook)

    async def all_of_them() -> None:
        for cell in CELLS:
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                await _run_cell(cell, notebook.__dict__)
            for line in _promised(cell):
                assert line in output.getvalue()

    assert sum(bool(_promised(cell)) for cell in CELLS) >= 3
    asyncio.run(all_of_them())


def test_the_cells_run_in_a_real_kernel(tmp_path: Path) -> None:
    """Where ipykernel and nbclient are installed."""
    pytest.importorskip("ipykernel")
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    nbclient.NotebookClient(
        notebook, timeout=support.PATIENCE_S, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    for cell, source in zip(notebook.cells, CELLS, strict=True):
        printed = "".join(output.get("text", "") for output in cell.outputs)
        for line in _promised(source):
            assert line in printed

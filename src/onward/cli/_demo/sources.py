"""The demo's real input: the source files of this Python's own standard library, in an order that never changes.

Pure reading; the steps of the pipeline call it in a worker, and the proof calls it again by itself, to know what the database
ought to hold.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
import warnings
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(sysconfig.get_paths()["stdlib"])

_NOT_LIBRARY = {"site-packages", "dist-packages", "__pycache__"}
_TESTS = {"test", "tests"}


@dataclass(frozen=True, slots=True)
class Document:
    """What the classifier says of one file."""

    path: str
    digest: str
    kind: str
    lines: int
    title: str


def source_files(count: int) -> list[str]:
    """Paths below ROOT of the first `count` source files, sorted; fewer where this Python has fewer.

    Up to a fifth are package markers (`__init__.py`), the smallest first: several of them are empty, so that there are real
    duplicates to drop. The others are modules that are no tests.
    """
    paths = {path.relative_to(ROOT): path for path in ROOT.rglob("*.py")}
    library = sorted(path for path in paths if _NOT_LIBRARY.isdisjoint(path.parts))
    markers = sorted(
        (path for path in library if path.name == "__init__.py"), key=lambda path: (paths[path].stat().st_size, path)
    )
    modules = [path for path in library if path.name != "__init__.py" and _TESTS.isdisjoint(path.parts)]
    chosen = markers[: max(2, count // 5)]
    chosen += modules[: count - len(chosen)]
    return sorted(path.as_posix() for path in chosen[:count])


def digest_of(path: str) -> str:
    """The hash of a file's content."""
    return hashlib.sha256((ROOT / path).read_bytes()).hexdigest()


def examine(path: str) -> Document:
    """Read, parse and classify one file."""
    content = (ROOT / path).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    lines = len(content.splitlines())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old string escapes in old files
            tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return Document(path, digest, "unreadable", lines, "")
    title = (ast.get_docstring(tree) or "").strip().partition("\n")[0]
    return Document(path, digest, _kind(path, tree), lines, title)


def _kind(path: str, tree: ast.Module) -> str:
    """One of: package, program, classes, functions, data, script."""
    body = tree.body
    functions = sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in body)
    classes = sum(isinstance(node, ast.ClassDef) for node in body)
    values = sum(isinstance(node, ast.Assign | ast.AnnAssign) for node in body)
    if path.endswith("__init__.py"):
        return "package"
    if any(_is_main_guard(node) for node in body):
        return "program"
    if classes or functions:
        return "classes" if classes >= functions else "functions"
    return "data" if values else "script"


def _is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "__name__" in ast.dump(node.test) and "__main__" in ast.dump(node.test)

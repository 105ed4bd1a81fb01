"""Writes the reference pages of the Python API, docs/reference-*.md, from the signatures and docstrings of what is public.

`python -m tools.reference` writes them (`make fmt` does), `--check` names those that are not up to date (tests/docs does the
same). Every name of `onward.__all__` and of `onward.testing.__all__` is on exactly one page: that of the module it lives in.
Nobody edits these pages; edit the docstring.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import itertools
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onward
from tools import docstrings
from tools.signatures import annotation, parameters, signature

ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Page:
    """A page: which modules' public names it holds, those of `first` first, the others by name."""

    file: str
    title: str
    opening: str
    modules: tuple[str, ...]
    first: tuple[str, ...] = ()


PAGES = (
    Page(
        "reference-definitions.md",
        "Definitions",
        "What turns functions into steps and workflows, and the policies that say when something is tried again.",
        ("onward.definitions", "onward._wrappers", "onward.retry"),
        ("workflow", "step", "call", "Workflow", "Step", "BoundWorkflow"),
    ),
    Page(
        "reference-workflow.md",
        "Inside workflows and steps",
        "What workflow code may call besides plain asyncio, and what a step can learn of itself.",
        ("onward.context", "onward._engine.replay.calls", "onward._engine.stepinfo"),
        ("sleep", "sleep_until", "now", "uuid4", "random", "Signal", "start", "ChildHandle", "progress", "patched"),
    ),
    Page(
        "reference-client.md",
        "Clients and handles",
        "How an application starts workflows, sends them signals, waits for their results and reads them.",
        ("onward.client", "onward.handle", "onward.info", "onward.repair"),
        ("run", "Client", "AsyncClient", "Handle", "AsyncHandle", "WorkflowInfo", "JournalEntry"),
    ),
    Page(
        "reference-worker.md",
        "Worker and codec",
        "The worker that runs workflows inside a process of yours, and the hook that changes how payloads are stored.",
        ("onward.worker", "onward.health", "onward.codec"),
        ("Worker",),
    ),
    Page(
        "reference-errors.md",
        "Errors",
        "Every exception that Onward raises on purpose, and those that your code raises to steer it.",
        ("onward.errors",),
        ("OnwardError",),
    ),
    Page(
        "reference-testing.md",
        "Testing kit",
        "What `onward.testing` offers for tests of workflows.",
        ("onward.testing",),
        ("Environment", "BlockingEnvironment", "Stub", "StepCall", "replay", "Replayed", "crash_everywhere"),
    ),
)

NOTE = "<!-- Written by tools/reference.py from the docstrings: edit those, then run `make fmt`. -->\n"


def pages() -> dict[str, str]:
    """File name → text of every reference page."""
    return {page.file: _text(page) for page in PAGES if _names(page)}


def _names(page: Page) -> list[tuple[str, Any]]:
    if page.modules == ("onward.testing",):
        package, names = importlib.import_module("onward.testing"), list(_testing_names())
    else:
        package, names = onward, [name for name in onward.__all__ if _page_of(name) is page]
    order = [*page.first, *sorted(names, key=str.lower)]
    return [(f"{package.__name__}.{name}", getattr(package, name)) for name in sorted(names, key=order.index)]


def _home(name: str) -> str:
    """The module in which a public name, written in full, lives."""
    package, _, short = name.rpartition(".")
    if package == "onward":
        return onward._HOME_OF[short]
    return f"{package}.{importlib.import_module(package)._HOMES[short]}"


def _testing_names() -> tuple[str, ...]:
    return tuple(importlib.import_module("onward.testing").__all__)


def _page_of(name: str) -> Page | None:
    """The page of a public name; None where it is none."""
    if name in _testing_names():
        return PAGES[-1]
    if name == "__version__" or name not in onward.__all__:
        return None
    home = onward._HOME_OF[name]
    for page in PAGES:
        if any(home == module or home.startswith(f"{module}.") for module in page.modules):
            return page
    raise SystemExit(f"onward.{name} lives in {home}, which no page of tools/reference.py holds: add it to one")


def _text(page: Page) -> str:
    parts = [f"# {page.title}\n", NOTE, f"{page.opening}\n"]
    if page.file == "reference-errors.md":
        parts.append(_tree(importlib.import_module("onward.errors").__doc__ or ""))
    for name, value in _names(page):
        parts.extend(_entry(name, value))
    return "\n".join(parts)


def _tree(docstring: str) -> str:
    """The tree that is drawn in the docstring of errors.py, as a list with links."""
    lines = []
    for line in docstring.splitlines():
        drawn = re.fullmatch(r" {4}(?P<branches>[│├└─ ]*)(?P<names>\w+(?:, \w+)*)(?:  +(?P<what>.*))?", line)
        if drawn:
            names = docstrings.inline(", ".join(f"`{name}`" for name in drawn["names"].split(", ")), _link)
            what = re.sub(r" {2,}", " ", drawn["what"] or "the base of all").partition(" (see ")[0]
            lines.append(f"{' ' * len(drawn['branches'])}- {names}: {what}")
    return "\n".join(lines) + "\n"


def _entry(name: str, value: Any) -> Iterator[str]:
    short = name.rpartition(".")[2]
    yield f"## {short}\n"
    if isinstance(value, type):
        yield from _class(name, value)
    elif callable(value):
        yield f"```py\n{signature(name, value)}\n```\n"
        yield _prose(inspect.getdoc(value), parameters(value))
    else:
        yield f"`{name}`: {_comment(short, _home(name))}\n"


def _class(name: str, cls: type) -> Iterator[str]:
    if issubclass(cls, Exception):
        bases = [_base(base, cls) for base in cls.__bases__ if base is not Exception]
        if bases:
            yield f"A subclass of {' and '.join(bases)}.\n"
    if cls.__name__ in MADE_BY_USERS or not (issubclass(cls, Exception) or getattr(cls, "_is_protocol", False)):
        is_plain = "__init__" not in vars(cls)
        head = f"{name}()" if is_plain else signature(name, vars(cls)["__init__"], is_method=True)
        head = head if cls.__name__ in MADE_BY_USERS else f"class {name}"
        yield f"```py\n{head}\n```\n"
    text = _prose(inspect.getdoc(cls), {*parameters(cls), *_attributes(cls)})
    if dataclasses.is_dataclass(cls) and cls.__name__ not in MADE_BY_USERS:
        fields = "\n".join(f"- `{field.name}`: `{field.type}`" for field in dataclasses.fields(cls))
        text = text if "Attributes:" in text else f"{text}\nFields:\n\n{fields}\n"
    yield text
    for member_name, member in _members(cls):
        if isinstance(member, property):
            yield f"### {cls.__name__}.{member_name}\n"
            kind = annotation(member.fget) if member.fget else ""
            yield f"```py\n{member_name}: {kind}\n```\n"
            yield _prose(inspect.getdoc(member), set())
        else:
            shown_name = "(call)" if member_name == "__call__" else member_name
            yield (
                f"### {cls.__name__}.{shown_name}\n" if shown_name == member_name else f"### Calling a {cls.__name__}\n"
            )
            is_async = "await " if inspect.iscoroutinefunction(member) else ""
            call = signature(member_name, member, is_method=True)
            yield f"```py\n{is_async}{call.removeprefix('__call__')}\n```\n"
            yield _prose(inspect.getdoc(member), parameters(member))


def _base(base: type, cls: type) -> str:
    public = next((each for each in base.__mro__ if _is_public(each)), None)
    if public is None:
        return f"`{base.__name__}`"
    here, there = _page_of(cls.__name__), _page_of(public.__name__)
    file = "" if here is there or there is None else there.file
    return f"[{public.__name__}]({file}#{public.__name__.lower()})"


MADE_BY_USERS = {"AsyncClient", "Client", "Environment", "PlainCodec", "Retry", "RetryLater", "Signal", "Worker"}
"""Classes that one calls; the others come from decorators, clients, handles and reads."""


def _members(cls: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that the class itself, or a private base of it, defines and explains, in their order."""
    if issubclass(cls, Exception):
        return
    own = [base for base in reversed(cls.__mro__) if base.__module__.startswith("onward.") and not _is_public(base)]
    if cls.__name__ in TWINS:
        own = []
    found = {name: value for base in (*own, cls) for name, value in vars(base).items()}
    for name, value in found.items():
        member = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        is_public = not name.startswith("_") or (name == "__call__" and cls.__name__ in {"Step", "Workflow"})
        is_shown = isinstance(member, (property, types.FunctionType)) and inspect.getdoc(member)
        if is_public and is_shown and name not in INTERNAL.get(cls.__name__, ()):
            yield name, member


def _is_public(cls: type) -> bool:
    """Whether a class is one that users name; what only its subclasses are is shown with those."""
    return _page_of(cls.__name__) is not None and _value(cls.__name__) is cls


TWINS = {"BlockingEnvironment"}
"""Classes whose inherited members are shown with the class they are the face of."""

INTERNAL = {
    "Step": ("spec",),
    "Workflow": ("spec", "options"),
    "WorkflowInfo": ("of",),
    "JournalEntry": ("of",),
    "StepInfo": ("cancel",),
    "Retry": ("wants", "delay_before"),
    "ChildHandle": ("spec",),
    "Stub": ("afresh", "answer"),
    "PlannedFault": ("is_hit",),
}
"""Public by name for the rest of the library alone."""


def _attributes(cls: type) -> set[str]:
    """Names that the docstring may explain under `Attributes:`."""
    fields = {field.name for field in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    return {*fields, *vars(cls), *_assigned(cls)}


def _assigned(cls: type) -> set[str]:
    """What `__init__` sets on self."""
    return {name for base in cls.__mro__ for name in getattr(vars(base).get("__init__"), "__code__", _EMPTY).co_names}


_EMPTY = compile("", "", "exec")


def _comment(name: str, module: str) -> str:
    """The string that stands below an assignment in its module."""
    body = ast.parse(inspect.getsource(importlib.import_module(module))).body
    for node, below in itertools.pairwise(body):
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        is_it = any(isinstance(target, ast.Name) and target.id == name for target in targets)
        if is_it and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            return docstrings.inline(" ".join(str(below.value.value).split()), _link)
    return ""


def _prose(text: str | None, names: set[str]) -> str:
    errors = {*onward.__all__, *_testing_names(), "TypeError", "TimeoutError"}
    return docstrings.markdown(text or "", names, errors, _link)


def _link(match: re.Match[str]) -> str:
    page = _page_of(match[2])
    if page is None:
        return match[0]
    has_heading = match[1] == match[2] or match[1] in _headings(match[2])
    anchor = (match[1] if has_heading else match[2]).lower().replace(".", "")
    return f"[{match[0]}]({page.file}#{anchor})"


def _value(name: str) -> Any:
    return getattr(importlib.import_module("onward.testing") if name in _testing_names() else onward, name)


@functools.cache
def _headings(name: str) -> set[str]:
    value = _value(name)
    return {f"{name}.{member}" for member, _ in _members(value)} if isinstance(value, type) else set()


def main(arguments: list[str]) -> int:
    """Write the pages, or with `--check` name those that differ; 1 if any does."""
    stale = []
    for name, text in pages().items():
        file = ROOT / "docs" / name
        if not file.exists() or file.read_text() != text:
            stale.append(name)
            if "--check" not in arguments:
                file.write_text(text)
    if "--check" in arguments:
        for name in stale:
            print(f"docs/{name} is not what the docstrings say; run: python -m tools.reference")
        return 1 if stale else 0
    print(f"reference: {', '.join(stale) or 'nothing'} written")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

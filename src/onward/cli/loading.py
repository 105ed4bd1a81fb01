"""Finds the user's code: modules and files, the workflows in them, a module-level `lifespan`.

Workers, `start` and `run` take the same names: `pkg.mod` or `path/file.py`, and `…:workflow` for one workflow. The working
directory is put on `sys.path`, as `python` does for its script.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import msgspec

from onward.cli.settings import Failure
from onward.definitions import Workflow
from onward.errors import CodecError, ConfigurationError, OnwardError, SchemaError
from onward.worker import Lifespan

BAD_INPUT = 2
LIBRARY = Path(__file__).resolve().parents[1]


def load_module(name: str) -> ModuleType:
    """Import `pkg.mod` or `file.py`; what goes wrong in it is bad input, shown with its place."""
    _put_on_path(Path.cwd())
    try:
        if name.endswith(".py") or os.sep in name:
            return _load_file(Path(name))
        return importlib.import_module(name)
    except Failure:
        raise
    except ConfigurationError as error:  # a definition that cannot work: the place says which
        if isinstance(error, SchemaError):
            raise
        raise Failure(f"{error}{_place_of(error)}", BAD_INPUT) from error
    except OnwardError:
        raise
    except ModuleNotFoundError as error:
        if ":" in name:
            raise Failure(
                f"{name!r} names a workflow; here the module alone is wanted: {name.partition(':')[0]}", BAD_INPUT
            ) from error
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            hint = f"; for a file write {name}.py" if "." not in name else ""
            raise Failure(f"no module {name!r} is found from {Path.cwd()}{hint}", BAD_INPUT) from error
        raise Failure(_import_failed(name, error), BAD_INPUT) from error
    except (Exception, SystemExit) as error:
        raise Failure(_import_failed(name, error), BAD_INPUT) from error


def _load_file(path: Path) -> ModuleType:
    """A file is imported under its dotted name from the topmost package around it, so that relative imports work."""
    file = path.resolve()
    if not file.is_file():
        raise Failure(f"there is no file {file}", BAD_INPUT)
    if not file.stem.isidentifier():
        return _load_apart(file)
    root, parts = file.parent, [file.stem]
    while (root / "__init__.py").is_file():
        parts.insert(0, root.name)
        root = root.parent
    _put_on_path(root)
    module = importlib.import_module(".".join(parts))
    if module.__file__ is not None and Path(module.__file__).resolve() == file:
        return module
    return _load_apart(file)


def _load_apart(file: Path) -> ModuleType:
    """A file whose name another module has (signal.py), or that no import statement could name."""
    name = f"_onward_file_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise Failure(f"{file} is no Python file", BAD_INPUT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _put_on_path(directory: Path) -> None:
    text = str(directory)
    if text not in sys.path:
        sys.path.insert(0, text)


def _import_failed(name: str, error: BaseException) -> str:
    """One line: what happened, and the last place in it that is not the import system's."""
    if isinstance(error, SyntaxError):
        place = f" ({error.filename}, line {error.lineno})"
        return f"importing {name!r} failed: {type(error).__name__}: {error.msg}{place}"
    place = _place_of(error)
    return f"importing {name!r} failed: {type(error).__name__}: {error}{place}; --log-level debug shows the traceback"


def _place_of(error: BaseException) -> str:
    """The file and line of the user's code that raised it, in parentheses; empty if there is none."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "importlib" not in frame.filename and not Path(frame.filename).is_relative_to(LIBRARY)
    ]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""


def workflows_of(module: ModuleType) -> dict[str, Workflow[..., Any]]:
    """The workflows that a module has, by the name they have in it; static methods as `Class.name`."""
    found: dict[str, Workflow[..., Any]] = {}
    for name, value in vars(module).items():
        if isinstance(value, Workflow):
            found[name] = value
        elif inspect.isclass(value) and value.__module__ == module.__name__:
            for inner, member in vars(value).items():
                bare = member.__func__ if isinstance(member, staticmethod) else member
                if isinstance(bare, Workflow):
                    found[f"{name}.{inner}"] = bare
    return found


def collect(names: Sequence[str]) -> tuple[list[Workflow[..., Any]], list[Lifespan]]:
    """All workflows of these modules, each once, and the modules' `lifespan`s."""
    workflows: dict[int, Workflow[..., Any]] = {}
    lifespans: dict[int, Lifespan] = {}
    for name in names:
        module = load_module(name)
        found = workflows_of(module)
        if not found:
            raise Failure(
                f"{_place(module)} has no workflow; decorate an async def function with @onward.workflow", BAD_INPUT
            )
        for workflow in found.values():
            workflows.setdefault(id(workflow.fn), workflow)
        lifespan = getattr(module, "lifespan", None)
        if lifespan is not None:
            if not (callable(lifespan) or isinstance(lifespan, AbstractAsyncContextManager)):
                raise Failure(
                    f"lifespan in {_place(module)} must be an async context manager or a function that gives one "
                    f"(@contextlib.asynccontextmanager), not {lifespan!r}",
                    BAD_INPUT,
                )
            lifespans.setdefault(id(lifespan), lifespan)
    return list(workflows.values()), list(lifespans.values())


def all_of(lifespans: Iterable[Lifespan]) -> Lifespan | None:
    """One lifespan that enters these in order, and leaves them in reverse."""
    several = list(lifespans)
    if len(several) <= 1:
        return several[0] if several else None

    @asynccontextmanager
    async def together() -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for lifespan in several:
                await stack.enter_async_context(lifespan() if callable(lifespan) else lifespan)
            yield

    return together


def find_workflow(target: str) -> Workflow[..., Any]:
    """The workflow of `pkg.mod:name` or `file.py:name`; the name is the variable's, else the type name."""
    module_name, colon, name = target.rpartition(":")
    if not colon or not module_name:
        module = load_module(target)
        known = ", ".join(f"{target}:{name}" for name in workflows_of(module)) or "it has none"
        raise click.UsageError(f"name a workflow of the module: {known}")
    module = load_module(module_name)
    workflows = workflows_of(module)
    found = workflows.get(name) or next((w for w in workflows.values() if w.name == name), None)
    if found is None:
        known = f"there is {', '.join(sorted(workflows))}" if workflows else "it has none"
        if hasattr(module, name):
            raise Failure(
                f"{name!r} in {_place(module)} is no workflow (@onward.workflow makes one); {known}", BAD_INPUT
            )
        raise Failure(f"{_place(module)} has no workflow {name!r}; {known}", BAD_INPUT)
    return found


def arguments_of(workflow: Workflow[..., Any], text: str | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a JSON array (by position) or object (by name), decoded by the workflow's type hints."""
    json = (text or "").strip() or "[]"
    if json[0] not in "[{":
        raise Failure(
            f"the arguments are a JSON array (by position) or object (by name), not {json[:80]}; "
            f"for one argument write '[{_as_json(json[:80])}]'",
            BAD_INPUT,
        )
    try:
        msgspec.json.decode(json)
    except msgspec.DecodeError as error:
        raise Failure(f"the arguments {json[:80]} are no JSON: {error}", BAD_INPUT) from error
    try:
        args, kwargs = workflow.spec.arguments.decode(json)
        workflow.spec.arguments.bind(args, kwargs)
    except CodecError as error:  # its cure speaks of stored JSON; here it was typed just now
        raise Failure(f"{error.where}: {error.__cause__ or error}", BAD_INPUT) from error
    except TypeError as error:
        takes = inspect.signature(workflow.fn).replace(return_annotation=inspect.Signature.empty)
        raise Failure(f"{error}; it takes {takes}", BAD_INPUT) from error
    return args, kwargs


def _as_json(text: str) -> str:
    """A text as it was typed if that is JSON, else as a JSON string."""
    try:
        msgspec.json.decode(text)
    except msgspec.DecodeError:
        return msgspec.json.encode(text).decode()
    return text


def _place(module: ModuleType) -> str:
    return str(module.__file__) if module.__file__ else f"module {module.__name__}"

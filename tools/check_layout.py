"""Checks the rules of the code's layout that no linter knows; run by `make check`, tested by tests/unit/test_layout.py.

Each rule is a function from the root of the repository to a list of findings, one sentence each with the place in front.
The rules are those of docs/development.md. Exceptions are listed here, each with its reason.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

LONGEST_FILE = 500
MOST_METHODS = 30
FORBIDDEN_STEMS = {"utils", "util", "helpers", "helper", "common", "manager", "managers"}
CODE_FOLDERS = ("src", "tests", "tools", "benchmarks", "examples")
PACKAGE = Path("src") / "onward"

LARGE_CLASSES = {
    "ReplayLoop": "asyncio.AbstractEventLoop dictates its methods",
}

# Imports inside functions: where (a file or folder of the package), what, and why.
LATE_IMPORTS: dict[tuple[str, str], str] = {
    ("cli", ""): "`onward --version` and `--help` answer before the engine is loaded",
    ("__init__.py", ""): "`import onward` costs nothing until a name is used; see there",
    ("testing/plugin.py", "onward"): "pytest loads it in every project that has Onward installed",
    ("_codec/hints.py", "pydantic"): "an optional library, asked only where msgspec does not know a hint",
    ("_store/opening.py", ""): "one database's driver is loaded when its URL is opened",
    ("_store/within/kinds.py", ""): "psycopg is loaded for its own connections only",
}

# Who may import whom: a part may import parts of its own or of a lower number.
LAYERS = {
    "errors": 0,
    "retry": 0,
    "codec": 0,
    "_codec": 0,
    "_version": 0,
    "_store": 1,
    "_engine": 2,
    "cli": 4,
    "web": 4,
    "integrations": 4,
    "testing": 4,
    "__init__": 5,
    "__main__": 5,
}
API_LAYER = 3  # every other module at the root of the package: client, worker, definitions, …
DRIVERS = re.compile(r"^(sqlite3|psycopg\b.*|onward\._store\.(sqlite|postgres|memory)\b.*)$")

# Written in pieces, so that this very file names no host.
REGISTRY_HOSTS = [
    "pypi" + ".org",
    "python" + "hosted.org",
    "npm" + "js.org",
    "npm" + "js.com",
    "crates" + ".io",
    "debian" + ".org",
]
LOCK_FILES = re.compile(r"(^|/)([^/]*\.lock|package-lock\.json|pnpm-lock\.yaml|npm-shrinkwrap\.json|constraints\.txt)$")

TWINS = (
    ("client.py", "AsyncClient", "Client"),
    ("handle.py", "AsyncHandle", "Handle"),
    ("repair.py", "AsyncRepair", "Repair"),
)


def file_length(root: Path) -> list[str]:
    """No file has more than 500 lines."""
    return [
        f"{path}: {count} lines; more than {LONGEST_FILE} hold two duties, split it"
        for path in _python_files(root)
        if (count := len((root / path).read_text().splitlines())) > LONGEST_FILE
    ]


def module_docstrings(root: Path) -> list[str]:
    """Every module says first what it does."""
    return [
        f"{path}: opens without a docstring; say what this file does, who calls it, what it must never do"
        for path in _python_files(root)
        if (tree := _tree(root / path)).body and ast.get_docstring(tree) is None
    ]


def class_size(root: Path) -> list[str]:
    """No class has more than 30 public methods."""
    found = []
    for path in _python_files(root, "src"):
        for node in ast.walk(_tree(root / path)):
            if isinstance(node, ast.ClassDef) and node.name not in LARGE_CLASSES:
                names = {name for name, _ in _methods(node) if not name.startswith("_")}
                if len(names) > MOST_METHODS:
                    found.append(f"{path}:{node.lineno}: class {node.name} has {len(names)} public methods; split it")
    return found


def file_names(root: Path) -> list[str]:
    """No file or folder is named after nothing in particular."""
    return [
        f"{path}: a file is named after its duty, not {part!r}"
        for path in _python_files(root)
        for part in path.with_suffix("").parts
        if part.strip("_") in FORBIDDEN_STEMS
    ]


def import_direction(root: Path) -> list[str]:
    """Imports go one way, and the engine imports no driver."""
    found = []
    for path in _python_files(root, str(PACKAGE)):
        part, layer = _part(path)
        for node, target in _imports(root / path, path):
            if part == "_engine" and DRIVERS.match(target):
                found.append(
                    f"{path}:{node.lineno}: the engine imports the driver {target}; it may know the protocols only"
                )
            if target.split(".")[0] == "onward" and target != "onward":
                other = target.split(".")[1]
                if LAYERS.get(other, API_LAYER) > layer:
                    found.append(f"{path}:{node.lineno}: {part} imports {target}, which stands above it")
            elif target == "onward" and layer < LAYERS["__init__"] - 1:
                found.append(f"{path}:{node.lineno}: {part} imports the package's root, which stands above it")
    return found


def imports_at_top(root: Path) -> list[str]:
    """Imports stand at the top of the file, listed exceptions apart."""
    found = []
    for path in _python_files(root, str(PACKAGE)):
        relative = path.relative_to(PACKAGE).as_posix()
        for function in ast.walk(_tree(root / path)):
            if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                continue
            for node in ast.walk(function):
                if isinstance(node, (ast.Import, ast.ImportFrom)):
                    names = (
                        [node.module or ""]
                        if isinstance(node, ast.ImportFrom)
                        else [alias.name for alias in node.names]
                    )
                    if not all(_is_excepted(relative, name) for name in names):
                        found.append(
                            f"{path}:{node.lineno}: imports {', '.join(names)} inside a function; move it to the top"
                        )
    return sorted(set(found))


def twin_signatures(root: Path) -> list[str]:
    """The blocking classes have the methods of the async ones, with the same parameters and results."""
    found = []
    for name, async_name, sync_name in TWINS:
        path = PACKAGE / name
        if not (root / path).exists():
            continue
        classes = {node.name: node for node in _tree(root / path).body if isinstance(node, ast.ClassDef)}
        missing = {async_name, sync_name} - classes.keys()
        if missing:
            found.append(f"{path}: has no class {', '.join(sorted(missing))}")
            continue
        first, second = (_signatures(classes[which]) for which in (async_name, sync_name))
        found.extend(
            f"{path}: {method}() differs between {async_name} {first.get(method, 'without it')} and {sync_name} "
            f"{second.get(method, 'without it')}"
            for method in sorted(first.keys() | second.keys())
            if first.get(method) != second.get(method)
        )
    return found


def public_names(root: Path) -> list[str]:
    """`onward.__all__` is sorted, and no module bears the name of a public object."""
    path = PACKAGE / "__init__.py"
    names = _all_of(root / path) if (root / path).exists() else None
    if names is None:
        return [f"{path}: has no __all__ list of plain strings"]
    found = []
    if names != sorted(names):
        found.append(
            f"{path}: __all__ is not sorted: {next(a for a, b in zip(names, sorted(names), strict=True) if a != b)}"
        )
    if len(names) != len(set(names)):
        found.append(f"{path}: __all__ names something twice")
    modules = {entry.stem for entry in (root / PACKAGE).iterdir() if entry.suffix == ".py" or entry.is_dir()}
    found.extend(
        f"{PACKAGE / name}.py: a module bears the name of the public onward.{name}"
        for name in sorted(modules & set(names))
    )
    return found


def empty_packages(root: Path) -> list[str]:
    """No package is made in advance."""
    found = []
    for init in sorted((root / PACKAGE).rglob("__init__.py")):
        others = [entry for entry in init.parent.iterdir() if entry.name not in ("__init__.py", "__pycache__")]
        has_code = any(not isinstance(node, ast.Expr) for node in _tree(init).body)
        if not others and not has_code:
            found.append(f"{init.relative_to(root)}: an empty package; make it when it has something in it")
    return found


def registry_hosts(root: Path) -> list[str]:
    """No file names a package registry's host."""
    found: list[str] = []
    for path in _all_files(root):
        try:
            text = (root / path).read_text()
        except (UnicodeDecodeError, OSError):
            continue
        found.extend(
            f"{path}:{number}: names the package registry's host {host}"
            for number, line in enumerate(text.splitlines(), 1)
            for host in REGISTRY_HOSTS
            if host in line
        )
    return found


def lock_files(root: Path) -> list[str]:
    """No lock file is kept."""
    return [
        f"{path}: a lock file; dependencies are ranges in pyproject.toml"
        for path in _all_files(root)
        if LOCK_FILES.search(path.as_posix())
    ]


RULES: tuple[Callable[[Path], list[str]], ...] = (
    file_length,
    module_docstrings,
    class_size,
    file_names,
    import_direction,
    imports_at_top,
    twin_signatures,
    public_names,
    empty_packages,
    registry_hosts,
    lock_files,
)


def _python_files(root: Path, *folders: str) -> Iterator[Path]:
    for folder in folders or CODE_FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            if not any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(root).parts):
                yield path.relative_to(root)


def _all_files(root: Path) -> list[Path]:
    """What is or would be committed."""
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return [Path(name) for name in sorted(set(listed.split("\0"))) if name and (root / name).is_file()]
    return [path.relative_to(root) for path in sorted(root.rglob("*")) if path.is_file()]


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def _methods(node: ast.ClassDef) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for item in node.body:
        if isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield item.name, item


def _part(path: Path) -> tuple[str, int]:
    relative = path.relative_to(PACKAGE)
    part = relative.parts[0] if len(relative.parts) > 1 else relative.stem
    return part, LAYERS.get(part, API_LAYER)


def _imports(file: Path, path: Path) -> Iterator[tuple[ast.stmt, str]]:
    """Every imported module by its full name; `if TYPE_CHECKING` counts too, since it draws the same picture."""
    package = path.relative_to("src").with_suffix("").parts[:-1]
    for node in ast.walk(_tree(file)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module in ("onward", "onward._store"):
                for alias in node.names:
                    yield node, f"{module}.{alias.name}" if _is_module(file, module, alias.name) else module
            else:
                yield node, module


def _is_module(file: Path, package: str, name: str) -> bool:
    folder = next(parent for parent in file.parents if parent.name == "src").joinpath(*package.split("."))
    return (folder / f"{name}.py").exists() or (folder / name).is_dir()


def _is_excepted(relative: str, imported: str) -> bool:
    return any(
        (relative == place or relative.startswith(f"{place}/")) and (not module or imported.partition(".")[0] == module)
        for place, module in LATE_IMPORTS
    )


def _signatures(node: ast.ClassDef) -> dict[str, list[str]]:
    """Public methods with their parameters and result as text, overloads included, async words made sync."""
    found: dict[str, list[str]] = {}
    for name, method in _methods(node):
        if name.startswith("_"):
            continue
        result = ast.unparse(method.returns) if method.returns is not None else ""
        text = f"({ast.unparse(method.args)}) -> {result}"
        found.setdefault(name, []).append(re.sub(r"\bAsync(?=[A-Z])", "", text))
    return found


def _all_of(path: Path) -> list[str] | None:
    for node in _tree(path).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        value = getattr(node, "value", None)
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets) and isinstance(
            value, ast.List
        ):
            names = [
                item.value for item in value.elts if isinstance(item, ast.Constant) and isinstance(item.value, str)
            ]
            return names if len(names) == len(value.elts) else None
    return None


def main(root: Path) -> int:
    """Print every finding; 1 if there is any."""
    findings = [finding for rule in RULES for finding in rule(root)]
    for finding in findings:
        print(finding)
    print(f"layout: {len(findings)} findings" if findings else f"layout: {len(RULES)} rules hold")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent.parent))

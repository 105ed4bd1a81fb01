"""How the user's modules and files are found, and what is said when they cannot be used."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from onward.cli.loading import all_of, collect, find_workflow, load_module
from onward.cli.settings import Failure

WORKFLOW = "from onward import workflow\n@workflow\nasync def one() -> int:\n    return 1\n"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_module_is_found_from_the_working_directory(tmp_path: Path) -> None:
    write(tmp_path / "onward_test_app" / "flows.py", WORKFLOW)
    assert find_workflow("onward_test_app.flows:one").name == "one"


def test_a_file_in_a_package_may_import_relatively(tmp_path: Path) -> None:
    write(tmp_path / "src" / "onward_test_pkg" / "__init__.py", "")
    write(tmp_path / "src" / "onward_test_pkg" / "values.py", "ONE = 1\n")
    file = write(tmp_path / "src" / "onward_test_pkg" / "flows.py", f"from .values import ONE\n{WORKFLOW}")
    assert load_module(str(file)).__name__ == "onward_test_pkg.flows"


def test_a_file_may_have_the_name_of_a_standard_module_or_no_module_name_at_all(tmp_path: Path) -> None:
    for name in ("signal.py", "my-flows.py"):
        write(tmp_path / name, WORKFLOW)
        workflows, _ = collect([name])
        assert [workflow.name for workflow in workflows] == ["one"]


def test_a_workflow_of_two_modules_counts_once(tmp_path: Path) -> None:
    write(tmp_path / "onward_test_first.py", WORKFLOW)
    write(tmp_path / "onward_test_second.py", "from onward_test_first import one\nagain = one\n")
    workflows, _ = collect(["onward_test_first", "onward_test_second.py"])
    assert len(workflows) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n1 / 0\n", "ZeroDivisionError: division by zero ({file}, line 2)"),
        ("x = (\n", "SyntaxError: "),
        (
            "import onward_no_such_library\n",
            "ModuleNotFoundError: No module named 'onward_no_such_library' ({file}, line 1)",
        ),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
        ("x = 1\n", "has no workflow; decorate an async def function with @onward.workflow"),
        (f"{WORKFLOW}lifespan = 3\n", "must be an async context manager"),
        (
            "from onward import workflow\n\n@workflow\ndef one() -> int:\n    return 1\n",
            "workflow 'one' is not async: write `async def one(…)` ({file}, line 3)",
        ),
    ],
)
def test_a_module_that_cannot_be_used_is_bad_input_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path / "onward_test_broken.py", text)
    with pytest.raises(Failure) as caught:
        collect([str(file)])
    assert caught.value.exit_code == 2
    assert message.format(file=file) in caught.value.message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("onward_no_such", "no module 'onward_no_such' is found from {cwd}; for a file write onward_no_such.py"),
        ("onward_no_such.flows", "no module 'onward_no_such.flows' is found from {cwd}"),
        ("flows:hello", "'flows:hello' names a workflow; here the module alone is wanted: flows"),
        ("no/such.py", "there is no file {cwd}/no/such.py"),
    ],
)
def test_a_module_that_is_not_there_is_named_with_the_place_looked_in(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(Failure) as caught:
        load_module(name)
    assert caught.value.message == message.format(cwd=tmp_path)


def test_lifespans_are_entered_in_order_and_left_in_reverse() -> None:
    trace: list[str] = []

    def lifespan(name: str) -> Any:
        async def enter() -> None:
            trace.append(f"+{name}")

        async def leave(*_: object) -> None:
            trace.append(f"-{name}")

        kind = type("Lifespan", (), {"__aenter__": lambda _: enter(), "__aexit__": lambda _, *error: leave(*error)})
        return kind()

    async def live() -> None:
        together = all_of([lifespan("a"), lambda: lifespan("b")])
        assert callable(together)
        async with together():
            trace.append("work")

    asyncio.run(live())
    assert trace == ["+a", "+b", "work", "-b", "-a"]
    assert all_of([]) is None
    assert all_of([SimpleNamespace]) is SimpleNamespace  # one is passed on as it is

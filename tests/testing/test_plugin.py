"""The fixture `onward_env`: in plain tests, in async tests under several plugins, and at no cost where nobody asks for it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import onward.testing as kit

PLUGIN = "onward.testing.plugin"
HAS_ENTRY_POINT = any(point.value == PLUGIN for point in importlib.metadata.entry_points(group="pytest11"))

FLOWS = """
import asyncio
import onward
import pytest

@onward.step
def send(address: str) -> str:
    return f"mail to {address}"

@onward.workflow
async def welcome(address: str) -> str:
    await asyncio.sleep(86_400)
    return await send(address)
"""
PLAIN = (
    FLOWS
    + """
def test_plain(onward_env):
    stub = onward_env.stub(send, returns="stubbed")
    assert onward_env.run(welcome, "ada") == "stubbed"
    assert len(stub.calls) == 1

def test_the_stub_is_gone(onward_env):
    handle = onward_env.start(welcome, "ada")
    assert handle.id == "welcome-1"
    assert handle.result() == "mail to ada"
"""
)
ASYNC = (
    FLOWS
    + """
@pytest.fixture
def stubbed(onward_env):
    return onward_env.stub(send, returns="stubbed")

MARK
async def test_async(onward_env, stubbed):
    loop = asyncio.get_running_loop()
    async def same_loop(address):
        assert asyncio.get_running_loop() is loop
        return "here"
    assert await onward_env.run(welcome, "ada") == "stubbed"
    onward_env.stub(send, side_effect=same_loop)
    assert await onward_env.run(welcome, "ada") == "here"

MARK
@pytest.mark.parametrize("name", ["ada", "bob"])
async def test_parametrized(name, onward_env):
    assert await onward_env.run(welcome, name) == f"mail to {name}"
"""
)
OWN_LOOP = """
import asyncio, inspect, pytest

@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    if inspect.iscoroutinefunction(pyfuncitem.obj):
        names = pyfuncitem._fixtureinfo.argnames
        asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
        return True
"""


def run(directory: Path, test: str, *options: str, conftest: str = "") -> str:
    """Run pytest over one file in a process of its own; what it printed."""
    (directory / "test_it.py").write_text(test)
    (directory / "conftest.py").write_text(conftest)
    plugin = () if HAS_ENTRY_POINT else ("-p", PLUGIN)
    command = [
        sys.executable,
        "-W",
        "error::ResourceWarning",
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        *plugin,
        *options,
        "test_it.py",
    ]
    finished = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=100, check=False)
    return finished.stdout + finished.stderr


def test_a_plain_test_gets_a_blocking_environment_of_its_own(tmp_path: Path) -> None:
    assert "2 passed" in run(tmp_path, PLAIN)


def test_an_async_test_gets_an_environment_in_its_own_loop_whoever_runs_it(tmp_path: Path) -> None:
    assert "3 passed" in run(tmp_path, ASYNC.replace("MARK", ""), conftest=OWN_LOOP)


def test_it_works_under_anyio(tmp_path: Path) -> None:
    pytest.importorskip("anyio")
    backend = '\n@pytest.fixture\ndef anyio_backend():\n    return "asyncio"\n'
    assert "3 passed" in run(tmp_path, ASYNC.replace("MARK", "@pytest.mark.anyio") + backend)


@pytest.mark.skipif(importlib.util.find_spec("pytest_asyncio") is None, reason="pytest-asyncio is not installed")
def test_it_works_under_pytest_asyncio(tmp_path: Path) -> None:
    assert "3 passed" in run(
        tmp_path,
        ASYNC.replace("MARK", ""),
        "-o",
        "asyncio_mode=auto",
        "-o",
        "asyncio_default_fixture_loop_scope=function",
    )


def test_a_crash_that_never_happens_fails_the_test_and_hides_no_other_failure(tmp_path: Path) -> None:
    text = (
        FLOWS
        + """
def test_missed(onward_env):
    onward_env.crash_after(send)

def test_failing(onward_env):
    onward_env.crash_after(send)
    assert False

async def test_missed_async(onward_env):
    onward_env.crash_after(send)
"""
    )
    told = run(tmp_path, text, conftest=OWN_LOOP)
    assert "2 failed, 1 passed, 1 error" in told
    assert told.count("planned, and never happened: crash after send") >= 2


def test_the_plugin_loads_nothing_until_the_fixture_is_used(tmp_path: Path) -> None:
    """Every project that installs Onward pays for it."""
    text = """
import sys
def test_nothing():
    loaded = {name for name in sys.modules if name.startswith(("onward", "msgspec"))}
    assert loaded == {"onward", "onward._version", "onward.testing", "onward.testing.plugin"}
"""
    assert "1 passed" in run(tmp_path, text)


def test_the_public_names_exist_and_are_sorted() -> None:
    """`__all__`, `dir()` and the homes of the names agree, and an unknown name is an AttributeError."""
    assert dir(kit) == sorted(kit.__all__) == sorted(kit._HOMES)
    for name in kit.__all__:
        assert getattr(kit, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Enviroment'"):
        _ = kit.Enviroment

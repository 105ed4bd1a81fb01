"""The options that every command takes: --url before or after the command, the environment, logging, --version."""

from __future__ import annotations

import gc
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from onward._version import __version__
from onward.cli.logs import JsonFormatter
from tests.cli.conftest import Cli


def test_the_url_counts_before_and_after_the_command_and_the_later_one_wins(cli: Cli, lived_in: str) -> None:
    for args in (
        ["--url", lived_in, "ls"],
        ["ls", "--url", lived_in],
        ["--url", "sqlite:///no.db", "ls", "--url", lived_in],
    ):
        result = cli(*args)
        assert result.exit_code == 0, args
        assert "completed" in result.stdout


def test_the_url_option_beats_the_environment_which_beats_the_file_here(
    cli: Cli, lived_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert str(tmp_path / "onward.db") in cli("ls").stderr
    monkeypatch.setenv("ONWARD_DATABASE_URL", "sqlite:///environment.db")
    assert str(tmp_path / "environment.db") in cli("ls").stderr
    assert cli("ls", "--url", lived_in).exit_code == 0


def test_every_command_says_the_absolute_path_and_json_output_is_json_alone(
    cli: Cli, lived_in: str, tmp_path: Path
) -> None:
    place = f"database: {tmp_path / 'lived-in.db'}\n"
    for command in (
        ["ls"],
        ["show", "waiter"],
        ["signal", "waiter", "approved", "true"],
        ["cancel", "pending"],
        ["retry", "failed"],
    ):
        assert cli(*command, "--url", "sqlite:///lived-in.db").stderr == place
    for command in (["ls"], ["show", "waiter"]):
        result = cli(*command, "--json", "--url", lived_in)
        assert result.stderr == ""
        for line in result.stdout.splitlines():
            json.loads(line)


def test_version_prints_the_version(cli: Cli) -> None:
    assert cli("--version").stdout == f"onward {__version__}\n"


def test_version_loads_neither_the_client_nor_the_engine_nor_asyncio() -> None:
    heavy = {"asyncio", "msgspec", "onward.client", "rich"}
    script = (
        "import sys\nfrom onward.cli import main\nsys.argv = ['onward', '--version']\n"
        "try:\n    main()\nexcept SystemExit:\n    print(sorted(" + repr(heavy) + " & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_worker_command_loads_neither_the_client_nor_a_driver() -> None:
    unwanted = {
        "onward.client",
        "onward._store.sqlite.store",
        "onward._store.memory.store",
        "psycopg",
        "importlib.resources",
    }
    script = "import sys\nimport onward.cli.worker\nprint(sorted(" + repr(unwanted) + " & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_command_that_ends_has_left_garbage_collection_on(cli: Cli) -> None:
    assert gc.isenabled()
    assert cli("worker", "no_such_module").exit_code == 2
    assert gc.isenabled()


def test_python_m_onward_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "onward", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"onward {__version__}\n"


def test_a_json_log_line_has_the_fields_of_the_record_and_the_traceback() -> None:
    try:
        raise ValueError("boom")
    except ValueError:
        record = logging.getLogger("onward.x").makeRecord(
            "onward.x",
            logging.WARNING,
            "f",
            1,
            "lost %s",
            ("it",),
            sys.exc_info(),
            extra={"workflow_id": "w", "at": Path("p")},
        )
    line = json.loads(JsonFormatter().format(record))
    assert line["level"] == "warning"
    assert line["logger"] == "onward.x"
    assert line["message"] == "lost it"
    assert (line["workflow_id"], line["at"]) == ("w", "p")
    assert "ValueError: boom" in line["traceback"]
    assert set(line) == {"time", "level", "logger", "message", "workflow_id", "at", "traceback"}

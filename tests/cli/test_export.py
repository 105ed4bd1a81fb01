"""`onward export`: documents that `onward.testing.replay` takes."""

from __future__ import annotations

import json
from pathlib import Path

from onward.cli.loading import load_module, workflows_of
from onward.testing import replay
from tests.cli.conftest import FLOWS, Cli


def test_one_workflow_goes_to_stdout_and_nothing_else(cli: Cli, lived_in: str) -> None:
    result = cli("export", "completed", "--url", lived_in)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["id"] == "completed"
    assert replay(workflows_of(load_module(str(FLOWS))).values(), result.stdout).result == ["hello Ann"]


def test_what_is_in_flight_goes_to_files_that_replay(cli: Cli, lived_in: str, tmp_path: Path) -> None:
    result = cli("export", "--to", str(tmp_path / "histories"), "--url", lived_in)
    assert result.exit_code == 0
    files = sorted((tmp_path / "histories").iterdir())
    assert sorted(result.stdout.splitlines()) == [str(file) for file in files]
    names = {file.stem for file in files}
    assert {"sleeper", "waiter", "parent", "parent~waiter", "unlucky"} <= names
    assert not {"completed", "failed", "cancelled"} & names
    workflows = list(workflows_of(load_module(str(FLOWS))).values())
    assert {replay(workflows, file).state for file in files} == {"waiting"}


def test_files_of_chosen_workflows_of_one_type_and_of_so_many(cli: Cli, lived_in: str, tmp_path: Path) -> None:
    def exported(*args: str) -> list[str]:
        result = cli("export", *args, "--to", str(tmp_path), "--url", lived_in)
        assert result.exit_code == 0
        return [Path(line).stem for line in result.stdout.splitlines()]

    assert exported("completed", "failed", "completed") == ["completed", "failed"]
    assert set(exported("--type", "waiter")) == {"waiter", "parent~waiter"}
    assert len(exported("--limit", "2")) == 2


def test_wrong_usage_and_unknown_ids_have_their_exit_codes(cli: Cli, lived_in: str, tmp_path: Path) -> None:
    assert cli("export", "--url", lived_in).exit_code == 2
    assert cli("export", "a", "b", "--url", lived_in).exit_code == 2
    assert cli("export", "a", "--type", "b", "--to", str(tmp_path), "--url", lived_in).exit_code == 2
    assert cli("export", "nobody", "--url", lived_in).exit_code == 3


def test_a_place_that_cannot_be_written_to_is_told_in_one_line(cli: Cli, lived_in: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = cli("export", "completed", "--to", str(tmp_path / "file" / "below"), "--url", lived_in)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith(f"error: {tmp_path}/file/below/completed.json cannot be written: ")

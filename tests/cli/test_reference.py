"""docs/reference-cli.md: its examples run, and it leaves no command and no option out."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from onward.cli.group import COMMANDS, EXIT_CODES, onward
from tests.cli.conftest import Cli

PAGE = Path(__file__).parents[2] / "docs" / "reference-cli.md"


def test_the_examples_run_in_their_order(cli: Cli, tmp_path: Path) -> None:
    text = PAGE.read_text()
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    (tmp_path / "flows.py").write_text(found[1])
    commands = [shlex.split(line) for line in re.findall(r"^\$ onward (.*)$", text, re.MULTILINE)]
    assert len(commands) > 8
    for command in commands:
        if command[0] == "worker":  # test_worker.py runs them, as processes
            continue
        result = cli(*command)
        assert result.exit_code == 0, f"{command}: {result.output}"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_and_option_is_described(name: str) -> None:
    text = PAGE.read_text()
    command = onward.get_command(click.Context(onward), name)
    assert command is not None
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert f"`{parameter.opts[-1]}" in text, parameter.opts


def test_the_exit_codes_are_those_of_the_help() -> None:
    in_help = re.findall(r"^  (\d[\d, ]*?)  ", EXIT_CODES, re.MULTILINE)
    in_page = re.findall(r"^\| (\d[\d, ]*?) \|", PAGE.read_text(), re.MULTILINE)
    assert in_help == in_page

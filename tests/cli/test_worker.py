"""`onward worker` as a process: what it says, how it stops, what it refuses."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.cli.processes import DEADLINE_S, Start, wait_for_file


def test_it_says_what_it_serves_and_where_and_sigterm_lets_running_steps_end(
    cli: Cli, flows: str, tmp_path: Path, start_worker: Start
) -> None:
    cli("start", f"{flows}:taking", "[0.7]", "--id", "t")
    worker = start_worker(flows)
    wait_for_file(tmp_path / "began", worker)
    worker.process.send_signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert f"database: {tmp_path / 'onward.db'}\n" in worker.lines
    assert worker.until("workflows: ").startswith(
        "workflows: blocking, dated, failing, hello, inside, named-otherwise, "
    )
    assert "queues: default\n" in worker.lines
    assert "SIGTERM: stopping" in worker.until("stopping")
    row = json.loads(cli("show", "t", "--json").stdout)
    assert [entry["result"] for entry in row["journal"]] == ["taken"]
    assert row["attempts"] == row["crashes"] == 0
    assert (tmp_path / "lifespan.txt").read_text() == "in out "


def test_what_outlasts_the_grace_is_given_back_unspent(
    cli: Cli, flows: str, tmp_path: Path, start_worker: Start
) -> None:
    cli("start", f"{flows}:taking", "[60]", "--id", "t")
    worker = start_worker(flows, "--grace", "100ms")
    wait_for_file(tmp_path / "began", worker)
    worker.process.send_signal(signal.SIGINT)
    assert worker.wait() == 0
    row = json.loads(cli("show", "t", "--json").stdout)
    assert (row["status"], row["attempts"], row["crashes"], row["journal"]) == ("pending", 0, 0, [])


@pytest.mark.parametrize(("second", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_leaves_at_once(
    cli: Cli, flows: str, tmp_path: Path, start_worker: Start, second: signal.Signals, code: int
) -> None:
    cli("start", f"{flows}:taking", "[60]")
    worker = start_worker(flows)
    wait_for_file(tmp_path / "began", worker)
    worker.process.send_signal(signal.SIGTERM)
    worker.until("stopping")
    worker.process.send_signal(second)
    assert worker.wait() == code


def test_a_second_signal_is_heard_while_a_step_blocks_the_loop(
    cli: Cli, flows: str, tmp_path: Path, start_worker: Start
) -> None:
    cli("start", f"{flows}:blocking")
    worker = start_worker(flows)
    wait_for_file(tmp_path / "began", worker)
    began = time.monotonic()
    while worker.process.poll() is None and time.monotonic() - began < 30:
        # No answer tells that the first one was heard: the loop is blocked. Two signals of one kind may merge into one.
        worker.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(0.2)
    assert worker.wait() == 143


def test_it_serves_the_named_queues_only(cli: Cli, flows: str, start_worker: Start) -> None:
    cli("start", f"{flows}:hello", '["x"]', "--id", "default")
    cli("start", f"{flows}:hello", '["x"]', "--id", "mail", "--queue", "mail")
    worker = start_worker(flows, "--queue", "mail", "--queue", "later")
    assert cli("start", f"{flows}:hello", '["x"]', "--id", "mail", "--queue", "mail", "--wait").exit_code == 0
    assert "queues: mail, later\n" in worker.lines
    assert json.loads(cli("show", "default", "--json").stdout)["status"] == "pending"


def test_with_log_format_json_every_line_is_json(flows: str, tmp_path: Path, start_worker: Start) -> None:
    worker = start_worker(flows, "--log-format", "json", "--name", "mine")
    worker.until("works on")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.wait() == 0
    lines = [json.loads(line) for line in worker.lines]
    assert lines[0]["message"] == "worker starts"
    assert lines[0]["database"] == f"sqlite:///{tmp_path / 'onward.db'}"
    assert "hello" in lines[0]["workflows"]


def test_two_modules_with_one_workflow_name_are_refused_in_one_line(cli: Cli, tmp_path: Path) -> None:
    for name in ("onward_test_one.py", "onward_test_two.py"):
        (tmp_path / name).write_text("from onward import workflow\n@workflow\nasync def same() -> None: ...\n")
    result = cli("worker", "onward_test_one", "onward_test_two")
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert line.startswith("error: two workflows are named 'same': ")
    assert "onward_test_one.py:" in line
    assert "onward_test_two.py:" in line
    assert not (tmp_path / "onward.db").exists()


@pytest.mark.parametrize("options", [["--slots", "0"], ["--lease", "1s"], ["--grace", "soon"], ["--queue", ""]])
def test_wrong_options_are_refused_before_anything_is_made(
    cli: Cli, flows: str, tmp_path: Path, options: list[str]
) -> None:
    result = cli("worker", flows, *options)
    assert result.exit_code == 2
    assert not (tmp_path / "onward.db").exists()


def _hear_ctrl_c() -> None:
    """A shell starts background processes, and so perhaps these tests, with SIGINT ignored; that is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_ends_a_run_with_130_and_says_how_to_go_on(tmp_path: Path) -> None:
    file = tmp_path / "onward_test_waits.py"
    file.write_text(
        "import onward\ncome = onward.Signal('come', bool)\n@onward.workflow\nasync def wait() -> None:\n    await come.wait()\n"
    )
    running = subprocess.Popen(
        [sys.executable, "-m", "onward", "run", f"{file}:wait", "--id", "w"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        preexec_fn=_hear_ctrl_c,  # noqa: PLW1509
    )  # fmt: skip
    assert running.stderr is not None
    while not (line := running.stderr.readline()).startswith("workflow: w"):
        assert line
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=DEADLINE_S)
    assert running.returncode == 130
    assert "to go on, run the same with --id w" in stderr
    assert "Traceback" not in stderr


def test_ctrl_c_ends_a_waiting_start_with_130(flows: str) -> None:
    waiting = subprocess.Popen(
        [sys.executable, "-m", "onward", "start", f"{flows}:hello", '["x"]', "--wait"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        preexec_fn=_hear_ctrl_c,  # noqa: PLW1509
    )  # fmt: skip
    assert waiting.stdout is not None
    assert waiting.stdout.readline().strip()
    waiting.send_signal(signal.SIGINT)
    _, stderr = waiting.communicate(timeout=DEADLINE_S)
    assert waiting.returncode == 130
    assert "Traceback" not in stderr

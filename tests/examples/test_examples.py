"""The examples, run as their reader would run them: each alone, in a process of its own, killed where they say so."""

from __future__ import annotations

import ast
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.examples.support import EXAMPLES, environment

LONGEST = 80


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short_and_so_is_what_it_imports(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("[!_]*.py")), ids=lambda path: path.name)
def test_an_example_opens_with_how_to_run_it(path: Path) -> None:
    text = path.read_text()
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring is not None
    assert "pip install" in docstring
    assert f"python {path.name}" in docstring


def test_hello_has_under_30_lines() -> None:
    assert len((EXAMPLES / "hello.py").read_text().splitlines()) < 30


def _recorded(database: Path) -> int:
    """How many steps a worker of another process has recorded so far."""
    if not database.exists():
        return 0
    try:
        connection = sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True)
        try:
            count: int = connection.execute("SELECT count(*) FROM onward_journal WHERE kind = 'step'").fetchone()[0]
        finally:
            connection.close()
    except sqlite3.OperationalError:  # the schema is being made
        return 0
    return count


def _hears_ctrl_c() -> None:
    """A shell starts background processes, and so perhaps these tests, with SIGINT ignored; that is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_hello_goes_on_where_it_was_after_it_was_killed(tmp_path: Path, how: signal.Signals) -> None:
    command = [sys.executable, str(EXAMPLES / "hello.py")]
    first = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=_hears_ctrl_c,  # noqa: PLW1509
    )  # fmt: skip
    give_up_at = time.monotonic() + 30
    while _recorded(tmp_path / "onward.db") < 2:
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < give_up_at
    first.send_signal(how)
    printed, complaints = first.communicate(timeout=30)
    assert "Task was destroyed" not in complaints
    second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    lines = [*printed.splitlines(), *second.stdout.splitlines()]
    assert lines == ["5 …", "4 …", "3 …", "2 …", "1 …", "Lift-off!", "result: Lift-off!"]
    third = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert third.stdout.splitlines() == ["result: Lift-off!"], "a completed workflow runs nothing again"


@pytest.mark.slow
def test_the_welcome_sequence_sends_each_mail_once_though_its_worker_is_killed(tmp_path: Path) -> None:
    pytest.importorskip("aiosmtpd")
    finished = subprocess.run(
        [sys.executable, str(EXAMPLES / "welcome_sequence.py")],
        cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert "3 seconds here (shortened)" in finished.stdout
    received = re.findall(r"received '(.+?)', Message-ID <(.+?)@example.com>", finished.stdout)
    assert received == [("welcome", "welcome-ada/send_email"), ("follow-up", "welcome-ada/send_email#2")]
    killed = re.search(r"Worker (\d+) is killed with SIGKILL; the workflow is sleeping until", finished.stdout)
    started = re.search(r"Worker (\d+) is started", finished.stdout)
    assert killed is not None
    assert started is not None
    assert killed[1] != started[1]
    assert "Completed: 2 mails" in finished.stdout


def test_the_welcome_sequence_without_aiosmtpd_ends_with_the_pip_command(tmp_path: Path) -> None:
    (tmp_path / "aiosmtpd.py").write_text("raise ImportError('not here')")
    finished = subprocess.run(
        [sys.executable, str(EXAMPLES / "welcome_sequence.py")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert finished.returncode == 1
    assert finished.stderr.splitlines() == [
        'this example needs aiosmtpd for its mail server: pip install "onward[demo]"'
    ]

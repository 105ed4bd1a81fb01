"""Runs the console blocks of a page as its reader would: in one directory, workers in the background, killed where it says so.

Used by `page.py` in a process of its own. Every command is a child in this process's group, which the test kills in the
end whatever happens. Nothing is found by name on the machine: `pkill` in a page ends matching workers of this page, no others.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.docs.blocks import Command
from tests.docs.shown import agrees, begins

DEADLINE_S = 60
RUN = {"onward", "python", "pytest", "ls", "cat", "mkdir", "cp", "rm", "curl", "sqlite3", "sleep", "echo", "kill"}
NOT_RUN = {
    "pip": "installs packages",
    "make": "tools/check_docs.py checks the target",
    "git": "the tests run in the repository",
    "docker": "needs a daemon",
    "kubectl": "needs a cluster",
    "sudo": "changes the machine",
    "systemctl": "changes the machine",
    "journalctl": "reads the machine's log",
    "uvicorn": "serves until it is stopped; the test of the deployment runs it",
    "gunicorn": "serves until it is stopped; the test of the deployment runs it",
}
"""First words of commands that a page may show and that are not run here, and why."""

READY = "works on"
"""What a worker logs once it claims workflows."""

_PKILL = re.compile(r"pkill (?:-(?P<signal>\S+) )?-f \"(?P<text>onward worker [\w.]+)\"")
_ENDED_BY = {"Killed": signal.SIGKILL, "^C": signal.SIGINT, "Terminated": signal.SIGTERM}


class WrongOutput(AssertionError):
    """A command of the page did not do what the page shows."""


class Process:
    """A running command and all that it has said so far."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._process = subprocess.Popen(
            ["bash", "-c", text],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._is_over = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    @property
    def said(self) -> str:
        """Its output up to now, both streams as a terminal shows them."""
        with self._changed:
            return "".join(self._lines)

    def wait_for(self, shown: str | None, here: Path) -> None:
        """Until it has said all of this (a worker without shown output: until it works)."""

        def is_there() -> bool:
            said = "".join(self._lines)
            return READY in said if shown is None else begins(shown, said, here)

        with self._changed:
            self._changed.wait_for(lambda: self._is_over or is_there(), DEADLINE_S)
            if not is_there():
                raise WrongOutput(f"`{self.text}` should say\n{shown or READY}\nand said\n{''.join(self._lines)}")

    def end(self, number: signal.Signals) -> int:
        """Send a signal and wait for the end; the exit code. One that has ended is left alone."""
        if self._process.poll() is None:
            self._process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end; the exit code."""
        try:
            code = self._process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise WrongOutput(f"`{self.text}` does not end; it has said\n{self.said}") from None
        self._reader.join(DEADLINE_S)
        return code


class Terminal:
    """What has been typed so far: the processes in the background, and output that a killed command still owes."""

    def __init__(self, here: Path) -> None:
        self.here = here
        self._background: list[Process] = []
        self._last: Process | None = None
        self._owed: tuple[str, str] | None = None
        bin_directory = str(Path(sys.executable).parent)
        os.environ["PATH"] = os.pathsep.join([bin_directory, os.environ.get("PATH", "")])
        os.environ.update(PYTHONUNBUFFERED="1", COLUMNS="120", NO_COLOR="1", TERM="dumb")

    def type(self, command: Command, *, in_background: bool, kill_once: str | None) -> None:
        """Run one command; raises WrongOutput with what is wrong."""
        text = command.text
        shown = command.output if command.output is not None and command.output.strip() else None
        program = next((word for word in _words(text) if not re.fullmatch(r"[A-Z_]+=.*", word)), "")
        if match := _PKILL.fullmatch(text):
            self._end_all(match["text"], _signal_of(match["signal"]))
        elif program == "export":
            name, _, value = _words(text)[1].partition("=")
            os.environ[name] = value
        elif program == "cd":
            os.chdir(_words(text)[1])
        elif program in NOT_RUN:
            return
        elif program not in RUN:
            raise WrongOutput(f"the runner does not know {program!r}: see RUN and NOT_RUN in tests/docs/terminal.py")
        elif in_background or (_words(text)[:2] == ["onward", "worker"] and "--help" not in text):
            process = Process(text)
            self._background.append(process)
            self._last = process
            process.wait_for(shown, self.here)
        else:
            self._run(text, shown, kill_once)

    def _run(self, text: str, shown: str | None, kill_once: str | None) -> None:
        lines = (shown or "").splitlines()
        last = lines[-1].split(maxsplit=1)[0] if lines else ""
        process = Process(text)
        if last in _ENDED_BY:
            before = "\n".join(lines[:-1])
            process.wait_for(before, self.here)
            _wait_for_record(kill_once)
            process.end(_ENDED_BY[last])
            # What it said between the last shown line and its end comes out of what the next command shows.
            self._owed = (before, process.said)
            return
        code = process.wait()
        said = process.said
        fails = any(re.match(r"error: |Traceback |\w*Error\b|Usage: ", line) for line in lines)
        if (code != 0) is not fails:
            raise WrongOutput(f"`{text}` ended with {code} and said\n{said}")
        if self._owed is not None and shown is not None:
            (shown_before, said_before), self._owed = self._owed, None
            shown, said = f"{shown_before}\n{shown}", f"{said_before}{said}"
        if shown is not None and not agrees(shown, said, self.here):
            raise WrongOutput(f"`{text}` should say\n{shown}\nand said\n{said}")

    def wait_for_worker(self, shown: str) -> None:
        """Until the process that was last started in the background has said this."""
        if self._last is None:
            raise WrongOutput("nothing was started in the background")
        self._last.wait_for(shown, self.here)

    def close(self) -> None:
        """Stop what runs in the background; a worker must end in peace."""
        for process in self._background:
            code = process.end(signal.SIGTERM)
            if process.text.startswith("onward") and code not in (0, -signal.SIGKILL, 143):
                raise WrongOutput(f"`{process.text}` ended with {code} and said\n{process.said}")
        self._background.clear()

    def _end_all(self, text: str, number: signal.Signals) -> None:
        matching = [process for process in self._background if text in process.text]
        if not matching:
            raise WrongOutput(f"there is no `{text}` to kill")
        for process in matching:
            process.end(number)
            self._background.remove(process)


def _words(text: str) -> list[str]:
    return shlex.split(text, comments=True)


def _signal_of(word: str | None) -> signal.Signals:
    if word is None:
        return signal.SIGTERM
    return signal.Signals(int(word)) if word.isdigit() else signal.Signals[f"SIG{word.removeprefix('SIG')}"]


def _wait_for_record(question: str | None) -> None:
    """Until the database answers yes: a process is killed between two steps, not between a step's effect and its record."""
    give_up_at = time.monotonic() + DEADLINE_S
    while question is not None and not _answer(question):
        if time.monotonic() > give_up_at:
            raise WrongOutput(f"the database never says yes to {question}")
        time.sleep(0.01)


def _answer(question: str) -> bool:
    try:
        connection = sqlite3.connect(f"{Path('onward.db').resolve().as_uri()}?mode=rw", uri=True)
        try:
            return bool(connection.execute(question).fetchone()[0])
        finally:
            connection.close()
    except sqlite3.OperationalError:  # the file or the schema is being made
        return False

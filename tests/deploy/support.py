"""What the tests of deployments share: files of a page written out, programs that run until they are told to stop, waiting.

Every program is started in a session of its own and killed with all it has started, whatever happens. Nothing here sleeps
for a fixed time: waits look again until what they wait for is the case.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from tests.docs.blocks import blocks

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent
PATIENCE_S = 60.0


def write_files(page: str, here: Path) -> None:
    """Save every file that a page of docs/ shows, under the name that it shows."""
    for block in blocks((ROOT / "docs" / page).read_text()):
        if block.file is not None:
            file = here / block.file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.code)


def until(look: Callable[[], T], what: str, *, timeout_s: float = PATIENCE_S) -> T:
    """What `look` returns, as soon as it is true; AssertionError with `what` if it never is."""
    give_up_at = time.monotonic() + timeout_s
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < give_up_at, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)


def environment(here: Path, **extra: str) -> dict[str, str]:
    """This process's, without what Onward or Django would read from it, and with `here` to import from."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ONWARD_", "DJANGO_"))}
    path = os.pathsep.join([str(BIN), kept.get("PATH", "")])
    return {**kept, "PATH": path, "PYTHONPATH": str(here), "PYTHONUNBUFFERED": "1", **extra}


class Program:
    """A program that runs until it is told to stop; `log` is all it has said."""

    def __init__(self, command: list[str], here: Path, name: str, env: Mapping[str, str]) -> None:
        self.command = command
        self._log = here / f"{name}.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=here, env=dict(env), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self.pid = self._process.pid

    @property
    def log(self) -> str:
        """Both of its streams so far."""
        return self._log.read_text(errors="replace")

    def says(self, words: str) -> None:
        """Wait until it has said this."""

        def look() -> bool:
            if words in self.log:
                return True
            assert self._process.poll() is None, f"{self.command} ended with {self._process.returncode}:\n{self.log}"
            return False

        until(look, f"{self.command} says {words!r}; it said:\n{self.log}")

    def send(self, number: signal.Signals) -> None:
        """Send it, and it alone, a signal."""
        self._process.send_signal(number)

    def wait(self) -> int:
        """Wait for its end; the exit code."""
        try:
            return self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.command} does not end; it said:\n{self.log}") from None

    def kill(self) -> None:
        """End it and all it has started as a power failure would."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait(PATIENCE_S)


Running: TypeAlias = AbstractContextManager[Program]


@contextmanager
def running(command: list[str], here: Path, *, name: str = "program", env: Mapping[str, str]) -> Iterator[Program]:
    """A program for the length of a block; what it started does not outlive the block."""
    program = Program(command, here, name, env)
    try:
        yield program
    finally:
        program.kill()


def ask(url: str, *, post: bool = False) -> tuple[int, Any]:
    """The status and the JSON body of a URL; status 0 while nobody answers."""
    request = urllib.request.Request(url, data=b"" if post else None)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
            status, body = response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            status, body = error.code, error.read()
    except (urllib.error.URLError, ConnectionError):
        return 0, None
    try:
        return status, json.loads(body)
    except ValueError:
        return status, body.decode(errors="replace")

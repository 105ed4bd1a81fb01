"""`onward worker` as a process of its own, and waiting for what it does. The fixture `start_worker` is in the conftest."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
Start = Callable[..., "Process"]
DEADLINE_S = 60


class Process:
    """A worker in the working directory, and the lines of its stderr."""

    def __init__(self, *args: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "onward", "worker", *args],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        self.lines: list[str] = []
        self._is_over = False
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def until(self, words: str) -> str:
        """The first line that has these words."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_over or any(words in line for line in self.lines), DEADLINE_S)
            found = [line for line in self.lines if words in line]
            assert found, self.lines
            return found[0]

    def wait(self) -> int:
        """The exit code."""
        code = self.process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()


def wait_for_file(path: Path, worker: Process) -> None:
    """The step says from another process that it began; a file is the plainest way."""
    give_up_at = time.monotonic() + DEADLINE_S
    while not path.exists():
        assert time.monotonic() < give_up_at
        assert worker.process.poll() is None, worker.lines
        time.sleep(0.01)


def until(look: Callable[[], T], what: str) -> T:
    """What `look` returns, as soon as it is true."""
    give_up_at = time.monotonic() + DEADLINE_S
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < give_up_at, what
        time.sleep(0.02)

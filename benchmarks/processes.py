"""Worker processes of the benchmarks: `onward worker benchmarks.flows`, with what they cost in processor time and memory."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.databases import Database

ROOT = Path(__file__).resolve().parent.parent
READY = "works on"
"""In the line that a worker logs when it is about to claim."""


def written_bytes(pid: int | str) -> int:
    """What a process has passed to the kernel by write calls so far, to files (not to sockets)."""
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        if line.startswith("wchar:"):
            return int(line.split()[1])
    return 0


@functools.cache
def _bytecode() -> str:
    """Where the workers of this process keep compiled modules: the first one compiles them, as pip does when it installs a
    package, however Python has been told to treat the working tree."""
    folder = tempfile.TemporaryDirectory(prefix="onward-bytecode-")
    atexit.register(folder.cleanup)
    return folder.name


class WorkerProcess:
    """One `onward worker`, or several with `-p`.

    Args:
        database: what it works on.
        options: of the command.
        count: how many processes say that they are ready.
    """

    def __init__(self, database: Database, *options: str, count: int = 1) -> None:
        argv = [sys.executable, "-m", "onward", "--url", database.url, "--log-level", "info"]
        argv += ["worker", "benchmarks.flows", *options]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        environment["PYTHONPYCACHEPREFIX"] = _bytecode()
        self.started_at = time.time()
        self.process = subprocess.Popen(
            argv,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._awaited = count
        self._ready = threading.Event()
        self._lines: list[str] = []
        self.cpu_when_ready_s = 0.0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.append(line)
            if READY in line:
                self._awaited -= 1
                if self._awaited == 0:
                    with contextlib.suppress(OSError):
                        self.cpu_when_ready_s = self.cpu_s()
                    self._ready.set()
            elif " INFO " not in line and self._ready.is_set():
                sys.stderr.write(line)

    def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Wait until every process has said that it works."""
        end = time.monotonic() + timeout_s
        while not self._ready.wait(0.1):
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError("no worker came up:\n" + "".join(self._lines))

    def check(self) -> None:
        """Raise if it has ended by itself."""
        if self.process.poll() is not None:
            raise RuntimeError(f"the worker ended with {self.process.returncode}:\n" + "".join(self._lines[-20:]))

    def memory_mb(self, *, peak: bool = False) -> float:
        """Resident memory now, or the most there has been, of all its processes together."""
        name = "VmHWM:" if peak else "VmRSS:"
        total = 0
        for pid in self._pids():
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith(name):
                    total += int(line.split()[1])
        return total / 1024

    def cpu_s(self) -> float:
        """Processor time of all its threads so far, to the nanosecond (the clock ticks of `stat` are too coarse)."""
        threads = (thread for pid in self._pids() for thread in Path(f"/proc/{pid}/task").iterdir())
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9

    def written_bytes(self) -> int:
        """What all its processes have written so far."""
        return sum(written_bytes(pid) for pid in self._pids())

    def _pids(self) -> list[int]:
        pids = [self.process.pid]
        for pid in pids:
            for task in Path(f"/proc/{pid}/task").iterdir():
                pids += [int(child) for child in (task / "children").read_text().split()]
        return pids

    def kill(self) -> None:
        """End it, and its children, as a power failure would."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(10)
        if self.process.stderr is not None:
            self.process.stderr.close()


@contextlib.contextmanager
def worker_on(database: Database, *options: str, count: int = 1) -> Iterator[WorkerProcess]:
    """A worker process, killed at the end."""
    worker = WorkerProcess(database, *options, count=count)
    try:
        yield worker
    finally:
        worker.kill()

"""The test's side of fault processes: start them through fork servers, signal them, wait for their ends.

There are several fork servers, each with another PYTHONHASHSEED, and each new process comes from the next one: a worker that
takes over never has the hash seed of the one that was killed.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tests.faults.faultworker import Job

T = TypeVar("T")
HASH_SEEDS = (1, 2, 3)
ROOT = Path(__file__).parents[2]


def until(look: Callable[[], T], what: str, *, timeout_s: float = 30.0, pause_s: float = 0.01) -> T:
    """What `look` returns, as soon as it is true; AssertionError with `what` if it never is."""
    give_up_at = time.monotonic() + timeout_s
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > give_up_at:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        time.sleep(pause_s)


class ForkServer:
    """One server process; its calls may come from any thread."""

    def __init__(self, hash_seed: int) -> None:
        environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": os.pathsep.join(sys.path)}
        environment.pop("ONWARD_FAILPOINT", None)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.forkserver"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._lock = threading.Lock()

    def ask(self, request: dict[str, Any]) -> Any:
        """Send a request, return its answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(msgspec.json.encode(request) + b"\n")
            self._process.stdin.flush()
            return msgspec.json.decode(self._process.stdout.readline())

    def close(self) -> None:
        """End the server, and with it whatever it forked."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


class FaultProcess:
    """A forked worker or client."""

    def __init__(self, server: ForkServer, job: Job) -> None:
        self._server = server
        self.job = job
        self.pid: int = server.ask({"do": "spawn", "job": msgspec.to_builtins(job)})

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    @property
    def ended(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it lives."""
        code: int | None = self._server.ask({"do": "poll", "pid": self.pid})
        return code

    def wait(self, timeout_s: float = 30.0) -> int:
        """Wait for its end; returns `ended`."""
        until(lambda: self.ended is not None, f"the end of process {self.pid}", timeout_s=timeout_s, pause_s=0.003)
        code = self.ended
        assert code is not None
        return code

    def kill(self) -> None:
        """End it as a power failure would, if it still lives."""
        if self.ended is None:
            self.send(signal.SIGKILL)
            self.wait()

    def stop(self) -> None:
        """Stop it gracefully; it must end without an error."""
        self.send(signal.SIGTERM)
        code = self.wait()
        assert code == 0, f"the worker ended with {code}: {self.log[-3000:]}"

    @property
    def log(self) -> str:
        """What it, and others with the same log file, have said so far."""
        try:
            return Path(self.job.log).read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""


class ForkServers:
    """The servers of one test session, used in turn."""

    def __init__(self) -> None:
        self._servers = [ForkServer(seed) for seed in HASH_SEEDS]
        self._turn = itertools.cycle(self._servers)

    def spawn(self, job: Job) -> FaultProcess:
        """Start a process from the next server."""
        return FaultProcess(next(self._turn), job)

    def close(self) -> None:
        """End all servers and their processes."""
        for server in self._servers:
            server.close()


@contextmanager
def fork_servers() -> Iterator[ForkServers]:
    """Servers for the length of a block."""
    servers = ForkServers()
    try:
        yield servers
    finally:
        servers.close()

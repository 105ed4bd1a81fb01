"""The play: start the workflow, run a worker process, kill it in the middle of an item, let another one go on.

Everything happens in real processes: the workers are `onward worker` as a user would run it, the kill is SIGKILL. This file
only watches: the limiter's refusals through the body log, the progress through a client.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from onward._store.urls import ENVIRONMENT_VARIABLE
from onward.cli._demo.pipeline import Totals, daily_pipeline
from onward.cli._demo.place import Place
from onward.cli._demo.screen import Bar, bar
from onward.cli._demo.service import BodyLog, Line, RateLimiter
from onward.client import Client
from onward.handle import Handle

WORKFLOW_ID = "daily-pipeline"
LOOK_S = 0.02
PATIENCE_S = 60.0
"""Without any sign of progress for so long, the demo gives up."""
LIMITER_PAUSE_S = 5.0


class DemoFailed(Exception):
    """The play did not run to its end; the message says why."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Where the demo plays, and with how much."""

    folder: Path
    place: Place
    items: int

    @property
    def kill_at(self) -> int:
        """The item at which the rate limiter steps in and the first worker is killed: 400 of 600."""
        return max(1, self.items * 2 // 3)

    @property
    def kill_key(self) -> str:
        """The journal key of that item's `classify` step."""
        return "classify" if self.kill_at == 1 else f"classify#{self.kill_at}"


@dataclass(frozen=True, slots=True)
class Played:
    """What happened, as seen from outside: process ids, instants in seconds since 1970."""

    first_pid: int
    second_pid: int
    killed_at: float
    recovered_at: float
    took_s: float

    @property
    def recovery_s(self) -> float:
        """From SIGKILL to the first step body of the second worker, the start of its process included."""
        return self.recovered_at - self.killed_at


class WorkerProcess:
    """`onward worker` in a process of its own; its log goes to a file."""

    def __init__(self, plan: Plan, number: int) -> None:
        self.log_path = plan.folder / f"worker-{number}.log"
        command = [sys.executable, "-P", "-m", "onward", "worker", "onward.cli._demo.pipeline"]
        command += ["--lease", plan.place.lease] if plan.place.lease else []
        environment = {**os.environ, ENVIRONMENT_VARIABLE: plan.place.url}  # other users see arguments, but not this
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.pid = self._process.pid
        self.title = f"worker {number} (pid {self.pid})"

    def check(self) -> None:
        """Raise DemoFailed if it has ended by itself."""
        if self._process.poll() is not None:
            log = self.log_path.read_text(errors="replace")[-2000:]
            raise DemoFailed(f"{self.title} ended by itself with exit code {self._process.returncode}:\n{log}")

    def kill(self) -> None:
        """SIGKILL (on Windows its like): the process gets no chance to do anything."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ask it to end, and see that it does."""
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self.kill()


@contextlib.contextmanager
def worker_process(plan: Plan, number: int) -> Iterator[WorkerProcess]:
    """A worker that is gone after the `with` block, whatever happens in it."""
    worker = WorkerProcess(plan, number)
    try:
        yield worker
    finally:
        worker.stop()


def play(plan: Plan) -> Played:
    """Run the whole demo on a database that does not exist yet."""
    began_at = time.time()
    log = BodyLog(plan.folder)
    RateLimiter(plan.folder).set_up(limit=plan.kill_at - 1, pause_s=LIMITER_PAUSE_S)
    with Client(plan.place.url) as client:
        handle = client.start(daily_pipeline.using(id=WORKFLOW_ID), str(plan.folder), plan.place.table, plan.items)
        with worker_process(plan, 1) as first:
            with bar("worker 1", plan.items) as shown:
                shown.say(f"{first.title} works on {plan.items} documents of the standard library")
                _watch(first, handle, shown, lambda: _refusals(log, plan) > 0)
                shown.say(
                    f"the classifier refuses item {plan.kill_at} (rate limit): the step is put off, no try is spent"
                )
                _watch(first, handle, shown, lambda: _is_trying_again(log, plan))
            first.kill()
            killed_at = time.time()
        last_words = f"{first.title} is killed with SIGKILL while item {plan.kill_at} is with the classifier"
        done = _items(handle)
        with worker_process(plan, 2) as second, bar("worker 2", plan.items, done) as shown:
            shown.say(last_words)
            shown.say(f"{second.title} starts on the same {plan.place.kind}; {done} items are recorded")
            _watch(second, handle, shown, lambda: _first_body(log, second.pid) is not None)
            recovered = _first_body(log, second.pid)
            assert recovered is not None
            key = recovered.key.partition("/")[2]
            number = int(key.partition("#")[2] or 1)
            shown.say(f"{second.title} goes on with item {number}, {recovered.at - killed_at:.1f} s after the kill")
            _watch(second, handle, shown, lambda: handle.info().finished_at is not None)
            shown.reach(_items(handle))
    return Played(first.pid, second.pid, killed_at, recovered.at, time.time() - began_at)


def _watch(worker: WorkerProcess, handle: Handle[Totals], shown: Bar, is_reached: Callable[[], bool]) -> None:
    """Show the progress until something is reached."""
    count, moved_at = -1, time.monotonic()
    while not is_reached():
        worker.check()
        now_done = _items(handle)
        if now_done != count:
            count, moved_at = now_done, time.monotonic()
            shown.reach(count)
        elif time.monotonic() - moved_at > PATIENCE_S:
            raise DemoFailed(f"nothing has happened for {PATIENCE_S:g} s; see {worker.log_path}")
        time.sleep(LOOK_S)


def _items(handle: Handle[Totals]) -> int:
    progress = handle.info().progress
    return progress["items"] if progress else 0


def _tries(log: BodyLog, plan: Plan) -> list[Line]:
    return [line for line in log.lines() if line.key.endswith(f"/{plan.kill_key}")]


def _refusals(log: BodyLog, plan: Plan) -> int:
    return sum(line.event == "put off" for line in _tries(log, plan))


def _is_trying_again(log: BodyLog, plan: Plan) -> bool:
    """A body of that item is running now, after a first refusal."""
    tries = _tries(log, plan)
    return _refusals(log, plan) > 0 and tries[-1].event == "began"


def _first_body(log: BodyLog, pid: int) -> Line | None:
    return next((line for line in log.lines() if line.pid == pid and line.event == "began"), None)

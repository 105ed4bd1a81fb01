"""What lies outside the engine: the classifier's rate limiter, and a log of every step body that begins or ends.

Both keep their state in files of the demo's folder and know nothing of workflows: whatever process is killed, they remember.
So the limiter refuses the second worker exactly as it refused the first, and the log is a witness against the journal.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from onward.context import current_step
from onward.retry import RetryLater

SLOW_ANSWER_S = 1.0
"""A service over its limit lets its callers wait before it refuses them."""
COME_BACK_S = 0.6
"""And then asks them to come back after so many seconds."""

Event = Literal["began", "done", "put off", "failed"]


class Line(msgspec.Struct, frozen=True):
    """One line of the log: a body of the step with this idempotency key began or ended in this process."""

    at: float
    pid: int
    key: str
    event: Event


class BodyLog:
    """An append-only file with a line for each begin and end of a step body."""

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / "bodies.log"

    @contextlib.contextmanager
    def body(self) -> Iterator[None]:
        """Log the step body that runs inside the `with` block."""
        self._write("began")
        event: Event = "failed"
        try:
            yield
            event = "done"
        except RetryLater:
            event = "put off"
            raise
        finally:
            self._write(event)

    def _write(self, event: Event) -> None:
        line = Line(time.time(), os.getpid(), current_step().idempotency_key, event)
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, msgspec.json.encode(line) + b"\n")  # one write: whole, or not there
        finally:
            os.close(handle)

    def lines(self) -> list[Line]:
        """Everything logged so far; a line that is only half visible yet is left out."""
        if not self.path.exists():
            return []
        whole, _, _ = self.path.read_bytes().rpartition(b"\n")
        return msgspec.json.decode(b"[%s]" % b",".join(whole.splitlines()), type=list[Line])


class _State(msgspec.Struct):
    limit: int
    pause_s: float
    calls: int = 0
    free_at: float | None = None


class RateLimiter:
    """So many calls, then none until a pause is over, whoever calls."""

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / "classifier-quota.json"

    def set_up(self, *, limit: int, pause_s: float) -> None:
        """Begin with an unused quota of `limit` calls."""
        self._save(_State(limit, pause_s))

    def take(self) -> None:
        """Use up one call, or raise RetryLater."""
        state = msgspec.json.decode(self.path.read_bytes(), type=_State)
        now = time.time()
        if state.free_at is not None and now >= state.free_at:
            state.calls, state.free_at = 0, None
        if state.free_at is None and state.calls < state.limit:
            state.calls += 1
            self._save(state)
            return
        if state.free_at is None:
            state.free_at = now + state.pause_s
            self._save(state)
        time.sleep(SLOW_ANSWER_S)
        raise RetryLater(after=COME_BACK_S)

    def _save(self, state: _State) -> None:
        """Replace the file as a whole: a process killed here leaves the old state or the new one."""
        fresh = self.path.with_suffix(f".{os.getpid()}")
        fresh.write_bytes(msgspec.json.encode(state))
        fresh.replace(self.path)

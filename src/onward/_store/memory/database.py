"""What several in-memory stores and their lease threads share."""

from __future__ import annotations

import threading
from collections.abc import Callable

from onward._store.memory.state import Row, Worker


class MemoryDatabase:
    """Rows, workers and subscribers, under one lock."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.rows: dict[str, Row] = {}
        self.workers: dict[str, Worker] = {}
        self.next_mail_id = 1
        self.subscribers: list[Callable[[], None]] = []

    def publish(self) -> None:
        """Tell every subscriber that something was committed."""
        for signal in list(self.subscribers):
            signal()


def give_back(row: Row, now: int) -> None:
    """Release a running row without its owner. The epoch rises: a late write of that owner never counts as applied."""
    row.status, row.worker = "pending", None
    row.epoch += 1
    row.next_run_at = row.updated_at = now

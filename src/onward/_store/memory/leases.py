"""Leases in memory: a worker is dead once its lease has run out or its lease connection is gone."""

from __future__ import annotations

from collections.abc import Callable

from onward._store.clock import SteadyClock
from onward._store.memory.database import MemoryDatabase, give_back
from onward._store.memory.state import Worker
from onward._store.memory.transitions import Transaction
from onward._store.records import WorkerRow
from onward._store.verdicts import CRASH_LIMIT, CRASHED
from onward.errors import StoreConflict


class MemoryLeases:
    """See base.Leases."""

    def __init__(self, database: MemoryDatabase, clock: SteadyClock, probe: Callable[[str], None]) -> None:
        self._probe = probe
        self._database = database
        self._clock = clock
        self._mine: set[str] = set()

    def register(self, worker: WorkerRow, lease_us: int) -> None:
        """Add the worker."""
        with self._database.lock:
            if worker.id in self._database.workers:
                raise StoreConflict(f"there is a worker {worker.id!r} already; ids must be random")
            now = self._clock.now_us()
            self._probe("register:before-commit")
            self._database.workers[worker.id] = Worker(worker, now, now + lease_us)
            self._mine.add(worker.id)
        self._probe("register:after-commit")

    def renew(self, worker_id: str, lease_us: int) -> bool:
        """Extend the lease unless the worker is dead or gone."""
        with self._database.lock:
            worker = self._database.workers.get(worker_id)
            if worker is None or worker.is_dead:
                return False
            self._probe("renew:before-commit")
            worker.expires_at = self._clock.now_us() + lease_us
        self._probe("renew:after-commit")
        return True

    def retire(self, worker_id: str) -> None:
        """Remove the worker."""
        with self._database.lock:
            self._probe("retire:before-commit")
            self._database.workers.pop(worker_id, None)
            self._mine.discard(worker_id)
        self._probe("retire:after-commit")

    def bury(self, worker_id: str) -> int:
        """Mark the dead; release what they and absent workers held."""
        with self._database.lock:
            now = self._clock.now_us()
            dead = [
                worker
                for worker in self._database.workers.values()
                if worker.row.id != worker_id and (worker.is_dead or worker.expires_at <= now or not worker.has_proof)
            ]
            alive = self._database.workers.keys() - {worker.row.id for worker in dead}
            orphans = [
                row for row in self._database.rows.values() if row.worker is not None and row.worker not in alive
            ]
            is_news = bool(orphans) or not all(worker.is_dead for worker in dead)
            if is_news:
                self._probe("bury:before-commit")
            for worker in dead:
                worker.is_dead = True
            for row in orphans:
                give_back(row, now)
                row.crashes += 1
                if row.crashes >= CRASH_LIMIT:
                    self._fail(row.new.id, now)
        if is_news:
            self._probe("bury:after-commit")
        if orphans:
            self._database.publish()
        return len(orphans)

    def close(self) -> None:
        """Give up the proof of life of the workers registered here."""
        with self._database.lock:
            for worker_id in self._mine:
                if worker_id in self._database.workers:
                    self._database.workers[worker_id].has_proof = False
            self._mine.clear()

    def _fail(self, workflow_id: str, now: int) -> None:
        database = self._database
        end = Transaction(database.rows, now=now, retry=False, next_mail_id=database.next_mail_id)
        row = end.touch(workflow_id)
        assert row is not None
        end.finish(row, "failed", None, CRASHED)
        database.next_mail_id = end.next_mail_id

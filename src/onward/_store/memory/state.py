"""What the in-memory database holds: one object a workflow, with its journal, mail and retry states inside."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, cast

from onward._store.records import FINAL, Claimed, Entry, Mail, NewWorkflow, Status, StepRetry, WorkerRow, WorkflowRow


@dataclass(slots=True)
class Row:
    """One workflow."""

    new: NewWorkflow
    created_at: int
    updated_at: int
    next_run_at: int | None
    deadline: int | None = None
    status: Status = "pending"
    result: str | None = None
    error: str | None = None
    progress: str | None = None
    step: str | None = None
    waiting_for: str | None = None
    attempts: int = 0
    crashes: int = 0
    epoch: int = 0
    signals: int = 0
    run: int = 0
    worker: str | None = None
    awaited: int | None = None
    wake_floor: int | None = None
    divergences: int = 0
    diverged_by: dict[str, int] = field(default_factory=dict)
    """Until when each code version that could not replay it is held back."""
    version: str | None = None
    code_version: str | None = None
    cancel_requested_at: int | None = None
    started_at: int | None = None
    finished_at: int | None = None
    entries: dict[int, Entry] = field(default_factory=dict)
    struck: set[int] = field(default_factory=set)
    mail: list[Mail] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    retries: dict[str, StepRetry] = field(default_factory=dict)
    waiters: list[str] = field(default_factory=list)

    @property
    def is_final(self) -> bool:
        """It has its one outcome."""
        return self.status in FINAL

    @property
    def is_asleep(self) -> bool:
        """It was parked, so that wakes pull it forward."""
        return self.status == "waiting" or (self.status == "pending" and self.waiting_for is not None)

    def copy(self) -> Row:
        """A copy that shares nothing that changes."""
        return replace(
            self,
            entries=self.entries.copy(),
            struck=self.struck.copy(),
            mail=self.mail.copy(),
            tokens=self.tokens.copy(),
            retries=self.retries.copy(),
            waiters=self.waiters.copy(),
            diverged_by=self.diverged_by.copy(),
        )

    def last_step(self) -> str | None:
        """The last recorded step."""
        steps = [
            entry.key for seq, entry in sorted(self.entries.items()) if entry.kind == "step" and seq not in self.struck
        ]
        return steps[-1] if steps else self.step

    def for_people(self) -> WorkflowRow:
        """The row as `Reads` gives it."""
        values: dict[str, Any] = {}
        for name in WorkflowRow.__struct_fields__:
            values[name] = getattr(self, name) if name in Row.__slots__ else getattr(self.new, name)
        values["step"] = self.last_step()
        return WorkflowRow(**values)

    def as_claimed(self) -> Claimed:
        """The row as a claim gives it, after the claim."""
        n = self.new
        return Claimed(
            id=n.id, type=n.type, payload=n.payload, digest=n.digest, seed=n.seed, epoch=self.epoch, signals=self.signals,
            attempts=self.attempts, crashes=self.crashes, max_attempts=n.max_attempts, run=self.run, created_at=self.created_at,
            started_at=cast(int, self.started_at), queue=n.queue, priority=n.priority, partition=n.partition, tags=n.tags,
            parent_id=n.parent_id, deadline=self.deadline, version=self.version, code_version=self.code_version,
            divergences=self.divergences,
        )  # fmt: skip


@dataclass(slots=True)
class Worker:
    """One worker; `has_proof` is what a lock file is on SQLite: it goes when the lease connection does."""

    row: WorkerRow
    started_at: int
    expires_at: int
    is_dead: bool = False
    has_proof: bool = True

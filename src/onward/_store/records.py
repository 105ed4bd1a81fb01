"""The values that travel between the engine and a store: rows read, never behaviour.

Made by the stores and by the engine's runner, many times a second: they are `msgspec.Struct`s, not dataclasses, because a
frozen Struct is built five to ten times faster and a whole claim or history decodes from one JSON text in C. Instants are
integer microseconds since 1970 UTC (`*_at`), lengths of time integer microseconds (`*_us`), payloads JSON text.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Status = Literal["pending", "running", "waiting", "completed", "failed", "cancelled"]
FINAL: frozenset[str] = frozenset({"completed", "failed", "cancelled"})

EntryKind = Literal["step", "timer", "signal", "child", "start", "cancel", "timeout", "patch", "attempt"]
"""What a journal entry records: a step's end, a timer's firing, a signal's delivery, a child's end, a child's start (awaited
by itself), the delivery of a cancel request, the workflow's own deadline, a `patched()` marker, an attempt's end."""

JOURNAL_FORMAT = 1
"""Raised when old code could not replay what new code records; a worker claims no newer one."""


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One recorded entry of a journal.

    `finished_at` is the workflow's time once the entry is delivered and never falls within one journal. `result` and
    `error` are JSON (`ErrorRecord` for the latter); an entry has at most one of them. `key` is the step key, the timer's,
    wait's or child's key; for kinds cancel, timeout and attempt the kind itself.
    """

    seq: int
    key: str
    kind: EntryKind
    finished_at: int
    result: str | None = None
    error: str | None = None
    digest: str | None = None
    arguments: str | None = None
    tries: int = 0
    started_at: int | None = None


class ErrorRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error as JSON in `journal.error`, `workflows.error` and `mailbox.error`.

    `listed` names the class of the step's `raises=` that it is an instance of, `args` its JSON-able arguments. `fatal`
    marks `Fail`. `status` is the outcome of the workflow where this is one's end. `seq` is, in a workflow's error, the
    first journal entry that makes the failure certain, before which `retry` truncates.
    """

    type: str
    message: str
    traceback: str = ""
    listed: str | None = None
    args: list[Any] | None = None
    fatal: bool = False
    timed_out: bool = False
    status: str | None = None
    seq: int | None = None


class Mail(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One undelivered input of a workflow, in the order of `id` (which rises in commit order within one workflow).

    kind signal: `name` is the signal's, `payload` its JSON. kind child: `name` is the ended workflow's id, `payload` its
    result or `error` its `ErrorRecord`. kind cancel: nothing else.
    """

    id: int
    kind: Literal["signal", "child", "cancel"]
    created_at: int
    name: str = ""
    payload: str | None = None
    error: str | None = None


class StepRetry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A step between two tries, kept outside the ordered journal so that the count survives a park."""

    key: str
    tries: int
    next_at: int
    error: str | None = None


class NewWorkflow(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A workflow to be started. `seed` (32 hex digits, random) doubles as the token of this very start."""

    id: str
    type: str
    payload: str
    digest: str
    seed: str
    queue: str = "default"
    priority: int = 0
    partition: str | None = None
    tags: str | None = None
    max_attempts: int = 5
    delay_us: int = 0
    run_at: int | None = None
    timeout_us: int | None = None
    parent_id: str | None = None


class Claimed(msgspec.Struct, frozen=True, array_like=True):
    """A row that this worker has just claimed (values as after the claim)."""

    id: str
    type: str
    payload: str
    digest: str
    seed: str
    epoch: int
    signals: int
    attempts: int
    crashes: int
    max_attempts: int
    run: int
    created_at: int
    started_at: int
    queue: str = "default"
    priority: int = 0
    partition: str | None = None
    tags: str | None = None
    parent_id: str | None = None
    deadline: int | None = None
    version: str | None = None
    code_version: str | None = None
    divergences: int = 0

    @property
    def is_fresh(self) -> bool:
        """No history can exist: this claim raised the epoch from 0 to 1 and nobody has sent anything."""
        return self.epoch == 1 and self.signals == 0


class Inbox(msgspec.Struct, frozen=True, array_like=True):
    """What a held workflow's row and mailbox say now; `signals` was read no later than `mail`."""

    id: str
    epoch: int
    signals: int
    mail: list[Mail]


class Loaded(msgspec.Struct, frozen=True, array_like=True):
    """Everything needed to replay a claimed workflow; struck-out entries are left out."""

    id: str
    signals: int
    entries: list[Entry]
    mail: list[Mail]
    retries: list[StepRetry]
    last_seq: int
    """The highest seq in the table, struck-out entries included."""


class ClaimRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is ready to take.

    `only` restricts the claim to these workflow ids. `alone` claims one quarantined row (crashes ≥ 2); otherwise such
    rows are left. `version` is "<journal format>/<Python major.minor>", kept on the row at its first claim.
    """

    worker: str
    queue: str
    types: tuple[str, ...]
    limit: int
    version: str
    code_version: str
    only: tuple[str, ...] | None = None
    alone: bool = False


class WorkerRow(msgspec.Struct, frozen=True, kw_only=True):
    """A worker as it announces itself; for people and for taking over."""

    id: str
    name: str
    host: str
    pid: int
    queues: tuple[str, ...]
    types: tuple[str, ...]
    code_version: str


class WorkerInfo(WorkerRow, frozen=True, kw_only=True):
    """A worker's row as people read it."""

    started_at: int
    expires_at: int
    is_dead: bool


class WorkflowRow(msgspec.Struct, frozen=True, kw_only=True):
    """A workflow as people read it (`Reads`). Never holds the seed."""

    id: str
    type: str
    status: Status
    queue: str
    priority: int
    partition: str | None
    payload: str
    digest: str
    result: str | None
    error: str | None
    progress: str | None
    tags: str | None
    step: str | None
    waiting_for: str | None
    attempts: int
    crashes: int
    max_attempts: int
    epoch: int
    signals: int
    run: int
    worker: str | None
    parent_id: str | None
    version: str | None
    code_version: str | None
    next_run_at: int | None
    deadline: int | None
    cancel_requested_at: int | None
    created_at: int
    started_at: int | None
    updated_at: int
    finished_at: int | None


class JournalRow(msgspec.Struct, frozen=True, kw_only=True):
    """A journal entry as people read it, struck-out ones included; `kind` as it stands, spoiled by hand or not."""

    seq: int
    key: str
    kind: str
    digest: str | None
    arguments: str | None
    result: str | None
    error: str | None
    tries: int
    started_at: int | None
    finished_at: int
    struck: bool


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which workflows to list, newest first; `before` is the (created_at, id) of the last row of the page before."""

    status: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    created_after: int | None = None
    created_before: int | None = None
    tags: tuple[tuple[str, str], ...] = ()
    parent_id: str | None = None
    before: tuple[int, str] | None = None
    limit: int = 100

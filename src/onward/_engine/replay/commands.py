"""What the replay core asks of its runner, and what it says of the execution's end: values only.

The core appends commands to a list in the order in which workflow code issued them; the runner takes the list after every
delivery. `after` is the seq of the last entry delivered when the command was issued: the runner may begin the command only
when the committed journal has reached it (and the whole history is accepted, and the lease is known to hold).
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from onward._engine.specs import StartOptions, StepSpec, WorkflowSpec
from onward._store.records import Entry


class RunStep(msgspec.Struct):
    """Run a step's body; answer with an entry of kind step under `key`. Arguments are frozen copies."""

    key: str
    after: int
    spec: StepSpec
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    digest: str | None
    arguments: str | None


class CancelStep(msgspec.Struct):
    """The await of a running step was cancelled. `waits`: the workflow still wants its entry (on_cancel="wait": the entry
    must come, whatever the body does); otherwise drop the body and its result."""

    key: str
    after: int
    waits: bool


class StartChild(msgspec.Struct):
    """Start a child workflow under `child_id`. `key` is the journal key.

    `watch`: its end is wanted as an entry of kind child under `key` (the core has a wait outstanding). `confirm`: the start
    itself is wanted as an entry of kind start under `key` (result: the id as JSON) once it is durable, or its refusal as an
    `ErrorRecord`. With neither result a refusal (`WorkflowIdConflict`) is an entry of kind child with an error.
    """

    key: str
    after: int
    spec: WorkflowSpec
    options: StartOptions
    child_id: str
    payload: str
    digest: str
    watch: bool
    confirm: bool


class WatchChild(msgspec.Struct):
    """The end of an already started workflow is wanted as an entry of kind child under `key` (`await handle`)."""

    key: str
    after: int
    child_id: str


class Record(msgspec.Struct):
    """Append this entry, which the core made itself (a patch marker), before anything that follows."""

    after: int
    entry: Entry


class SetProgress(msgspec.Struct):
    """Show this JSON as the workflow's progress, with the next commit."""

    after: int
    value: str


Command: TypeAlias = RunStep | CancelStep | StartChild | WatchChild | Record | SetProgress


class Waiting(msgspec.Struct, frozen=True):
    """Something that the workflow waits for now, for matching mail and for people.

    kind signal: `name` is the signal's name. kind child: `name` is the child's id. kind timer: `deadline` in µs.
    kind step: a step without an entry yet.
    """

    key: str
    kind: str
    name: str = ""
    deadline: int | None = None


class Returned(msgspec.Struct, frozen=True):
    """The workflow function returned; `result` is JSON."""

    result: str


class Raised(msgspec.Struct, frozen=True):
    """An error left the workflow function (`SystemExit`, `CodecError` of its result and `WorkflowStuck` included).

    `recorded` are the seqs of the journal entries whose error it is, wraps or groups (steps and children).
    """

    error: BaseException
    recorded: tuple[int, ...]


class Cancelled(msgspec.Struct, frozen=True):
    """The workflow function ended by the cancellation that a cancel (or timeout) entry delivered."""

    timed_out: bool


Ending: TypeAlias = Returned | Raised | Cancelled

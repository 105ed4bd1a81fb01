"""The children that one execution is starting: from the command to the commit of the child's row.

A part of a `Runner`. A child's id comes from its parent and its step key, so starting it again after a crash finds the one
that exists. Its end comes as mail (inputs.py), never through here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from onward._engine.failures import describe
from onward._engine.replay.commands import StartChild
from onward._engine.starts import child_workflow
from onward._store.operations import IdConflict, Outcome, StartOp
from onward.errors import WorkflowIdConflict

if TYPE_CHECKING:
    from onward._engine.runner import Runner
    from onward._store.records import EntryKind


class Children:
    """Starts that are not committed yet. A runner with any does not park."""

    __slots__ = ("_runner", "_starting")

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._starting: dict[str, StartChild] = {}

    @property
    def are_starting(self) -> bool:
        """Whether any start is not committed yet."""
        return bool(self._starting)

    def start(self, command: StartChild) -> None:
        """Insert the child with the next flush, under the parent's fence."""
        runner = self._runner
        self._starting[command.child_id] = command
        workflow = child_workflow(command, parent=runner.row, seed=runner.engine.new_seed())
        runner.engine.child_started(workflow.id, workflow.queue)
        runner.submit(StartOp(workflow, runner.fence, watch=True))

    def answered(self, op: StartOp, outcome: Outcome) -> None:
        """The start is committed or refused: deliver that to a workflow that waits for it."""
        runner = self._runner
        command = self._starting.pop(op.workflow.id, None)
        if command is None or not runner.is_running:
            return
        if not runner.wants(command.key):
            pass  # its await was cancelled meanwhile; a child that was started goes on by itself
        elif isinstance(outcome, IdConflict):
            error = WorkflowIdConflict(op.workflow.id, outcome.existing_type, op.workflow.type)
            kind: EntryKind = "start" if command.confirm else "child"
            runner.deliver(runner.new_entry(command.key, kind, None, describe(error)))
        elif command.confirm:
            runner.deliver(runner.new_entry(command.key, "start", msgspec.json.encode(op.workflow.id).decode()))
        runner.settle()

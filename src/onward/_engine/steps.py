"""The steps of one execution that have begun and have no entry yet: running, between two tries, or frozen.

Half of a `Runner` (runner.py), which calls `begin`, `cancel` and `due`, and which gets each end back through `deliver`,
`settle` and `fail_certainly`. The retry policy of steps is decided here. A wait between two tries is kept in memory while
the execution is; a park writes it down (`states`), so that the count survives.

A transactional step freezes the execution: it begins only when everything before is committed, and what other bodies
return meanwhile waits, so that its entry has the next number and commits with the body's own writes.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from onward._engine.bodies import Body
from onward._engine.failures import describe, note
from onward._engine.replay.commands import CancelStep, RunStep
from onward._engine.stepinfo import StepInfo
from onward._store.operations import JournalOp
from onward._store.records import Entry, StepRetry
from onward.errors import CodecError, ConfigurationError, Fail, LeaseLost, OutcomeUnknown, StoreConflict, StoreError
from onward.retry import RetryLater

if TYPE_CHECKING:
    from onward._engine.runner import Runner

STORE_PAUSE_US = 100_000
"""Before a transactional step whose database was busy or away is tried again, no try being spent."""


class Steps:
    """The unfinished steps of one execution."""

    __slots__ = ("_bodies", "_frozen", "_later", "_recorded", "_runner")

    def __init__(self, runner: Runner, recorded: Iterable[StepRetry] = ()) -> None:
        self._runner = runner
        self._bodies: dict[str, Body] = {}
        self._later: dict[str, tuple[RunStep, StepRetry]] = {}
        """Between two tries, in memory."""
        self._recorded = {retry.key: retry for retry in recorded}
        """Retry states that the database holds."""
        self._frozen: deque[tuple[Body, Any, BaseException | None]] | None = None

    @property
    def are_running(self) -> bool:
        """Whether any body runs."""
        return bool(self._bodies)

    @property
    def running(self) -> list[str]:
        """The keys of the bodies that run."""
        return list(self._bodies)

    @property
    def are_waiting(self) -> bool:
        """Whether any step is between two tries."""
        return bool(self._later)

    @property
    def is_frozen(self) -> bool:
        """Whether a transactional step runs: nothing may be delivered or recorded meanwhile."""
        return self._frozen is not None

    @property
    def next_try_at(self) -> int | None:
        """When the first of the waiting tries is due."""
        return min((state.next_at for _, state in self._later.values()), default=None)

    def waiting(self) -> dict[str, StepRetry]:
        """The steps between two tries that this execution holds."""
        return {key: state for key, (_, state) in self._later.items()}

    def states(self) -> list[StepRetry]:
        """The states of all steps between two tries, recorded ones included."""
        return list({**self._recorded, **self.waiting()}.values())

    # ------------------------------------------------------------------ the runner's calls

    def begin(self, command: RunStep) -> None:
        """Start the next try now, or wait for its time if a recorded state names one. A transactional step freezes the
        execution; the runner has seen to it that nothing of it is on its way."""
        state = self._recorded.get(command.key)
        if state is not None and state.next_at > self._runner.engine.now_us():
            self._later[command.key] = (command, state)
            return
        engine = self._runner.engine
        if engine.seams is not None:
            command = msgspec.structs.replace(command, spec=engine.seams.step(command.spec))
        tries = (state.tries if state else 0) + 1
        body = Body(command, self, self._info(command, tries), tries, engine.now_us())
        if command.spec.is_transactional:
            try:
                transactor = engine.transactor()
            except ConfigurationError as error:
                self._runner.fail_certainly(error)
                return
            self._bodies[command.key] = body
            self._frozen = deque()
            engine.bodies.start_transaction(
                body, transactor, self._runner.fence, lambda result: self._transaction_entry(body, result)
            )
        else:
            self._bodies[command.key] = body
            engine.bodies.start(body)

    def cancel(self, command: CancelStep) -> None:
        """The await was cancelled: ask the body to end; its entry is wanted only if the workflow waits for it."""
        body = self._bodies.get(command.key)
        waiting = self._later.pop(command.key, None)
        if body is not None:
            if not command.waits:
                body.is_dropped = True
                del self._bodies[command.key]
            body.cancel()
        elif waiting is not None and command.waits:
            self.answer_unbegun(waiting[0])

    def answer_unbegun(self, command: RunStep) -> None:
        """Record that a step was cancelled before its body could begin, for a workflow that waits for its entry."""
        engine = self._runner.engine
        body = Body(command, self, self._info(command, 0), 0, engine.now_us())
        self._runner.deliver(command.key, "step", error=note("CancelledError", "cancelled before it began"), body=body)
        engine.loop.call_soon(self._runner.settle)

    def due(self, now_us: int) -> list[RunStep]:
        """Take the steps whose next try is due."""
        keys = [key for key, (_, state) in self._later.items() if state.next_at <= now_us]
        commands = []
        for key in keys:
            command, state = self._later.pop(key)
            self._recorded[key] = state
            commands.append(command)
        return commands

    def settled(self, key: str) -> tuple[str, ...]:
        """The step has its entry; returns the recorded retry states that this ends."""
        return (key,) if self._recorded.pop(key, None) is not None else ()

    def forget_waiting(self) -> None:
        """The workflow function has ended: no further try begins."""
        self._later.clear()

    def drop(self) -> None:
        """Drop every body and its result."""
        for body in self._bodies.values():
            body.is_dropped = True
            body.cancel()
        self._bodies.clear()

    def _info(self, command: RunStep, tries: int) -> StepInfo:
        row = self._runner.row
        prefix = row.id if row.run == 0 else f"{row.id}/{row.run}"
        return StepInfo(row.id, command.key, f"{prefix}/{command.key}", tries, self)

    def show(self, key: str, text: str) -> None:
        """A body shows this as the workflow's progress. Callable from the body's thread."""
        engine = self._runner.engine
        if threading.get_ident() == engine.thread_id:
            self._show(key, text)
        else:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody would see it
                engine.loop.call_soon_threadsafe(self._show, key, text)

    def _show(self, key: str, text: str) -> None:
        body = self._bodies.get(key)
        if body is not None and not body.is_dropped:
            self._runner.show(text)

    # ------------------------------------------------------------------ ends of bodies

    def body_done(self, body: Body, result: Any, error: BaseException | None) -> None:
        """One try of a step has ended."""
        runner, key = self._runner, body.command.key
        if body.is_dropped or not runner.wants_steps:
            self._bodies.pop(key, None)
            return
        if self._frozen is not None:
            self._frozen.append((body, result, error))
            return
        self._bodies.pop(key, None)
        if error is not None and self._try_again(body, error):
            runner.step_put_off()
            return
        text = record = None
        if error is None:
            try:
                text = body.command.spec.result.encode(result)
            except CodecError as refused:  # the effect has happened: another try would only repeat it
                runner.fail_certainly(refused)
                return
        else:
            record = describe(error, body.command.spec.raises)
        runner.step_ended(body, text, record)

    def body_unbegun(self, body: Body) -> None:
        """A try has not begun after all: nothing has happened, and nothing is spent."""
        self._bodies.pop(body.command.key, None)
        if not body.is_dropped and self._runner.wants_steps:
            self._runner.step_unbegun(body.command)

    def _try_again(self, body: Body, error: BaseException) -> bool:
        """Put the step's next try on the calendar, if its policy has one left."""
        command, tries, engine = body.command, body.tries, self._runner.engine
        if body.is_cancelled:
            return False
        policy = command.spec.retry
        if isinstance(error, RetryLater):
            tries -= 1  # nothing is spent
            if error.until is not None:
                next_at = int(error.until.timestamp() * 1e6)
            else:
                next_at = engine.now_us() + int((error.after_s or 0) * 1e6)
        elif isinstance(error, Fail) or not policy.wants(error) or tries >= policy.tries:
            return False
        else:
            next_at = engine.now_us() + int(policy.delay_before(tries + 1, engine.rng) * 1e6)
        self._later[command.key] = (command, StepRetry(command.key, tries, next_at, describe(error)))
        return True

    # ------------------------------------------------------------------ transactional steps

    def _transaction_entry(self, body: Body, result: Any) -> JournalOp:
        """Called on the store's writer thread, inside the transaction; the frozen core does not move meanwhile."""
        runner, key = self._runner, body.command.key
        entry = runner.new_entry(key, "step", result=body.command.spec.result.encode(result), body=body)
        settled = (key,) if key in self._recorded else ()
        has_counters = runner.row.attempts > 0 or runner.row.crashes > 0
        return JournalOp(runner.fence, (entry,), (), settled, key, None, has_counters)

    def transaction_done(self, body: Body, entry: Entry | None, error: BaseException | None) -> None:
        """Thaw: deliver the committed entry, or treat the error like any body's; then what waited meanwhile."""
        frozen, self._frozen = self._frozen or deque(), None
        runner, command = self._runner, body.command
        if not runner.wants_steps:
            return
        if entry is not None:
            self._bodies.pop(command.key, None)
            self._recorded.pop(command.key, None)
            runner.transaction_committed(entry, is_wanted=not body.is_dropped)
        elif isinstance(error, (LeaseLost, OutcomeUnknown)):
            # Not ours any more, or perhaps committed: only the database can tell. Reconciliation gives the row back.
            runner.drop()
            return
        elif isinstance(error, CodecError):
            runner.fail_certainly(error)
            return
        elif isinstance(error, StoreError) and not isinstance(error, StoreConflict):
            self._bodies.pop(command.key, None)
            again_at = runner.engine.now_us() + STORE_PAUSE_US
            self._later[command.key] = (command, StepRetry(command.key, body.tries - 1, again_at))
        else:
            self.body_done(body, None, error)
        for other, result, failure in frozen:
            self.body_done(other, result, failure)
        runner.settle()

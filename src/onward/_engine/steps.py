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
from collections.abc import Sequence
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

    __slots__ = ("_frozen", "_runner", "is_frozen", "later", "recorded", "running")

    def __init__(self, runner: Runner, recorded: Sequence[StepRetry] = ()) -> None:
        self._runner = runner
        self.running: dict[str, Body] = {}
        """The bodies that run, by their step's key."""
        self.later: dict[str, tuple[RunStep, StepRetry]] = {}
        """The steps between two tries that this execution holds."""
        self.recorded = {retry.key: retry for retry in recorded} if recorded else {}
        """Retry states that the database holds."""
        self.is_frozen = False
        """A transactional step runs: nothing may be delivered or recorded meanwhile."""
        self._frozen: list[tuple[Body, Any, BaseException | None]] = []
        """What ended meanwhile."""

    @property
    def next_try_at(self) -> int | None:
        """When the first of the waiting tries is due."""
        return min((state.next_at for _, state in self.later.values()), default=None) if self.later else None

    def waiting(self) -> dict[str, StepRetry]:
        """The steps between two tries that this execution holds."""
        return {key: state for key, (_, state) in self.later.items()}

    def states(self) -> list[StepRetry]:
        """The states of all steps between two tries, recorded ones included."""
        return list({**self.recorded, **self.waiting()}.values())

    # ------------------------------------------------------------------ the runner's calls

    def begin(self, command: RunStep) -> None:
        """Start the next try now, or wait for its time if a recorded state names one. A transactional step freezes the
        execution; the runner has seen to it that nothing of it is on its way."""
        engine, key, tries = self._runner.engine, command.key, 1
        now = engine.now_us()
        if self.recorded and (state := self.recorded.get(key)) is not None:
            if state.next_at > now:
                self.later[key] = (command, state)
                return
            tries = state.tries + 1
        if engine.seams is not None:
            command = msgspec.structs.replace(command, spec=engine.seams.step(command.spec))
        body = Body(command, self, tries, now)
        if command.spec.is_transactional:
            try:
                transactor = engine.transactor()
            except ConfigurationError as error:
                self._runner.fail_certainly(error)
                return
            self.running[key] = body
            self.is_frozen = True
            engine.bodies.start_transaction(
                body, transactor, self._runner.fence, lambda result: self._transaction_entry(body, result)
            )
        else:
            self.running[key] = body
            engine.bodies.start(body)

    def cancel(self, command: CancelStep) -> None:
        """The await was cancelled: ask the body to end; its entry is wanted only if the workflow waits for it."""
        body = self.running.get(command.key)
        waiting = self.later.pop(command.key, None)
        if body is not None:
            if not command.waits:
                body.is_dropped = True
                del self.running[command.key]
            body.cancel()
        elif waiting is not None and command.waits:
            self.answer_unbegun(waiting[0])

    def answer_unbegun(self, command: RunStep) -> None:
        """Record that a step was cancelled before its body could begin, for a workflow that waits for its entry."""
        engine = self._runner.engine
        body = Body(command, self, 0, engine.now_us())
        error = note("CancelledError", "cancelled before it began")
        self._runner.deliver(self._runner.new_entry(command.key, "step", None, error, body))
        engine.loop.call_soon(self._runner.settle)

    def due(self, now_us: int) -> list[RunStep]:
        """Take the steps whose next try is due."""
        keys = [key for key, (_, state) in self.later.items() if state.next_at <= now_us]
        commands = []
        for key in keys:
            command, state = self.later.pop(key)
            self.recorded[key] = state
            commands.append(command)
        return commands

    def settled(self, key: str) -> tuple[str, ...]:
        """The step has its entry; returns the recorded retry states that this ends."""
        return (key,) if self.recorded.pop(key, None) is not None else ()

    def forget_waiting(self) -> None:
        """The workflow function has ended: no further try begins."""
        self.later.clear()

    def drop(self) -> None:
        """Drop every body and its result."""
        for body in self.running.values():
            body.is_dropped = True
            body.cancel()
        self.running.clear()

    def info_of(self, body: Body) -> StepInfo:
        """What the body can learn of its try. Called from any thread."""
        row, key = self._runner.row, body.command.key
        prefix = row.id if row.run == 0 else f"{row.id}/{row.run}"
        return StepInfo(row.id, key, f"{prefix}/{key}", body.tries, self)

    def show(self, key: str, text: str) -> None:
        """A body shows this as the workflow's progress. Callable from the body's thread."""
        engine = self._runner.engine
        if threading.get_ident() == engine.thread_id:
            self._show(key, text)
        else:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody would see it
                engine.loop.call_soon_threadsafe(self._show, key, text)

    def _show(self, key: str, text: str) -> None:
        body = self.running.get(key)
        if body is not None and not body.is_dropped:
            self._runner.show(text)

    # ------------------------------------------------------------------ ends of bodies

    def body_done(self, body: Body, result: Any, error: BaseException | None) -> None:
        """One try of a step has ended."""
        runner, command = self._runner, body.command
        if self.is_frozen and not body.is_dropped and runner.wants_steps:
            self._frozen.append((body, result, error))
            return
        self.running.pop(command.key, None)
        if body.is_dropped or (runner.state != "running" and not runner.wants_steps):
            return
        if error is not None:
            if self._try_again(body, error):
                runner.step_put_off()
            else:
                runner.step_ended(body, None, describe(error, command.spec.raises))
            return
        try:
            text = command.spec.result.encode(result)
        except CodecError as refused:  # the effect has happened: another try would only repeat it
            runner.fail_certainly(refused)
            return
        runner.step_ended(body, text, None)

    def body_unbegun(self, body: Body) -> None:
        """A try has not begun after all: nothing has happened, and nothing is spent."""
        self.running.pop(body.command.key, None)
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
        self.later[command.key] = (command, StepRetry(command.key, tries, next_at, describe(error)))
        return True

    # ------------------------------------------------------------------ transactional steps

    def _transaction_entry(self, body: Body, result: Any) -> JournalOp:
        """Called on the store's writer thread, inside the transaction; the frozen core does not move meanwhile."""
        runner, key = self._runner, body.command.key
        entry = runner.new_entry(key, "step", body.command.spec.result.encode(result), None, body)
        settled = (key,) if key in self.recorded else ()
        has_counters = runner.row.attempts > 0 or runner.row.crashes > 0
        return JournalOp(runner.fence, (entry,), (), settled, key, None, has_counters)

    def transaction_done(self, body: Body, entry: Entry | None, error: BaseException | None) -> None:
        """Thaw: deliver the committed entry, or treat the error like any body's; then what waited meanwhile."""
        frozen, self._frozen = self._frozen, []
        self.is_frozen = False
        runner, command = self._runner, body.command
        if not runner.wants_steps:
            return
        if entry is not None:
            self.running.pop(command.key, None)
            self.recorded.pop(command.key, None)
            runner.transaction_committed(entry, is_wanted=not body.is_dropped)
        elif isinstance(error, (LeaseLost, OutcomeUnknown)):
            # Not ours any more, or perhaps committed: only the database can tell. Reconciliation gives the row back.
            runner.drop()
            return
        elif isinstance(error, CodecError):
            runner.fail_certainly(error)
            return
        elif isinstance(error, StoreError) and not isinstance(error, StoreConflict):
            self.running.pop(command.key, None)
            again_at = runner.engine.now_us() + STORE_PAUSE_US
            self.later[command.key] = (command, StepRetry(command.key, body.tries - 1, again_at))
        else:
            self.body_done(body, None, error)
        for other, result, failure in frozen:
            self.body_done(other, result, failure)
        runner.settle()

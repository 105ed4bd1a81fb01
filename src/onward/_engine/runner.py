"""The life of one execution on this worker, from its claim to the commit that gives its row back.

A `Runner` stands between the pure replay core and everything with a clock. It is made by the dispatcher for a claimed row
and lives until its last operation is committed (parked, finished, attempt failed, released) or its lease is lost:

1. **Replay.** The whole recorded history is fed to the core. If code and history disagree, the row goes back unspent.
2. **Inputs at hand.** Mail and due timers are delivered, merged by database time (mail before a timer of the same instant),
   each as a new journal entry. Only then may commands begin.
3. **Commands.** Each waits until the journal has been committed up to the entry that was last delivered when workflow code
   issued it, and until the lease is known to hold; then step bodies start (steps.py), children are started, progress is shown.
4. **Entries.** The end of a body is delivered to the core at once and goes to the committer; both lead to new commands,
   which wait for that commit. A step's error is delivered tentatively: if it ends the workflow function in that very
   drain it is not recorded, so that the next attempt runs the step again.
5. **Rest.** When nothing runs and nothing is to begin, the execution parks: its row says what it waits for and until when,
   and the memory is given back. A wait of a few milliseconds is sat out instead.
6. **End.** The outcome is written in the same transaction as the last entry. An escaping error becomes another attempt, or
   `failed` (endings.py decides).

All methods run on the worker's loop. Nothing here blocks and nothing raises into the loop: what goes wrong with one
execution ends that execution, never the worker.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import msgspec

from onward._engine import endings
from onward._engine.children import Children
from onward._engine.failures import describe
from onward._engine.inputs import Inputs
from onward._engine.pending import Pending
from onward._engine.replay.commands import Raised, RunStep
from onward._engine.replay.matching import Execution
from onward._engine.resting import Rest
from onward._engine.showing import Showing
from onward._engine.steps import Steps
from onward._store.operations import Fence, JournalOp, LeaseLostOutcome, Op, Outcome, StartOp
from onward._store.records import Claimed, Entry, EntryKind, Inbox, Loaded
from onward.errors import NonDeterminismError, OnwardError

if TYPE_CHECKING:
    from onward._engine.bodies import Body
    from onward._engine.engine import Engine
    from onward._engine.specs import WorkflowSpec


class Runner:
    """One held execution.

    Args:
        engine: the worker's parts that it uses.
        row: the claimed row.
        spec: the workflow definition for the row's type.
    """

    __slots__ = (
        "_activation_us", "_core", "_grace_timer", "_had_timers", "_history", "_is_new", "_is_watched", "_last_seq", "_pending",
        "_rest", "_showing", "_submit", "_verdict", "children", "committed", "engine", "fence", "inputs", "is_dropped", "row",
        "spec", "state", "steps",
    )  # fmt: skip

    def __init__(self, engine: Engine, row: Claimed, spec: WorkflowSpec) -> None:
        self.engine = engine
        self.row = row
        self.spec = spec
        self.fence = Fence(row.id, engine.worker_id, row.epoch)
        self.is_dropped = False
        self.state = "running"
        """→ escaping (an error left the function, siblings may end) → leaving (the last operation is submitted) → gone"""
        self._core: Execution | None = None
        self._history: list[Entry] = []
        self.committed = 0
        """The highest entry known to be committed."""
        self._last_seq = 0
        """The highest number given to an entry, struck-out ones included."""
        self._is_new = True
        """No entry has been delivered since the claim."""
        self._pending = Pending(self)
        self.steps = Steps(self)
        self.inputs = Inputs(row.signals, row.deadline)
        self.children: Children | None = None
        self._showing: Showing | None = None
        self._is_watched = engine.is_always_parking
        """There is more to do at each turn than to begin commands: a test mode, or progress that is shown."""
        self._rest: Rest | None = None
        self._verdict: endings.Verdict | None = None
        self._grace_timer: asyncio.TimerHandle | None = None
        self._submit = engine.committer.submit
        self._had_timers = False
        self._activation_us = 0

    # ------------------------------------------------------------------ 1. replay

    def begin(self, loaded: Loaded | None) -> None:
        """Replay and go on; `loaded` is None for a fresh row, which has no history."""
        started = time.monotonic()
        if loaded is not None:
            self._history = list(loaded.entries)
            self.committed = self._last_seq = loaded.last_seq
            self.inputs.load(loaded)
            self.steps = Steps(self, loaded.retries)
        try:
            self._core = self.engine.new_execution(self.row, self.spec, self.committed)
            self._core.replay(self._history)
            self._had_timers = bool(self._history)  # should it have ended already: perhaps some were, by its last entry
        except NonDeterminismError as error:
            self._diverged(error)
            return
        except Exception as error:  # a row spoiled by hand: only this workflow suffers
            self.fail_certainly(error)
            return
        self._activation_us = int((time.monotonic() - started) * 1e6)
        self._pending.take(self._core)
        self.settle()

    def _diverged(self, error: NonDeterminismError) -> None:
        self.engine.tell_error(self, error)
        self._leave(endings.put_back(self, error))

    def fail_certainly(self, error: Exception) -> None:
        """Fail the workflow with an error that no further attempt could mend."""
        self.engine.tell_error(self, error, is_final=True)
        self._leave(endings.give_up(self, error))

    # ------------------------------------------------------------------ 2. inputs

    def mail_arrived(self, inbox: Inbox) -> None:
        """Take what was read of the row and its mailbox."""
        if self.state != "running" or inbox.epoch != self.row.epoch:
            return
        self.inputs.take(inbox)
        self.settle()

    def settle(self) -> None:
        """Deliver all inputs at hand, begin what may begin, and park if nothing is left to do."""
        core, steps, inputs = self._core, self.steps, self.inputs
        if self.state != "running" or steps.is_frozen or core is None:
            return
        if inputs.mail or core.loop.timers or inputs.deadline is not None:
            while core.ending is None and (item := inputs.pop(core, self.engine.now_us)) is not None:
                self.deliver(self.new_entry(item.key, item.kind, item.result, item.error), item.consumed)
                if self.state != "running":
                    return
        if core.ending is not None:
            self._ended(None)
            return
        pending = self._pending
        if pending.commands and (self._is_watched or not pending.waits_for_commit(self.committed)):
            self._begin_commands()
            if self.state != "running":
                return
        if not steps.running and not pending.commands and not self._has_starting and self._park(core):
            return
        if self.engine.dispatcher.is_stopping:
            self.wind_down()
        elif self._rest is not None or steps.later or inputs.has_timed(core):
            self._resting.schedule(core, steps, inputs)

    @property
    def _has_starting(self) -> bool:
        """Whether the start of a child is not committed yet."""
        return self.children is not None and self.children.are_starting

    @property
    def _resting(self) -> Rest:
        if self._rest is None:
            self._rest = Rest(self)
        return self._rest

    # ------------------------------------------------------------------ 3. commands

    def record(self, entry: Entry) -> None:
        """Record an entry that the core made itself and knows already (a patch marker)."""
        self._last_seq = entry.seq
        self._history.append(entry)
        self.submit(JournalOp(self.fence, (entry,)))

    def _begin_commands(self) -> None:
        if self.engine.is_always_parking and self._pending.commands and self._gives_back():
            self._leave(self._resting.give_back(self.steps, self.inputs))
            return
        self._pending.begin()
        if self._showing is not None:
            self._showing.send()

    @property
    def showing(self) -> Showing:
        """The workflow's progress."""
        if self._showing is None:
            self._showing = Showing(self)
            self._is_watched = True
        return self._showing

    def show(self, text: str) -> None:
        """The body of a running step shows this as the workflow's progress."""
        if self.state == "running":
            self.showing.show(text)

    def _go_on(self) -> None:
        """An entry is committed: begin what waited for it. Inputs were delivered as they came, so that often suffices."""
        if self._rest is not None and self._rest.is_timed:
            self.settle()
            return
        if not self.engine.dispatcher.is_stopping:
            if self._is_watched:
                self._begin_commands()
            else:
                self._pending.begin()
        if not self.steps.running:
            self.settle()

    @property
    def is_flushed(self) -> bool:
        """Whether everything so far is committed, as a transactional step wants it."""
        return self._last_seq <= self.committed and not self._has_starting

    def _gives_back(self) -> bool:
        """In always-park mode: give the row back after each entry if everything pending can as well begin later."""
        return not self._is_new and self._pending.can_wait and not self.steps.running and not self._has_starting

    # ------------------------------------------------------------------ 4. entries

    @property
    def is_running(self) -> bool:
        """Whether entries are still delivered: the workflow function has not ended here, and nothing is leaving."""
        return self.state == "running"

    def wants(self, key: str) -> bool:
        """Whether workflow code still awaits what this key stands for."""
        return self._core is not None and key in self._core.outstanding

    @property
    def wants_steps(self) -> bool:
        """Whether ends of step bodies still count."""
        return self.state in {"running", "escaping"}

    def new_entry(
        self, key: str, kind: EntryKind, result: str | None, error: str | None = None, body: Body | None = None
    ) -> Entry:
        """The next entry of the journal; its time never falls within one workflow."""
        assert self._core is not None
        at, now_us = self.engine.now_us(), self._core.loop.now_us
        at = max(at, now_us)
        if body is None:
            return Entry(self._last_seq + 1, key, kind, at, result, error)
        command = body.command
        return Entry(
            self._last_seq + 1, key, kind, at, result, error,
            command.digest, command.arguments, body.tries, body.started_at,
        )  # fmt: skip

    def deliver(self, entry: Entry, consumed: tuple[int, ...] = ()) -> None:
        """Deliver a new entry and record it, unless it is an error that ends the workflow in this very drain."""
        core = self._core
        assert core is not None
        self._had_timers = bool(core.loop.timers) and core.next_timer() is not None
        if not self._feed(core, entry):
            return
        key, is_step, error = entry.key, entry.kind == "step", entry.error
        if is_step and error is not None and isinstance(core.ending, Raised):
            self._ended(entry)
            return
        self._last_seq = entry.seq
        self._history.append(entry)
        progress = None if self._showing is None else self._showing.take()
        if is_step:
            settled = self.steps.settled(key) if self.steps.recorded else ()
            resets = error is None and self._resets_counters()  # an error may be struck out: no progress yet
            op = JournalOp(self.fence, (entry,), consumed, settled, key, progress, resets)
        else:
            op = JournalOp(self.fence, (entry,), consumed, progress=progress)
            if entry.kind == "child":
                self._pending.child_ended(key)
        self._submit(op, self)
        if core.commands:
            self._pending.take(core)

    def _feed(self, core: Execution, entry: Entry) -> bool:
        """Give an entry to the core; False if that ended this execution."""
        self._is_new = False
        try:
            core.deliver(entry)
        except NonDeterminismError as diverged:
            self._diverged(diverged)
            return False
        except Exception as error:
            self.fail_certainly(error)
            return False
        return True

    def _resets_counters(self) -> bool:
        """Whether this newly recorded step has counters to reset (the first one of a claim)."""
        row = self.row
        if row.attempts == 0 and row.crashes == 0:
            return False
        self.row = msgspec.structs.replace(row, attempts=0, crashes=0)
        return True

    def step_ended(self, body: Body, result: str | None, error: str | None) -> None:
        """A step has its result, or its last try has failed."""
        if self.state == "escaping":
            if error is None:
                self._record_sibling(body, result)
            self._leave_if_quiet()
            return
        key, core = body.command.key, self._core
        if core is not None and key in core.outstanding:  # else its await was cancelled: that command is still pending
            self.deliver(self.new_entry(key, "step", result, error, body))
        self.settle()

    def step_put_off(self) -> None:
        """A step waits for its next try."""
        if self.state == "escaping":
            self._leave_if_quiet()
        else:
            self.settle()

    def step_unbegun(self, command: RunStep) -> None:
        """A step that was begun could not: it begins when the lease holds again."""
        if self.state == "escaping":
            self._leave_if_quiet()
        else:
            self._pending.put_back(command)
            self.settle()

    def transaction_committed(self, entry: Entry, *, is_wanted: bool) -> None:
        """A transactional step has committed its own entry."""
        self.committed = self._last_seq = entry.seq
        self._history.append(entry)
        self._resets_counters()
        core = self._core
        if self.state == "running" and is_wanted and core is not None and self._feed(core, entry):
            self._pending.take(core)

    # ------------------------------------------------------------------ 5. rest

    def _park(self, core: Execution) -> bool:
        """Nothing runs and nothing is to begin: park if the wait is worth it. True if the runner is leaving."""
        park = self._resting.park(core, self.steps, self.inputs, self._activation_us)
        if park is not None:
            self.engine.check_replay(self.row, self.spec, self._history, core)
            self._leave(park)
        elif core.ending is not None:
            self._ended(None)
        return self.state != "running"

    @property
    def next_event_at(self) -> int | None:
        """When something happens to it by itself."""
        return None if self._core is None else self._resting.next_event_at(self._core, self.steps, self.inputs)

    def time_passed(self) -> None:
        """Something is due by itself: a try of a step, a timer, or the workflow's own deadline."""
        if self.state == "running":
            self._pending.extend(self.steps.due(self.engine.now_us()))
            self.settle()

    def wind_down(self, *, now: bool = False) -> None:
        """The worker stops: begin nothing more; leave when the bodies have ended, or at once."""
        if self.state not in ("running", "escaping") or (self.steps.running and not now):
            return
        if self._verdict is not None:
            self._write_verdict()
        else:
            self._leave(self._resting.give_back(self.steps, self.inputs))

    # ------------------------------------------------------------------ 6. end

    def _ended(self, tentative: Entry | None) -> None:
        """The root task has ended; `tentative` is the unrecorded error that ended it, if one did."""
        core = self._core
        assert core is not None
        assert core.ending is not None
        ending = core.ending
        self._verdict = endings.judge(self, ending, self._history, tentative, had_timers=self._had_timers)
        if (
            self._pending.commands and (progress := self._pending.clear()) is not None
        ):  # its last word: no entry takes it
            self.submit(JournalOp(self.fence, progress=progress))
        self.steps.forget_waiting()
        if self._verdict.is_final and tentative is None:
            self.engine.check_replay(self.row, self.spec, self._history, core)
        if not isinstance(ending, Raised) or not self.steps.running:
            self._write_verdict()
            return
        self.state = "escaping"  # let siblings in flight end and be recorded
        self._grace_timer = self.engine.loop.call_later(self.engine.grace_s, self._write_verdict)

    def _record_sibling(self, body: Body, result: str | None) -> None:
        """A body that was in flight when another branch's error escaped: its result is valid and is kept."""
        entry = self.new_entry(body.command.key, "step", result, None, body)
        self._last_seq = entry.seq
        self._history.append(entry)
        self.submit(JournalOp(self.fence, (entry,), settled=self.steps.settled(entry.key), step=entry.key))

    def _leave_if_quiet(self) -> None:
        if not self.steps.running:
            self._write_verdict()

    def _write_verdict(self) -> None:
        if self.state in ("running", "escaping") and self._verdict is not None:
            assert self._core is not None
            self._leave(self._verdict.operation(self._last_seq + 1, max(self._core.now_us, self.engine.now_us())))

    def _leave(self, op: Op) -> None:
        """Submit the last operation and forget everything that could still act."""
        self.state = "leaving"
        self.engine.dispatcher.leaving()
        self._forget()
        self.submit(op)

    def _forget(self) -> None:
        if self._rest is not None:
            self._rest.cancel()
        if self._showing is not None:
            self._showing.end()
        if self._grace_timer is not None:
            self._grace_timer.cancel()
            self._grace_timer = None
        self.steps.drop()
        if self._pending.commands:
            self._pending.clear()
        if self._core is not None:
            self._core.close()

    def drop(self) -> None:
        """Forget the execution without a word to the database: the lease is lost or the worker is dead."""
        if self.state == "gone":
            return
        self.is_dropped = True
        self._forget()
        self._go()

    def _go(self) -> None:
        """The end of this object. Its parts point back to it: they are cut off, so that all memory is free at once and no
        collection has to find it (late ends of dropped bodies still reach their part, and find a runner that is gone)."""
        was_leaving, self.state = self.state == "leaving", "gone"
        self.engine.released(self, was_leaving=was_leaving)
        del self.steps, self._submit, self._pending
        self.children = self._rest = self._showing = None

    # ------------------------------------------------------------------ the committer's answers

    def submit(self, op: Op) -> None:
        """Queue an operation of this execution."""
        self._submit(op, self)

    def settled(self, op: Op, outcome: Outcome) -> None:
        """An operation of this execution is committed, or its fence was refused."""
        if type(outcome) is LeaseLostOutcome:
            self.engine.log.warning(
                "workflow %s belongs to another worker now; its execution here is dropped", self.row.id,
                extra={"workflow_id": self.row.id},
            )  # fmt: skip
            self.drop()
            return
        if type(op) is JournalOp:
            if op.entries:
                seq = op.entries[-1].seq
                self.committed = max(self.committed, seq)
                if self._pending.commands and self.state == "running":
                    self._go_on()
            elif self._showing is not None:
                self._showing.committed()
        elif type(op) is StartOp:
            if self.children is not None:
                self.children.answered(op, outcome)
        else:
            self._go()

    def refused(self, op: Op, error: OnwardError) -> None:
        """The database refuses what this execution wants to write, and nothing else: the workflow fails with that error."""
        self.engine.log.error(
            "workflow %s cannot be recorded: %s", self.row.id, error, extra={"workflow_id": self.row.id}
        )
        self.engine.tell_error(self, error, is_final=True)
        self.drop()
        self.engine.fail_apart(self.fence, describe(error))

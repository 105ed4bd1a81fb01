"""What becomes of an execution whose workflow function has ended, or rests: the failure policy, in one place.

Called by the runner only; decides, and builds the operation that the decision is written with. An escaping error is one
failed attempt, unless it can be shown that another attempt would only replay it:

* it is, wraps or groups an error that is *recorded*, and the rest of the history depends on that error (cleanup ran): the
  workflow is `failed` at once. If the rest is accepted without that entry, the entry is struck out and its step is tried
  again by the next attempt.
* it comes from a child, which has had its own attempts; or it is `Fail` or a `CodecError`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from onward._engine.failures import describe, note, short
from onward._engine.replay.commands import Cancelled, Ending, Raised, Returned, Waiting
from onward._store.operations import FailAttemptOp, Fence, FinishOp, ReleaseOp
from onward._store.records import Entry, StepRetry
from onward.errors import CodecError, Fail, NonDeterminismError
from onward.retry import workflow_backoff

if TYPE_CHECKING:
    from onward._engine.runner import Runner


class Verdict(msgspec.Struct, frozen=True):
    """The decision. A final one has its operation ready; another attempt still lets siblings in flight end first."""

    fence: Fence
    finish: FinishOp | None = None
    error: str = ""
    backoff_us: int = 0
    strike: tuple[int, ...] = ()
    shifts_timers: bool = False
    retries: tuple[StepRetry, ...] = ()

    @property
    def is_final(self) -> bool:
        """The workflow has its one outcome."""
        return self.finish is not None

    def operation(self, seq: int, at: int) -> FinishOp | FailAttemptOp:
        """The operation to write after everything else; `seq` and `at` are for the entry that moves pending timers."""
        if self.finish is not None:
            return self.finish
        shift = Entry(seq, "attempt", "attempt", at, result=str(self.backoff_us))
        entries = (shift,) if self.shifts_timers else ()
        return FailAttemptOp(self.fence, self.error, self.backoff_us, entries, self.strike, self.retries)


def judge(
    runner: Runner, ending: Ending, history: Sequence[Entry], tentative: Entry | None, *, had_timers: bool
) -> Verdict:
    """Decide what this end means; `tentative` is the unrecorded step error that caused it, if one did."""
    fence = runner.fence
    match ending:
        case Returned():
            return Verdict(fence, FinishOp(fence, "completed", result=ending.result))
        case Cancelled(timed_out=True):
            runner.engine.log.warning(
                "workflow %s has timed out and is failed", runner.row.id, extra={"workflow_id": runner.row.id}
            )
            record = note("WorkflowTimedOut", "the workflow's own timeout passed", status="timed_out")
            return Verdict(fence, FinishOp(fence, "failed", error=record, cancels_children=True))
        case Cancelled():
            record = note("Cancelled", "cancelled", status="cancelled")
            return Verdict(fence, FinishOp(fence, "cancelled", error=record, cancels_children=True))
        case Raised():
            return _judge_error(runner, ending, history, tentative, had_timers)


def _judge_error(
    runner: Runner, ending: Raised, history: Sequence[Entry], tentative: Entry | None, had_timers: bool
) -> Verdict:
    engine, row, error = runner.engine, runner.row, ending.error
    by_seq = {entry.seq: entry for entry in history}
    recorded = [seq for seq in ending.recorded if seq in by_seq]
    is_certain = isinstance(error, (Fail, CodecError))
    strike: tuple[int, ...] = ()
    if recorded and not is_certain:
        if any(by_seq[seq].kind != "step" for seq in recorded):
            is_certain = True
        else:
            kept = [entry for entry in history if entry.seq not in recorded]
            replayed = _replay_without(runner, kept)
            if replayed is None:
                is_certain = True
            else:
                strike, had_timers = tuple(recorded), replayed
    attempt = row.attempts + 1
    is_last = attempt >= row.max_attempts and row.id not in (engine.options.only or ())[:1]  # `run` may be run again
    engine.tell_error(runner, error, is_final=is_certain or is_last)
    is_told = bool(engine.options.only)  # `run` raises the error; nobody else is there to try again
    level = logging.DEBUG if is_told else logging.ERROR if is_certain or is_last else logging.WARNING
    said = {"workflow_id": row.id, "attempt": attempt}
    what = " ".join(short(describe(error)).split())
    if is_certain or is_last:
        engine.log.log(
            level, "workflow %s failed in attempt %d of %d and is not tried again: %s",
            row.id, attempt, row.max_attempts, what, extra=said,
        )  # fmt: skip
        first = min(recorded) if recorded else None
        record = describe(error, runner.spec.raises, seq=first)
        return Verdict(runner.fence, FinishOp(runner.fence, "failed", error=record, spends_attempt=True))
    backoff = runner.spec.backoff
    wait = workflow_backoff(attempt) if backoff is None else backoff.delay_before(attempt + 1, engine.rng)
    engine.log.log(
        level, "workflow %s failed in attempt %d of %d and is tried again in %.0f s: %s",
        row.id, attempt, row.max_attempts, wait, what, extra=said,
    )  # fmt: skip
    failing = tentative.key if tentative is not None else None
    retries = tuple(state for state in runner.steps.states() if state.key != failing)
    return Verdict(
        runner.fence, None, describe(error), round(wait * 1e6), strike, had_timers, retries,
    )  # fmt: skip


def _replay_without(runner: Runner, kept: Sequence[Entry]) -> bool | None:
    """Whether timers are pending after a replay of the history without the struck entries; None if it is not accepted."""
    execution = runner.engine.new_execution(runner.row, runner.spec, 0, is_quiet=True)
    try:
        execution.replay(kept)
    except NonDeterminismError:
        return None
    else:
        return None if execution.ending is not None else execution.next_timer() is not None
    finally:
        execution.close()


def put_back(runner: Runner, error: NonDeterminismError) -> ReleaseOp:
    """Code and history disagree: no attempt is spent, and a worker with other code may take the row at once."""
    engine, row = runner.engine, runner.row
    delay = divergence_backoff(row.divergences)
    engine.log.warning(
        "workflow %s does not fit this code and is put back for %.0f s: %s", row.id, delay, error,
        extra={"workflow_id": row.id},
    )  # fmt: skip
    return ReleaseOp(runner.fence, int(delay * 1e6), error=describe(error), diverged_by=engine.code_version)


def give_up(runner: Runner, error: Exception) -> FinishOp:
    """Something that no further attempt could mend."""
    runner.engine.log.error(
        "workflow %s cannot go on and is failed: %s: %s", runner.row.id, type(error).__name__, error,
        extra={"workflow_id": runner.row.id},
    )  # fmt: skip
    return FinishOp(runner.fence, "failed", error=describe(error))


def divergence_backoff(divergences: int) -> float:
    """Seconds before code of the same version tries a diverged workflow again: 1 s doubling to 5 min."""
    return min(300.0, 2.0 ** min(divergences, 20))


def waiting_for(waiting: Sequence[Waiting], retries: Mapping[str, StepRetry]) -> str:
    """What a parked workflow waits for, as JSON for people and for the view: a list of kind, key, name, until."""
    items: list[dict[str, object]] = []
    for item in waiting:
        if item.kind == "step":
            state = retries.get(item.key)
            if state is not None:
                retry = {"kind": "retry", "key": item.key, "until": state.next_at, "tries": state.tries}
                items.append({**retry, "error": short(state.error)} if state.error else retry)
            continue
        shown: dict[str, object] = {"kind": item.kind, "key": item.key}
        if item.name:
            shown["name"] = item.name
        if item.deadline is not None:
            shown["until"] = item.deadline
        items.append(shown)
    return msgspec.json.encode(items[:MAX_SHOWN_WAITS]).decode()


MAX_SHOWN_WAITS = 20
"""A workflow that waits for thousands of children names only the first ones in its row."""

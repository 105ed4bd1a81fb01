"""One execution of one workflow: fed with journal entries in order, it gives commands and in the end an ending.

This is the life cycle, pure: `replay` starts the workflow function, runs it to rest, then feeds the history one entry at a
time, each followed by running to rest; `deliver` does the same with one new entry. Live and replayed execution are thus one
path. What workflow code awaits is *outstanding* under its journal key; an entry settles the one of its key and kind, or the
code and the history disagree (`NonDeterminismError`). Commands wait in a list for `take_commands`; those whose entry came
first (replay) or whose await was cancelled first never leave it. `close` ends every coroutine, after which nothing of the
execution runs again. Used by the runner, from plain callbacks of its loop; never from two threads.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from types import MappingProxyType
from typing import Any

from onward._codec.undecodable import Undecodable
from onward._engine.replay import divergence
from onward._engine.replay.calls import Call, Wait
from onward._engine.replay.commands import (
    Cancelled,
    CancelStep,
    Command,
    Ending,
    Raised,
    Record,
    Returned,
    RunStep,
    SetProgress,
    StartChild,
    Waiting,
    WatchChild,
)
from onward._engine.replay.loop import DEFAULT_LIMITS, Limits, ReplayLoop, Task
from onward._engine.replay.private import activate, here
from onward._engine.replay.randomness import Randomness
from onward._engine.replay.where import location
from onward._engine.specs import PROGRESS, WorkflowSpec
from onward._store.records import Entry
from onward.errors import NotInWorkflow, UsageError, WorkflowStuck

logger = logging.getLogger("onward.workflow")
_NO_TAGS: Mapping[str, str] = MappingProxyType({})


class Execution:
    """One execution of one workflow: fed with journal entries, gives commands."""

    __slots__ = (
        "__weakref__", "_cancels", "_counts", "_index", "_left_keys", "_note", "_patches", "_payload", "_randomness",
        "_remaining", "_returned", "_root", "_run", "_seed", "attempt", "code_version", "commands", "ending", "is_closed",
        "is_replaying", "last_seq", "loop", "outstanding", "recorded_code_version", "recorded_version", "seq_floor",
        "spec", "tags", "unawaited", "workflow_id",
    )  # fmt: skip

    def __init__(
        self,
        spec: WorkflowSpec,
        payload: str,
        *,
        workflow_id: str,
        seed: str,
        started_at: int,
        run: int = 0,
        attempt: int = 1,
        tags: Mapping[str, str] = _NO_TAGS,
        code_version: str = "",
        recorded_code_version: str | None = None,
        recorded_version: str | None = None,
        seq_floor: int = 0,
        limits: Limits = DEFAULT_LIMITS,
        note: Callable[[str], None] | None = None,
        outer: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.spec = spec
        self.workflow_id = workflow_id
        self.attempt = attempt
        self.tags = tags
        self.code_version = code_version
        self.recorded_code_version = recorded_code_version
        self.recorded_version = recorded_version
        self.seq_floor = seq_floor
        self.last_seq = 0
        self.ending: Ending | None = None
        self.is_replaying = False
        self.is_closed = False
        self.outstanding: dict[str, Any] = {}
        self.unawaited: dict[int, Call[Any]] = {}
        self.loop = ReplayLoop(self, int(seed[:12], 16) + run, started_at, limits, outer)  # type: ignore[abstract]  # set below its class
        self._payload = payload
        self._seed = seed
        self._run = run
        self._note = note
        self._counts: dict[str, int] = {}
        self.commands: dict[Any, Command] = {}
        self._index: dict[tuple[str, str], dict[str, Wait]] | None = None
        self._patches: dict[str, bool] | None = None
        self._remaining = 0
        self._root: Task[None] | None = None
        self._cancels: list[str] = []
        self._left_keys: dict[str, str] = {}
        self._returned: dict[str, deque[str]] | None = None
        self._randomness: Randomness | None = None

    # ------------------------------------------------------------------ in

    def replay(self, history: Sequence[Entry], *, is_check: bool = False) -> None:
        """Start the workflow function and feed all the history. May be called once only. `is_check`: nothing will follow, so
        that even code that no entry precedes counts as replayed.

        Raises NonDeterminismError, or CodecError for a payload that the codec of this worker cannot decode; whatever
        workflow code raises becomes `ending`.
        """
        if self._root is not None or self.is_closed:
            raise UsageError("replay() may be called once only")
        if isinstance(self._payload, Undecodable):
            raise self._payload.error()
        activate(self.loop, self._replay, history, is_check)

    def deliver(self, entry: Entry) -> None:
        """Deliver one new entry and run to rest. Raises NonDeterminismError where nothing waits for it."""
        if self._root is None or self.is_closed:
            raise UsageError("deliver() comes after replay() and before close()")
        activate(self.loop, self._feed, entry)

    def stuck(self, why: str) -> None:
        """End a resting execution with `WorkflowStuck`: the runner sees that nothing can ever wake it."""
        if self._root is None or self.is_closed or self.ending is not None:
            return
        place = divergence.place_of(self, None)
        text = f"workflow {self.workflow_id!r} {why}{f', at {place}' if place else ''}"
        self.escape(WorkflowStuck(text, location=place))
        activate(self.loop, self._settle_end)

    def close(self) -> None:
        """Close every coroutine. Idempotent; never raises. Afterwards nothing of the execution runs again."""
        if self.is_closed:
            return
        self.is_closed = True
        loop = self.loop
        loop.outer = None  # it may have ended before us
        if not loop.closing and self._root is not None:
            activate(loop, loop.close_all)
        loop.closing = loop.stopped = True
        for wait in self.outstanding.values():
            if isinstance(wait, Wait):
                asyncio.Future.cancel(wait)
        self.outstanding.clear()
        self.commands.clear()
        self.unawaited.clear()
        self._index = self._root = None
        if not loop.has_buried:
            loop.owner = None

    # ------------------------------------------------------------------ out

    @property
    def now_us(self) -> int:
        """Workflow time: that of the last entry delivered, at first `started_at`."""
        return self.loop.now_us

    @property
    def run(self) -> int:
        """Which run of the workflow this is."""
        return self._run

    @property
    def is_resting(self) -> bool:
        """Nothing is ready; always true outside of calls."""
        return here.loop is not self.loop

    def take_commands(self) -> list[Command]:
        """The commands issued since the last call, in order."""
        if not self.commands:
            return []
        commands = list(self.commands.values())
        self.commands.clear()
        return commands

    @property
    def has_timers(self) -> bool:
        """Whether a timer may be outstanding; false is certain, and cheap."""
        return bool(self.loop.timers)

    def next_timer(self) -> Waiting | None:
        """The outstanding timer with the lowest (deadline, creation)."""
        return self.loop.next_timer()

    def waiting(self) -> list[Waiting]:
        """All that is outstanding, in creation order."""
        return [wait.describe() for wait in self.outstanding.values()]

    def wants(self, key: str) -> bool:
        """Whether something is outstanding under this key."""
        return key in self.outstanding

    def wants_signal(self, name: str) -> str | None:
        """Key of the oldest outstanding wait for this signal, or None."""
        return self._oldest(("signal", name))

    def wants_child(self, child_id: str) -> str | None:
        """Key of the oldest outstanding wait for this workflow's end, or None."""
        return self._oldest(("child", child_id))

    def _oldest(self, index: tuple[str, str]) -> str | None:
        waits = self._index.get(index) if self._index is not None else None
        return next(iter(waits), None) if waits else None

    # ------------------------------------------------------------------ replay

    def _replay(self, history: Sequence[Entry], is_check: bool) -> None:
        self._remaining = len(history)
        self.is_replaying = is_check or bool(history)
        if history:
            self._patches = {entry.key: True for entry in history if entry.kind == "patch"} or None
        loop = self.loop
        self._root = Task(self._main(), loop, self.spec.name, Context())
        loop.tasks.append(self._root)
        loop.run()
        if self.ending is not None:
            self._settle_end()
        for entry in history:
            self._remaining -= 1
            self._feed(entry)
        self.is_replaying = False
        progress = self.commands.get("progress")
        if progress is not None and progress.after < self.last_seq:
            del self.commands["progress"]  # it was committed with the entry that followed

    def _feed(self, entry: Entry) -> None:
        kind, key = entry.kind, entry.key
        if self.ending is not None:
            self._feed_after_end(entry)
            return
        self.last_seq = entry.seq
        loop = self.loop
        loop.now_us = max(loop.now_us, entry.finished_at)
        wait = self.outstanding.get(key)
        if wait is not None and wait.kind == kind:
            if (
                entry.digest is not None
                and entry.digest != wait.digest
                and wait.digest is not None
                and wait.checks_digest
            ):
                raise divergence.other_arguments(self, entry, wait)
            if kind != "timer":
                self.commands.pop(key, None)
                if kind == "step" and wait.held is not None:
                    self.commands.pop(("cancel", key), None)
                if wait.index is not None:
                    self._unlist(wait)
            del self.outstanding[key]
            wait.settle(entry)
        elif kind == "patch":
            return
        elif kind in {"cancel", "timeout"}:
            assert self._root is not None
            self._cancels.append(kind)
            self._root.cancel()
        elif kind == "attempt":
            loop.shift_timers(int(entry.result or 0))
            return
        elif wait is not None:
            raise divergence.other_kind(self, entry, wait)
        else:
            raise divergence.not_called(self, entry)
        loop.run()
        if self.ending is not None:
            self._settle_end()

    def _feed_after_end(self, entry: Entry) -> None:
        """History that is left when the workflow function has ended: a divergence, except what may follow an error that
        escapes at the same place on every attempt (results of siblings that were in flight, the attempt's own entry)."""
        is_expected = entry.kind == "patch"
        if isinstance(self.ending, Raised):
            is_expected |= entry.kind == "attempt" or self._left_keys.get(entry.key) == entry.kind
        if not is_expected:
            raise divergence.ended_early(self, entry)
        self.last_seq = entry.seq
        self.loop.now_us = max(self.loop.now_us, entry.finished_at)

    async def _main(self) -> None:
        try:
            args, kwargs = self.spec.arguments.decode(self._payload)
            value = await self.spec.fn(*args, **kwargs)
            if not self.loop.closing:
                self._end(Returned(self.spec.result.encode(value)))
        except BaseException as error:
            if self.loop.closing:
                raise
            error.__traceback__ = error.__traceback__.tb_next if error.__traceback__ is not None else None
            if isinstance(error, asyncio.CancelledError) and self._cancels:
                self._end(Cancelled(timed_out=self._cancels[0] == "timeout"))
            else:
                self.escape(error)

    def escape(self, error: BaseException) -> None:
        """End the execution with an error."""
        self._end(Raised(error, divergence.recorded_in(error)))

    def _end(self, ending: Ending) -> None:
        if self.ending is None:
            self.ending = ending
            self.loop.stopped = True

    def _settle_end(self) -> None:
        """The outcome is fixed: nothing more is accepted, what is left is closed, and people are told of it."""
        root = self._root if self._root is not None and self._root.done() else None
        if self.outstanding or self.unawaited or len(self.loop.tasks) > 1:
            self._close_left(root)
        else:
            self.loop.close_all(keep=root)
        if self._cancels and not isinstance(self.ending, Cancelled):
            self.note(f"the workflow was told to stop ({self._cancels[0]}) and caught that: it went on to its own end")
        for key, command in list(self.commands.items()):
            if not isinstance(command, (Record, SetProgress)):
                del self.commands[key]
        self.outstanding.clear()
        self._index = None

    def _close_left(self, root: Task[None] | None) -> None:
        """Close what is left; `root` is the root task if that has ended."""
        self._left_keys = {key: wait.kind for key, wait in self.outstanding.items()}
        calls = list(self.unawaited.values())
        self.unawaited.clear()
        lost = [task for task in self.loop.tasks if task.done() and getattr(task, "_log_traceback", False)]
        places = [location(task.get_coro()) for task in self.loop.tasks if task is not self._root and not task.done()]
        left = self.loop.close_all(keep=root)
        names = [task.get_name() for task in left if task is not self._root]
        if names:
            shown = ", ".join(f"{name} ({place})" if place else name for name, place in zip(names, places, strict=True))
            self.note(f"the workflow ended while {len(names)} of its tasks were unfinished; they were closed: {shown}. Await or "
                      "cancel every task")  # fmt: skip
        if calls:
            keys = ", ".join(call.key for call in calls if call.key)
            self.note(
                f"called but never awaited, so never run: {keys}. Write 'await' before the call, or pass it to gather()"
            )
        for task in lost:
            self.note(f"the task {task.get_name()} failed and nobody awaited it: {task.exception()!r}")

    def note(self, text: str) -> None:
        """Tell people."""
        if self._note is not None:
            self._note(text)
        else:
            logger.warning("workflow %s: %s", self.workflow_id, text, extra={"workflow_id": self.workflow_id})

    # ------------------------------------------------------------------ for calls and waits

    def take_key(self, name: str) -> str:
        """The next journal key of this name: the name itself, then `name#2`, ..."""
        count = self._counts.get(name, 0) + 1
        self._counts[name] = count
        return name if count == 1 else f"{name}#{count}"

    def child_id(self, key: str) -> str:
        """The id of the child started under this key."""
        return f"{self.workflow_id}/{self._run}/{key}" if self._run else f"{self.workflow_id}/{key}"

    def forget(self, wait: Wait) -> None:
        """The await of something outstanding was cancelled."""
        key = wait.key
        if self.outstanding.pop(key, None) is None:
            return
        self._unlist(wait)
        if self.commands.pop(key, None) is None and wait.kind == "step" and not self.loop.closing:
            self.cancel_step(key, waits=False)

    def cancel_step(self, key: str, *, waits: bool) -> None:
        """Tell the runner that a step's await was cancelled."""
        if not self.loop.closing:
            self.commands["cancel", key] = CancelStep(key, self.last_seq, waits)

    def refuses(self) -> bool:
        """Whether an await begins while closing, where it shall suspend for good. Raises NotInWorkflow elsewhere outside."""
        if here.loop is not self.loop:
            raise NotInWorkflow(f"a durable call of workflow {self.workflow_id!r} was awaited outside of it")
        return self.loop.closing

    def issue(self, command: RunStep | StartChild | WatchChild, wait: Wait) -> Wait:
        """Give a command to the runner; `wait` is outstanding until its entry comes."""
        key = wait.key
        self.outstanding[key] = wait
        self.commands[key] = command
        if wait.index is not None:
            self._enlist(wait, wait.index)
        return wait

    def expect(self, wait: Wait) -> Wait:
        """Wait for an entry that no command brings about."""
        self.outstanding[wait.key] = wait
        if wait.index is not None:
            self._enlist(wait, wait.index)
        return wait

    def _enlist(self, wait: Wait, index: tuple[str, str]) -> None:
        if self._index is None:
            self._index = {}
        self._index.setdefault(index, {})[wait.key] = wait

    def _unlist(self, wait: Any) -> None:
        if self._index is not None and wait.index is not None:
            waits = self._index.get(wait.index)
            if waits is not None:
                waits.pop(wait.key, None)
                if not waits:
                    del self._index[wait.index]

    def give_back(self, name: str, message: str) -> None:
        """A signal's message was delivered, and its await cancelled before taking it: the next wait gets it."""
        if not self.loop.closing:
            if self._returned is None:
                self._returned = {}
            self._returned.setdefault(name, deque()).appendleft(message)

    def take_back(self, name: str) -> str | None:
        """The oldest message that was given back."""
        messages = self._returned.get(name) if self._returned is not None else None
        return messages.popleft() if messages else None

    # ------------------------------------------------------------------ for context.py

    def patched(self, patch_id: str) -> bool:
        """Whether new code guarded by this id may run; keeps the first answer it gave for the id."""
        key = f"patch:{patch_id}"
        if self._patches is None:
            self._patches = {}
        answer = self._patches.get(key)
        if answer is None:
            answer = self._patches[key] = self._remaining == 0
            if answer and not self.loop.closing:
                after = self.last_seq
                self.last_seq = max(after, self.seq_floor) + 1  # struck-out entries keep their numbers
                self.commands[key] = Record(after, Entry(self.last_seq, key, "patch", self.loop.now_us))
        return answer

    def set_progress(self, value: object) -> None:
        """Show this value as the workflow's progress."""
        text = PROGRESS.encode(value)
        if not self.loop.closing:
            self.commands.pop("progress", None)
            self.commands["progress"] = SetProgress(self.last_seq, text)

    @property
    def randomness(self) -> Randomness:
        """The random numbers of this run."""
        if self._randomness is None:
            self._randomness = Randomness(self._seed, self._run)
        return self._randomness

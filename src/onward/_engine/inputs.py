"""What comes to a held execution from outside: mail, timers and its own deadline, merged by database time.

A part of a `Runner`. The order decides outcomes (an event at minute 5, a timeout at 10, a cancel at 50, all found by a worker
that was down for an hour), so it is one rule: mail by its creation, timers by (deadline, creation), mail before a timer of
the same instant. Mail that nothing waits for yet stays here, and in the mailbox table, until something does.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from onward._engine.replay.matching import Execution
from onward._store.records import EntryKind, Inbox, Loaded, Mail


class Input(msgspec.Struct, frozen=True, gc=False):
    """The next entry to deliver; `consumed` is the mail that it takes out of the mailbox."""

    key: str
    kind: EntryKind
    result: str | None = None
    error: str | None = None
    consumed: tuple[int, ...] = ()


class Inputs:
    """The undelivered inputs of one execution.

    Args:
        signals: the row's counter as of the claim.
        deadline: when the workflow's own timeout passes, if it has one.
    """

    __slots__ = ("deadline", "last_mail", "mail", "seen")

    def __init__(self, signals: int, deadline: int | None) -> None:
        self.deadline = deadline
        self.mail: list[Mail] = []
        """What has come and nothing has taken yet."""
        self.last_mail = 0
        """The id of the last mail read."""
        self.seen = signals
        """The row's `signals` as read no later than the mail."""

    def load(self, loaded: Loaded) -> None:
        """Take what was read after the claim."""
        self._take(loaded.mail)
        self.seen = loaded.signals
        if any(entry.kind == "timeout" for entry in loaded.entries):
            self.deadline = None

    def take(self, inbox: Inbox) -> None:
        """Take what was read of the row and its mailbox while it is held."""
        self.seen = max(self.seen, inbox.signals)
        self._take([mail for mail in inbox.mail if mail.id > self.last_mail])

    def _take(self, mail: list[Mail]) -> None:
        if mail:
            self.mail.extend(mail)
            self.last_mail = mail[-1].id

    def has_timed(self, core: Execution) -> bool:
        """Whether a timer or the deadline may be pending (a timer that was cancelled since may still count)."""
        return core.has_timers or self.deadline is not None

    def next_event_at(self, core: Execution) -> int | None:
        """When the next timer, or the deadline, is due by itself."""
        timer = core.next_timer()
        at = timer.deadline if timer is not None else None
        if at is None or self.deadline is None:
            return self.deadline if at is None else at
        return min(at, self.deadline)

    def pop(self, core: Execution, now_us: Callable[[], int]) -> Input | None:
        """Take the earliest input at hand, if there is one."""
        if not self.mail and not self.has_timed(core):
            return None
        due_at, due = self._due(core, now_us())
        for index, mail in enumerate(self.mail):
            key = _wanted(core, mail)
            if key is None:
                continue
            if due is not None and due_at < mail.created_at:
                break
            del self.mail[index]
            return Input(key, mail.kind, mail.payload, mail.error, (mail.id,))
        if due is not None and due.kind == "timeout":
            self.deadline = None
        return due

    def _due(self, core: Execution, now: int) -> tuple[int, Input | None]:
        """The first of timer and deadline that is due, with its instant."""
        timer = core.next_timer()
        at = timer.deadline if timer is not None else None
        if self.deadline is not None and self.deadline <= now and (at is None or self.deadline < at):
            return self.deadline, Input("timeout", "timeout")
        if timer is not None and at is not None and at <= now:
            return at, Input(timer.key, "timer")
        return 0, None


def _wanted(core: Execution, mail: Mail) -> str | None:
    match mail.kind:
        case "signal":
            return core.wants_signal(mail.name)
        case "child":
            return core.wants_child(mail.name)
        case "cancel":
            return "cancel"

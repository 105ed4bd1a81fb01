"""Wakes and mail as the writing transaction sees them: collected while a batch is applied, written as one update a row.

Nobody else touches `signals`. The rule stands in base.py, the statement in sql/mailbox.sql.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from onward._store.scripts import Script
from onward._store.statements import json_text, load_statements

SQL = load_statements("onward._store.sqlite", "mailbox")

Mail: TypeAlias = tuple[str, str, str, str | None, str | None, str | None]
"""(workflow, kind, name, payload, error, token)"""


@dataclass(slots=True)
class _Wake:
    signals: int = 0
    ends: int = 0
    is_urgent: bool = False
    is_forced: bool = False


class Wakes:
    """The wakes of one transaction, merged by workflow."""

    def __init__(self) -> None:
        self._by_id: dict[str, _Wake] = {}

    def _of(self, workflow_id: str) -> _Wake:
        wake = self._by_id.get(workflow_id)
        if wake is None:
            wake = self._by_id[workflow_id] = _Wake()
        wake.signals += 1
        return wake

    def signalled(self, workflow_id: str) -> None:
        """A signal came."""
        self._of(workflow_id).is_urgent = True

    def child_ended(self, workflow_id: str, *, is_urgent: bool) -> None:
        """A child, or a workflow waited for, ended; urgent if not `completed`."""
        wake = self._of(workflow_id)
        wake.ends += 1
        wake.is_urgent = wake.is_urgent or is_urgent

    def forced(self, workflow_id: str) -> None:
        """A cancel or an operator wants it to run now, even if it is delayed or backing off."""
        self._of(workflow_id).is_forced = True

    def write(self, now: int) -> Script[None]:
        """Write them all by one statement."""
        if self._by_id:
            rows = [(one, wake.signals, wake.ends, wake.is_urgent, wake.is_forced) for one, wake in self._by_id.items()]
            yield SQL["wake_rows"], {"rows": json_text(rows), "now": now}


def insert_mail(mail: Sequence[Mail], now: int) -> Script[None]:
    """Put mail into mailboxes, in order; workflows that have ended get none."""
    yield SQL["insert_mail"], {"rows": json_text(mail), "now": now}

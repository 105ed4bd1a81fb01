"""Writes the end of workflows and everything that follows from it: mail to parent and waiters, and what is deleted.

Used by finished executions, by the cancel of a workflow that never ran, and by the burial of a worker whose workflow crashed
too often. Runs inside the writer's transaction; the wakes it causes are merged into the batch's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from onward._store.scripts import Script
from onward._store.sqlite.wakes import Mail, Wakes, insert_mail
from onward._store.statements import json_text, load_statements

SQL = load_statements("onward._store.sqlite", "journal")


@dataclass(slots=True)
class Ending:
    """One workflow that ends; the flags say what the look found, so that the common case deletes nothing."""

    id: str
    parent: str | None = None
    may_have_mail: bool = False
    has_waiters: bool = False
    has_retries: bool = False
    status: str = ""
    result: str | None = None
    error: str | None = None
    spends_attempt: bool = False


class Endings(list[Ending]):
    """Workflows that end in one transaction."""

    @classmethod
    def look(cls, ids: Iterable[str], *, status: str, error: str) -> Script[Endings]:
        """Endings for rows that are not under a fence of the batch."""
        [[text]] = yield SQL["look_at_endings"], {"ids": json_text(list(ids))}
        return cls(
            Ending(workflow_id, parent, signals > 0, bool(has_waiters), bool(has_retries), status, None, error)
            for workflow_id, parent, signals, has_waiters, has_retries in msgspec.json.decode(text)
        )

    def write(self, wakes: Wakes, now: int) -> Script[None]:
        """Write all of them."""
        if not self:
            return
        rows = json_text([(e.id, e.status, e.result, e.error, e.spends_attempt) for e in self])
        yield SQL["finish_rows"], {"rows": rows, "now": now}
        told = [(e.parent, e) for e in self if e.parent is not None]
        by_id = {e.id: e for e in self if e.has_waiters}
        if by_id:
            ids = json_text(list(by_id))
            [[text]] = yield SQL["read_waiters"], {"ids": ids}
            for target, waiter in msgspec.json.decode(text):
                told.append((waiter, by_id[target]))
            yield SQL["delete_waiters_of"], {"ids": ids}
        for flag, statement in (("may_have_mail", "delete_mail_of"), ("has_retries", "delete_retries_of")):
            owners = [e.id for e in self if getattr(e, flag)]
            if owners:
                yield SQL[statement], {"ids": json_text(owners)}
        if told:
            mail: list[Mail] = [(to, "child", e.id, e.result, e.error, None) for to, e in told]
            yield from insert_mail(mail, now)
            for to, e in told:
                wakes.child_ended(to, is_urgent=e.status != "completed")

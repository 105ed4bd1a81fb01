"""Mail and wakes: signals, cancels, operators' retries, and reading the mailbox.

The writing ones are scripts: they run inside the writer's transaction, or inside a caller's (within.py), and set the outcomes
of their operations by index.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from onward._store.operations import APPLIED, NOT_FOUND, AlreadyFinal, Outcome, SignalOp
from onward._store.records import FINAL, Inbox
from onward._store.scripts import Script
from onward._store.sqlite.endings import Endings
from onward._store.sqlite.wakes import SQL, Mail, Wakes, insert_mail
from onward._store.statements import json_text
from onward._store.verdicts import CANCELLED_UNBEGUN

_inboxes = msgspec.json.Decoder(list[Inbox])


@dataclass(slots=True)
class _Target:
    status: str
    epoch: int
    is_cancel_requested: bool


def _look_at_targets(ids: Sequence[str]) -> Script[dict[str, _Target]]:
    [[text]] = yield SQL["look_at_targets"], {"ids": json_text(list(dict.fromkeys(ids)))}
    return {
        workflow_id: _Target(status, epoch, bool(asked))
        for workflow_id, status, epoch, asked in msgspec.json.decode(text)
    }


def _refusal(target: _Target | None) -> Outcome | None:
    if target is None:
        return NOT_FOUND
    return AlreadyFinal(target.status) if target.status in FINAL else None


def mark_read(conn: sqlite3.Connection, rows: Sequence[tuple[str, int]]) -> None:
    """The mail that recorded entries have delivered, as (workflow, mail id)."""
    conn.execute(SQL["mark_read"], {"rows": json_text(rows)})


def deliver_signals(
    ops: Sequence[tuple[int, SignalOp]], outcomes: list[Outcome], wakes: Wakes, now: int
) -> Script[None]:
    """Put signals into mailboxes, in order; one whose token is known was delivered before."""
    targets = yield from _look_at_targets([op.workflow_id for _, op in ops])
    [[text]] = yield SQL["known_tokens"], {"rows": json_text([(op.workflow_id, op.token) for _, op in ops])}
    known = {(workflow_id, token) for workflow_id, token in msgspec.json.decode(text)}
    mail: list[Mail] = []
    for index, op in ops:
        refusal = _refusal(targets.get(op.workflow_id))
        if refusal is not None:
            outcomes[index] = refusal
        elif (op.workflow_id, op.token) not in known:
            known.add((op.workflow_id, op.token))
            mail.append((op.workflow_id, "signal", op.name, op.payload, None, op.token))
            wakes.signalled(op.workflow_id)
    if mail:
        yield from insert_mail(mail, now)


def cancel(
    ops: Sequence[tuple[int, str]], outcomes: list[Outcome], wakes: Wakes, now: int, *, retry: bool
) -> Script[None]:
    """End the workflows that never ran; ask the others to end, once."""
    targets = yield from _look_at_targets([workflow_id for _, workflow_id in ops])
    at_once: list[str] = []
    asked: list[str] = []
    for index, workflow_id in ops:
        target = targets.get(workflow_id)
        refusal = _refusal(target)
        if target is None or refusal is not None:
            is_repeat = retry and target is not None and target.status == "cancelled" and target.epoch == 0
            if refusal is not None and not is_repeat:
                outcomes[index] = refusal
        elif target.epoch == 0:
            at_once.append(workflow_id)
            target.status = "cancelled"
        elif not target.is_cancel_requested:
            asked.append(workflow_id)
            wakes.forced(workflow_id)
            target.is_cancel_requested = True
    if at_once:
        endings = yield from Endings.look(at_once, status="cancelled", error=CANCELLED_UNBEGUN)
        yield from endings.write(wakes, now)
    if asked:
        yield SQL["request_cancel"], {"ids": json_text(asked), "now": now}
        yield from insert_mail([(workflow_id, "cancel", "", None, None, None) for workflow_id in asked], now)


def cancel_children(parents: Sequence[str], wakes: Wakes, now: int) -> Script[None]:
    """Cancel the children of ended workflows that have not ended themselves, in order of id."""
    [[text]] = yield SQL["living_children"], {"ids": json_text(parents)}
    ids: list[str] = msgspec.json.decode(text)
    if ids:
        yield from cancel(list(enumerate(ids)), [APPLIED] * len(ids), wakes, now, retry=False)


def retry_workflows(ops: Sequence[tuple[int, str]], outcomes: list[Outcome], wakes: Wakes, now: int) -> Script[None]:
    """An operator's retry: rare, so one workflow at a time."""
    targets = yield from _look_at_targets([workflow_id for _, workflow_id in ops])
    finished = [workflow_id for workflow_id, target in targets.items() if target.status in FINAL]
    gone: list[str] = []
    if finished:
        [[text]] = yield SQL["being_pruned"], {"ids": json_text(finished)}
        gone = msgspec.json.decode(text)
    for index, workflow_id in ops:
        target = targets.get(workflow_id)
        if target is None or workflow_id in gone:
            outcomes[index] = NOT_FOUND
        elif target.status == "completed":
            outcomes[index] = AlreadyFinal(target.status)
        elif target.status in FINAL:
            yield SQL["strike_from"], {"id": workflow_id}
            yield SQL["retry_finished"], {"id": workflow_id, "now": now}
            target.status = "pending"
        elif target.status != "running":
            yield SQL["hasten_retries"], {"id": workflow_id, "now": now}
            yield SQL["hasten_diverged"], {"id": workflow_id, "now": now}
            wakes.forced(workflow_id)


def read_mail(conn: sqlite3.Connection, wanted: Sequence[tuple[str, int]]) -> list[Inbox]:
    """For each (workflow, last mail id known): epoch, signals and the newer mail."""
    return _inboxes.decode(conn.execute(SQL["read_mail"], {"wanted": json_text(wanted)}).fetchone()[0])


def read_signals(conn: sqlite3.Connection, worker_id: str) -> dict[str, int]:
    """`signals` of every running row of this worker."""
    text: str = conn.execute(SQL["read_signals"], {"worker": worker_id}).fetchone()[0]
    return msgspec.json.decode(text, type=dict[str, int])

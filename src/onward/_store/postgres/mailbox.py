"""Mail and wakes: signals, cancels, operators' retries, and reading the mailbox.

The writing functions give the statements of a batch; the first answer of each list shows the targets as they were, under their
locks, and decides the outcomes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from onward._store.operations import NOT_FOUND, AlreadyFinal, Outcome, SignalOp
from onward._store.postgres.statements import Call, Statement, as_json
from onward._store.records import FINAL, Inbox
from onward._store.verdicts import CANCELLED_UNBEGUN

SQL = Mapping[str, Statement]
_inboxes = msgspec.json.Decoder(list[Inbox])
_targets = msgspec.json.Decoder(list[tuple[str, str, int]])
_counts = msgspec.json.Decoder(dict[str, int])


class SignalRow(msgspec.Struct, gc=False):
    """See deliver_signals."""

    id: str
    name: str
    payload: str
    token: str


def look_at(sql: SQL, ids: Iterable[str]) -> Call:
    """The status and epoch of these workflows."""
    return sql["look_at_targets"].bind(ids=as_json(list(dict.fromkeys(ids))))


def _found(answer: bytes | None) -> dict[str, tuple[str, int]]:
    return {workflow_id: (status, epoch) for workflow_id, status, epoch in _targets.decode(answer or b"[]")}


def signal_calls(sql: SQL, ops: Sequence[tuple[int, SignalOp]]) -> list[Call]:
    """Put signals into mailboxes, in order; one whose token is known was delivered before."""
    rows = [SignalRow(op.workflow_id, op.name, op.payload, op.token) for _, op in ops]
    return [look_at(sql, [op.workflow_id for _, op in ops]), sql["deliver_signals"].bind(rows=as_json(rows))]


def note_signals(answer: bytes | None, ops: Sequence[tuple[int, SignalOp]], outcomes: list[Outcome]) -> None:
    """Refuse signals to nobody and to the ended."""
    found = _found(answer)
    for index, op in ops:
        _refuse(found.get(op.workflow_id), index, outcomes)


def _refuse(target: tuple[str, int] | None, index: int, outcomes: list[Outcome]) -> bool:
    if target is None:
        outcomes[index] = NOT_FOUND
    elif target[0] in FINAL:
        outcomes[index] = AlreadyFinal(target[0])
    else:
        return False
    return True


def cancel_calls(sql: SQL, ids: Sequence[str] = (), *, parents: Sequence[str] = ()) -> list[Call]:
    """End the workflows that never ran; ask the others to end, once. `parents`: and their living children."""
    given = {"ids": as_json(ids), "parents": as_json(parents)}
    return [sql["cancel_unbegun"].bind(**given, error=CANCELLED_UNBEGUN), sql["request_cancel"].bind(**given)]


def note_cancels(answer: bytes | None, ops: Sequence[tuple[int, str]], outcomes: list[Outcome], *, retry: bool) -> None:
    """Refuse what had ended, unless by this very request."""
    found = _found(answer)
    for index, workflow_id in ops:
        target = found.get(workflow_id)
        if retry and target == ("cancelled", 0):
            continue
        if not _refuse(target, index, outcomes) and target is not None and target[1] == 0:
            found[workflow_id] = ("cancelled", 0)


def retry_calls(sql: SQL, ops: Sequence[tuple[int, str]]) -> list[Call]:
    """An operator's retry."""
    ids = as_json(list(dict.fromkeys(workflow_id for _, workflow_id in ops)))
    names = ("hasten_retries", "hasten_rows", "strike_from", "retry_finished")
    return [sql["look_at_targets"].bind(ids=ids), *(sql[name].bind(ids=ids) for name in names)]


def note_retries(answer: bytes | None, ops: Sequence[tuple[int, str]], outcomes: list[Outcome]) -> None:
    """Refuse what is not there or has completed."""
    found = _found(answer)
    for index, workflow_id in ops:
        target = found.get(workflow_id)
        if target is None:
            outcomes[index] = NOT_FOUND
        elif target[0] == "completed":
            outcomes[index] = AlreadyFinal(target[0])


def decode_mail(answer: bytes | None) -> list[Inbox]:
    """For each (workflow, last mail id known): epoch, signals and the newer mail."""
    return _inboxes.decode(answer or b"[]")


def decode_signals(answer: bytes | None) -> dict[str, int]:
    """`signals` of every running row of a worker."""
    return _counts.decode(answer or b"{}")

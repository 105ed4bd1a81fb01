"""One workflow's history as a JSON document: written by `handle.export()` and `onward export`, read by `onward.testing.replay`.

It holds all that a replay needs: type, arguments, the seed of the random numbers, attempts, versions, and every entry of the
journal. Payloads stand in it as the JSON that they are, after the codec has decoded them. It does I/O nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from onward._codec.undecodable import Undecodable
from onward._store.records import Entry, EntryKind, JournalRow, Status, WorkflowRow
from onward.errors import ConfigurationError

FORMAT = 1
_NOTHING = msgspec.Raw()
"""Left out of the document."""


class HistoryEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One entry of the journal. `error` is its record; instants are microseconds since 1970 UTC."""

    seq: int
    key: str
    kind: EntryKind
    finished_at: int
    result: msgspec.Raw = _NOTHING
    error: msgspec.Raw = _NOTHING
    digest: str | None = None
    arguments: str | None = None
    tries: int = 0
    started_at: int | None = None
    struck: bool = False


class History(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A workflow with its journal."""

    onward_history: int
    """The format of this document."""
    id: str
    type: str
    status: Status
    seed: str
    arguments: msgspec.Raw
    started_at: int
    attempts: int = 0
    run: int = 0
    tags: dict[str, str] = {}
    version: str | None = None
    code_version: str | None = None
    result: msgspec.Raw = _NOTHING
    entries: list[HistoryEntry] = []

    @property
    def payload(self) -> str:
        """The arguments as they are stored."""
        return bytes(self.arguments).decode()

    def accepted(self) -> list[Entry]:
        """The entries as a worker reads them, struck-out ones left out."""
        return [
            Entry(
                one.seq, one.key, one.kind, one.finished_at, _text(one.result), _text(one.error), one.digest, one.arguments,
                one.tries, one.started_at,
            )
            for one in self.entries
            if not one.struck
        ]  # fmt: skip

    @property
    def last_seq(self) -> int:
        """The highest number in use, struck-out entries included."""
        return max((one.seq for one in self.entries), default=0)


def export_text(row: WorkflowRow, journal: Sequence[JournalRow], seed: str) -> str:
    """The document of a workflow, indented. Raises CodecError where the codec cannot read a payload."""
    history = History(
        onward_history=FORMAT,
        id=row.id,
        type=row.type,
        status=row.status,
        seed=seed,
        arguments=_raw(row.payload),
        started_at=row.started_at if row.started_at is not None else row.created_at,
        attempts=row.attempts,
        run=row.run,
        tags=msgspec.json.decode(row.tags, type=dict[str, str]) if row.tags else {},
        version=row.version,
        code_version=row.code_version,
        result=_raw(row.result),
        entries=[
            HistoryEntry(
                seq=one.seq,
                key=one.key,
                kind=msgspec.convert(one.kind, EntryKind),
                finished_at=one.finished_at,
                result=_raw(one.result),
                error=_raw(one.error),
                digest=one.digest,
                arguments=one.arguments,
                tries=one.tries,
                started_at=one.started_at,
                struck=one.struck,
            )
            for one in journal
        ],
    )
    return msgspec.json.format(msgspec.json.encode(history), indent=1).decode()


def read_history(text: str | bytes, where: str) -> History:
    """Read a document; `where` names it in the error.

    Raises:
        ConfigurationError: it is no history, or one of a newer format.
    """
    try:
        history = msgspec.json.decode(text, type=History)
    except msgspec.MsgspecError as error:
        raise ConfigurationError(
            f"{where} is no exported history ({error}); make one with `onward export ID` or `await handle.export()`"
        ) from error
    if history.onward_history > FORMAT:
        raise ConfigurationError(
            f"{where} has the history format {history.onward_history}, this version of Onward reads up to {FORMAT}; upgrade it"
        )
    return history


def _raw(text: str | None) -> msgspec.Raw:
    if isinstance(text, Undecodable):
        raise text.error()
    return _NOTHING if text is None else msgspec.Raw(text.encode())


def _text(raw: msgspec.Raw) -> str | None:
    return bytes(raw).decode() or None

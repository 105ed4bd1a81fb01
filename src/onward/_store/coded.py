"""`CodedStore`: a store whose payloads pass through the user's `Codec`, for encryption or for keeping large values elsewhere.

Made by `coded` for a client or worker that was given a codec, around the store of its URL; nothing else knows of it. Payloads
are encoded on their way in and decoded on their way out: arguments, results of steps, children and workflows, signals and
progress. All else stays as it is: ids, keys, tags, digests (of the plain values), and errors, which operators and SQL read.
The beginning of a step's arguments, which the journal keeps for people, is left out.

A codec is code of the user, and one bad payload must not stop a worker. What cannot be encoded is refused like a write
that the data do not allow (`StoreConflict`), so that the committer splits the batch and fails its owner alone. What cannot be
decoded becomes `Undecodable` in its place, which raises where that one payload is needed.
"""

from __future__ import annotations

import builtins
import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, assert_never, cast

import msgspec

from onward._codec.undecodable import Undecodable
from onward._store.base import Leases, Store, Transfer
from onward._store.diagnosis import Diagnosis, Removal
from onward._store.operations import (
    Busy,
    CancelOp,
    FailAttemptOp,
    Fence,
    FinishOp,
    JournalOp,
    Op,
    Outcome,
    ParkOp,
    ReleaseOp,
    RetryOp,
    SignalOp,
    StartOp,
)
from onward._store.pruning import PruneBatch, PruneRequest
from onward._store.records import (
    Claimed,
    ClaimRequest,
    Entry,
    Filter,
    Inbox,
    JournalRow,
    Loaded,
    Mail,
    WorkerInfo,
    WorkflowRow,
)
from onward._store.scripts import Script
from onward._store.within.base import Caller, CallerOp
from onward.codec import Codec, PlainCodec
from onward.errors import CodecError, ConfigurationError, OutcomeUnknown, StoreConflict

T = TypeVar("T")
OpT = TypeVar("OpT", JournalOp, FailAttemptOp)

PAYLOAD_KINDS = frozenset({"step", "signal", "child"})
"""Entries whose result is a value of the user's; of the others the engine makes it."""


def coded(store: Store, codec: Codec | None) -> Store:
    """The store with this codec applied; the store itself where there is none."""
    return store if codec is None or type(codec) is PlainCodec else CodedStore(store, codec)


def checked_codec(codec: Codec | None) -> Codec | None:
    """The `codec=` of a client or worker. Raises ConfigurationError where it cannot be one."""
    if codec is None or (callable(getattr(codec, "encode", None)) and callable(getattr(codec, "decode", None))):
        if not isinstance(codec, type):
            return codec
        raise ConfigurationError(f"codec takes an object, not the class {codec.__name__}: write {codec.__name__}(…)")
    raise ConfigurationError(f"codec takes an object with encode(text) and decode(text), not {codec!r}")


class _Refused(CodecError, StoreConflict):
    """A payload that the codec could not encode: a CodecError for the caller, a conflict for the committer."""


_Refused.__name__ = CodecError.__name__  # what people read in the workflow's error


class CodedStore:
    """See base.Store; delegates to `inner`.

    Args:
        inner: a store that is not open yet.
        codec: applied to each payload, on the loop; for transactional steps on the store's own thread.
    """

    def __init__(self, inner: Store, codec: Codec) -> None:
        self._inner = inner
        self._codec = codec
        self.url = inner.url
        self._unknown: dict[int, tuple[Op, Op]] = {}
        """Operations whose commit is unknown, by id(), with what was written for them: a codec may give another text each
        time (a nonce), and what is written again must be equal to what may be there."""
        run_transaction = getattr(inner, "run_transaction", None)
        if run_transaction is not None:
            self.run_transaction = functools.partial(self._run_transaction, run_transaction)
        limit_s = getattr(inner, "transaction_limit_s", None)
        if limit_s is not None:
            self.transaction_limit_s = limit_s
        write_within = getattr(inner, "write_within", None)
        if write_within is not None:
            self.write_within = functools.partial(self._write_within, write_within)

    # --- the codec ---

    def _encode(self, text: str, where: str) -> str:
        if isinstance(text, Undecodable):  # passed on unread: a message that nobody has needed yet
            return text.stored
        try:
            return _json_text(self._codec.encode(text))
        except Exception as error:  # user code
            raise _Refused(f"the codec cannot encode it: {_words(error)}", where=where) from error

    def _decode(self, text: str, where: str) -> str:
        try:
            return _json_text(self._codec.decode(text))
        except Exception as error:  # user code
            return Undecodable(where, _words(error), text)

    def _maybe(self, apply: Callable[[str, str], str], text: str | None, where: str) -> str | None:
        return None if text is None else apply(text, where)

    # --- in ---

    def _coded(self, op: Op) -> Op:
        """The operation as it is to be written."""
        match op:
            case JournalOp():
                if op.progress is not None:
                    progress = self._encode(op.progress, f"progress of workflow {op.fence.workflow_id!r}")
                    op = msgspec.structs.replace(op, progress=progress)
                return self._with_entries(op)
            case FailAttemptOp():
                return self._with_entries(op)
            case StartOp(workflow=new):
                payload = self._encode(new.payload, f"arguments of workflow {new.id!r}")
                return msgspec.structs.replace(op, workflow=msgspec.structs.replace(new, payload=payload))
            case FinishOp():
                result = self._maybe(self._encode, op.result, f"result of workflow {op.fence.workflow_id!r}")
                return msgspec.structs.replace(op, result=result)
            case SignalOp():
                payload = self._encode(op.payload, f"signal {op.name!r} to workflow {op.workflow_id!r}")
                return msgspec.structs.replace(op, payload=payload)
            case ParkOp() | ReleaseOp() | CancelOp() | RetryOp():
                return op
            case _:
                assert_never(op)

    def _with_entries(self, op: OpT) -> OpT:
        if not op.entries:
            return op
        workflow_id = op.fence.workflow_id
        return msgspec.structs.replace(op, entries=tuple([self._coded_entry(workflow_id, e) for e in op.entries]))

    def _coded_entry(self, workflow_id: str, entry: Entry) -> Entry:
        result = entry.result
        if result is not None and entry.kind in PAYLOAD_KINDS:
            result = self._encode(result, _entry_where(workflow_id, entry))
        return msgspec.structs.replace(entry, result=result, arguments=None)

    async def write(self, batch: Sequence[Op], *, retry: bool = False) -> builtins.list[Outcome]:
        """Encode and write. Raises StoreConflict as well where the codec refuses a payload; nothing was written then."""
        unknown = self._unknown
        coded = [unknown[id(op)][1] if id(op) in unknown else self._coded(op) for op in batch]
        try:
            outcomes = await self._inner.write(coded, retry=retry)
        except OutcomeUnknown:
            self._unknown = {id(op): (op, new) for op, new in zip(batch, coded, strict=True)}
            raise
        if unknown:
            for op in batch:
                unknown.pop(id(op), None)
        if Busy in map(type, outcomes):
            busy = zip(batch, coded, outcomes, strict=True)
            unknown.update({id(op): (op, new) for op, new, outcome in busy if type(outcome) is Busy})
        return outcomes

    async def _run_transaction(
        self,
        run: Callable[..., Awaitable[T]],
        fence: Fence,
        body: Callable[[Any], T],
        finish: Callable[[T], JournalOp],
        **options: Any,
    ) -> T:
        """As the store's own, with the entry that `finish` makes encoded."""
        return await run(fence, body, lambda result: self._coded(finish(result)), **options)

    def _write_within(
        self,
        write: Callable[[Sequence[CallerOp], Caller], Script[builtins.list[Outcome]]],
        ops: Sequence[CallerOp],
        caller: Caller,
    ) -> Script[builtins.list[Outcome]]:
        """As the store's own; all is encoded at the call, before the first statement."""
        return write(cast("builtins.list[CallerOp]", [self._coded(op) for op in ops]), caller)

    # --- out ---

    async def claim(self, request: ClaimRequest) -> builtins.list[Claimed]:
        """Take due rows."""
        rows = await self._inner.claim(request)
        return [
            msgspec.structs.replace(row, payload=self._decode(row.payload, f"arguments of workflow {row.id!r}"))
            for row in rows
        ]

    async def load(self, workflow_ids: Sequence[str]) -> builtins.list[Loaded]:
        """Histories, mail and retry states."""
        return [
            msgspec.structs.replace(
                loaded,
                entries=[self._plain_entry(loaded.id, entry) for entry in loaded.entries],
                mail=self._plain_mail(loaded.id, loaded.mail),
            )
            for loaded in await self._inner.load(workflow_ids)
        ]

    async def mail(self, wanted: Sequence[tuple[str, int]]) -> builtins.list[Inbox]:
        """Newer mail of held workflows."""
        return [
            msgspec.structs.replace(inbox, mail=self._plain_mail(inbox.id, inbox.mail))
            for inbox in await self._inner.mail(wanted)
        ]

    def _plain_entry(self, workflow_id: str, entry: Entry) -> Entry:
        if entry.result is None or entry.kind not in PAYLOAD_KINDS:
            return entry
        return msgspec.structs.replace(entry, result=self._decode(entry.result, _entry_where(workflow_id, entry)))

    def _plain_mail(self, workflow_id: str, items: Sequence[Mail]) -> builtins.list[Mail]:
        return [
            item
            if item.payload is None
            else msgspec.structs.replace(item, payload=self._decode(item.payload, _mail_where(workflow_id, item)))
            for item in items
        ]

    def _plain_row(self, row: WorkflowRow) -> WorkflowRow:
        name = f"workflow {row.id!r}"
        return msgspec.structs.replace(
            row,
            payload=self._decode(row.payload, f"arguments of {name}"),
            result=self._maybe(self._decode, row.result, f"result of {name}"),
            progress=self._maybe(self._decode, row.progress, f"progress of {name}"),
        )

    async def get(self, workflow_id: str) -> WorkflowRow | None:
        """One workflow, or None."""
        row = await self._inner.get(workflow_id)
        return None if row is None else self._plain_row(row)

    async def seed(self, workflow_id: str) -> str | None:
        """Its seed, or None; no payload."""
        return await self._inner.seed(workflow_id)

    async def outcomes(self, workflow_ids: Sequence[str]) -> builtins.list[WorkflowRow]:
        """Those of these workflows that are final."""
        return [self._plain_row(row) for row in await self._inner.outcomes(workflow_ids)]

    async def journal(self, workflow_id: str) -> builtins.list[JournalRow]:
        """All entries in seq order."""
        return [
            row
            if row.result is None or row.kind not in PAYLOAD_KINDS
            else msgspec.structs.replace(row, result=self._decode(row.result, _entry_where(workflow_id, row)))
            for row in await self._inner.journal(workflow_id)
        ]

    async def children(self, workflow_id: str) -> builtins.list[WorkflowRow]:
        """Direct children, oldest first."""
        return [self._plain_row(row) for row in await self._inner.children(workflow_id)]

    async def list(self, filter: Filter) -> builtins.list[WorkflowRow]:
        """A page, newest first."""
        return [self._plain_row(row) for row in await self._inner.list(filter)]

    # --- what carries no payloads ---

    async def open(self, *, migrate: bool = True) -> None:
        """Open the inner store."""
        await self._inner.open(migrate=migrate)

    async def close(self) -> None:
        """Close the inner store."""
        await self._inner.close()

    def now_us(self) -> int:
        """The inner store's clock."""
        return self._inner.now_us()

    def check_caller(self) -> None:
        """Whether this caller may write."""
        self._inner.check_caller()

    async def signals(self, worker_id: str) -> dict[str, int]:
        """`signals` of this worker's running rows."""
        return await self._inner.signals(worker_id)

    async def next_due(
        self,
        queues: Sequence[str],
        types: Sequence[str],
        code_version: str,
        only: Sequence[str] | None = None,
        *,
        alone: bool | None = False,
    ) -> int | None:
        """The earliest time at which a row is claimable."""
        return await self._inner.next_due(queues, types, code_version, only, alone=alone)

    async def reconcile(self, worker_id: str, held: Sequence[tuple[str, int]]) -> builtins.list[str]:
        """Release what this worker has and does not hold."""
        return await self._inner.reconcile(worker_id, held)

    async def adopt_diverged(self, code_version: str) -> int:
        """Make rows due that this code version has not tried yet."""
        return await self._inner.adopt_diverged(code_version)

    async def prune(self, request: PruneRequest) -> PruneBatch:
        """Delete finished trees. What a codec keeps elsewhere stays there."""
        return await self._inner.prune(request)

    def subscribe(self, notify: Callable[[], None]) -> Callable[[], None]:
        """Hints of commits."""
        return self._inner.subscribe(notify)

    async def check_serving(self) -> None:
        """Whether the inner store has its workflows."""
        await self._inner.check_serving()

    def transfer(self) -> Transfer:
        """The inner store's: payloads move as they are stored."""
        return self._inner.transfer()

    def leases(self) -> Leases:
        """The lease thread's connection."""
        return self._inner.leases()

    async def diagnose(self, *, thorough: bool = False) -> Diagnosis:
        """A look at the inner store's database."""
        return await self._inner.diagnose(thorough=thorough)

    def schema_sql(self) -> str:
        """The inner store's statements."""
        return self._inner.schema_sql()

    def roles_sql(self) -> str:
        """The inner store's roles."""
        return self._inner.roles_sql()

    async def drop_schema(self, *, force: bool = False) -> Removal:
        """Remove Onward from the inner store's database."""
        return await self._inner.drop_schema(force=force)

    async def counts(self) -> dict[str, int]:
        """Number of workflows by status."""
        return await self._inner.counts()

    async def workers(self) -> builtins.list[WorkerInfo]:
        """Every worker row, newest first."""
        return await self._inner.workers()


def _json_text(text: object) -> str:
    """What a codec returned, if it is JSON text. Raises ValueError or TypeError; never quotes the text."""
    if type(text) is not str:
        raise TypeError(f"it returned a {type(text).__name__}, not a str of JSON text")
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except UnicodeEncodeError:
        raise ValueError("it returned text with a lone surrogate, which is no JSON") from None
    except msgspec.DecodeError as error:
        raise ValueError(f"it returned text that is no JSON ({error}); quote it: json.dumps(text)") from None
    return text


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _entry_where(workflow_id: str, entry: Entry | JournalRow) -> str:
    return f"result of {entry.kind} {entry.key!r} of workflow {workflow_id!r}"


def _mail_where(workflow_id: str, mail: Mail) -> str:
    return f"{'result of child' if mail.kind == 'child' else mail.kind} {mail.name!r} to workflow {workflow_id!r}"

"""The `Codec` hook: payloads are stored encoded, seen plain, and one that cannot be carried hurts its own workflow only."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sqlite3
from collections.abc import Sequence
from typing import Any

import pytest

from onward import (
    Client,
    Codec,
    CodecError,
    ConfigurationError,
    OutcomeUnknown,
    PlainCodec,
    Signal,
    WorkflowFailed,
    progress,
    step,
    workflow,
)
from onward._store.coded import CodedStore
from onward._store.memory.store import MemoryStore
from onward._store.operations import JournalOp, Op, Outcome
from onward.worker import Worker
from tests.engine import flows
from tests.engine.support import Lab, keys
from tests.postgres.server import all_rows

SECRET = "ORWELL-1984"
said = Signal("said", str)
go = Signal("go", str)
bodies: list[str] = []


class Masked:
    """Reversible, with a key, and another text each time."""

    def __init__(self, key: int = 0x5A) -> None:
        self._key = key

    def encode(self, text: str) -> str:
        nonce = os.urandom(1)[0]
        masked = bytes(byte ^ self._key ^ nonce for byte in text.encode())
        return json.dumps(base64.b64encode(bytes([self._key, nonce]) + masked).decode())

    def decode(self, text: str) -> str:
        key, nonce, *masked = base64.b64decode(json.loads(text))
        if key != self._key:
            raise ValueError("stored with another key")
        return bytes(byte ^ key ^ nonce for byte in masked).decode()


class Refusing(Masked):
    """Takes no payload that has this word in it; on the way out too if told so."""

    def __init__(self, word: str, *, also_out: bool = False) -> None:
        super().__init__()
        self._word = word
        self._also_out = also_out

    def encode(self, text: str) -> str:
        if self._word in text and not self._also_out:
            raise RuntimeError("the key server said no")
        return super().encode(text)

    def decode(self, text: str) -> str:
        plain = super().decode(text)
        if self._word in plain and self._also_out:
            raise RuntimeError("the key server said no")
        return plain


class Unquoted(Masked):
    """What it returns is no JSON."""

    def encode(self, text: str) -> str:
        return super().encode(text).strip('"') if "poison" in text else super().encode(text)


class Bytes(Masked):
    """What it returns is no text."""

    def encode(self, text: str) -> str:
        return super().encode(text).encode() if "poison" in text else super().encode(text)  # type: ignore[return-value]


@pytest.fixture(autouse=True)
def fresh() -> None:
    """Nothing has run."""
    bodies.clear()
    flows.bodies.clear()
    flows.broken.clear()


@step
async def echo(text: str) -> str:
    """A step whose arguments and result are worth hiding."""
    bodies.append(text)
    return f"{text} by step"


@workflow
async def child(text: str) -> str:
    """A child that hands its secret back."""
    return await echo(text) + " by child"


@workflow
async def family(text: str) -> list[str]:
    """Everything that has a payload."""
    progress({"reading": text})
    first = await echo(text)
    second = await child(text)
    return [text, first, second, await go.wait()]


@workflow
async def relay(text: str) -> str:
    """One step, one wait, and an answer to any error, which nobody here must get to see."""
    try:
        return f"{await echo(text)} then {await go.wait()}"
    except Exception as error:
        return f"caught {error!r}"


def stored(lab: Lab) -> bytes:
    """Everything the database holds, as raw as it can be had."""
    if isinstance(lab.store, MemoryStore):
        return repr(lab.store._database.rows).encode()
    if lab.schema is not None:
        return all_rows(lab.schema)
    return b"".join(path.read_bytes() for path in lab.path.parent.iterdir() if path.is_file())


@pytest.mark.parametrize("codec", [Masked(), None], ids=["coded", "plain"])
async def test_nothing_is_readable_in_the_database_and_everything_through_the_api(
    lab: Lab, codec: Codec | None
) -> None:
    lab.codec = codec
    async with lab.running(family, child) as client:
        handle = await client.start(family.using(id="f"), SECRET)
        await client.signal(handle, said, f"{SECRET} unread")
        await lab.parked(handle, on="go")
        assert (SECRET.encode() in stored(lab)) == (codec is None)
        parked = await handle.info()
        assert parked.arguments == {"text": SECRET}
        assert parked.progress == {"reading": SECRET}
        await client.signal(handle, go, f"{SECRET} signal")
        expected = [SECRET, f"{SECRET} by step", f"{SECRET} by step by child", f"{SECRET} signal"]
        assert await handle.result(timeout=10) == expected
        assert (SECRET.encode() in stored(lab)) == (codec is None)
        journal = await handle.journal()
        assert [entry.result for entry in journal] == expected[1:]
        assert [entry.arguments is None for entry in journal] == [codec is not None, True, True]
        [listed] = await client.list(type=family)
        assert listed.result == expected
    if codec is not None:  # encoded once each, in the child's row as in its parent's journal
        row = await lab.store.get("f/child")
        assert row is not None and row.result is not None
        [_, entry, _] = await lab.store.journal("f")
        assert entry.result is not None
        assert codec.decode(row.result) == codec.decode(entry.result) == json.dumps(expected[2])


async def test_run_and_the_blocking_client_take_a_codec(sqlite_lab: Lab) -> None:
    codec = Masked()
    async with sqlite_lab.client(codec=codec) as client:
        assert await client.run(flows.pipeline, "secret-a", "SECRET-B") == "SECRET-Asecret-bC"

    def blocking() -> str:
        with Client(sqlite_lab.url, codec=codec) as client:
            return client.run(flows.pipeline.using(id="p"), "secret-a", "SECRET-B")

    assert await asyncio.to_thread(blocking) == "SECRET-Asecret-bC"
    assert b"secret-" not in stored(sqlite_lab).lower()


async def test_a_transactional_steps_entry_is_encoded_and_commits_with_its_writes(sqlite_lab: Lab) -> None:
    lab = sqlite_lab
    lab.sql("CREATE TABLE items (name TEXT)")

    @step(transactional=True)
    def load(conn: sqlite3.Connection, text: str) -> str:
        conn.execute("INSERT INTO items VALUES ('a')")
        return text

    @workflow
    async def flow(text: str) -> str:
        return await load(text)

    lab.codec = Masked()
    async with lab.running(flow) as client:
        handle = await client.start(flow, SECRET)
        assert await handle.result(timeout=10) == SECRET
        [entry] = await handle.journal()
        assert entry.result == SECRET
    assert lab.sql("SELECT name FROM items") == [("a",)]
    assert SECRET.encode() not in stored(lab)


async def test_a_transactional_step_whose_result_is_refused_is_rolled_back_and_its_workflow_failed(
    sqlite_lab: Lab,
) -> None:
    lab = sqlite_lab
    lab.sql("CREATE TABLE items (name TEXT)")

    @step(transactional=True)
    def load(conn: sqlite3.Connection) -> str:
        conn.execute("INSERT INTO items VALUES ('a')")
        return "poison"

    @workflow
    async def flow() -> str:
        return await load()

    lab.codec = Refusing("poison")
    async with lab.running(flow) as client:
        handle = await client.start(flow)
        with pytest.raises(WorkflowFailed, match="result of step 'load' .* key server said no") as failed:
            await handle.result(timeout=10)
        assert failed.value.type_name == "CodecError"
    assert lab.sql("SELECT name FROM items") == []


# ---------------------------------------------------------------------- codecs that do not fit


@pytest.mark.parametrize("of_client", [Masked(1), None], ids=["another key", "no codec"])
async def test_a_worker_with_another_codec_fails_what_it_cannot_read_and_nothing_else(
    plain_lab: Lab, of_client: Codec | None
) -> None:
    lab = plain_lab
    lab.codec = Masked(2)
    async with lab.client(codec=of_client) as stranger, lab.running(child) as client:
        bad = await stranger.start(child.using(id="bad"), "a")
        good = await client.start(child.using(id="good"), "b")
        assert await good.result(timeout=10) == "b by step by child"
        with pytest.raises(
            WorkflowFailed, match="arguments of workflow 'bad': the stored text cannot be dec"
        ) as failed:
            await bad.result(timeout=10)
        assert failed.value.type_name == "CodecError"
        later = await client.start(child, "c")
        assert await later.result(timeout=10) == "c by step by child"
        # People see all rows, and of the one that they cannot read that it is so.
        infos = {info.id: info for info in await client.list()}
        assert infos["good"].arguments == {"text": "b"}
        assert infos["bad"].arguments.startswith("<cannot be decoded here: ")
    async with lab.client(codec=of_client) as stranger, lab.working(child, codec=of_client):
        bad = stranger.handle("bad", child)
        assert await bad.retry()
        assert await bad.result(timeout=10) == "a by step by child"
    assert sorted(bodies) == ["a", "b", "c"]


async def test_a_worker_without_the_codec_says_what_it_lacks(plain_lab: Lab) -> None:
    async with plain_lab.client(codec=Masked()) as client, plain_lab.working(child):
        handle = await client.start(child, "a")
        with pytest.raises(WorkflowFailed, match="if a codec stored it, give the worker that codec"):
            await handle.result(timeout=10)


async def test_a_client_with_another_codec_gets_an_error_for_that_result_alone(plain_lab: Lab) -> None:
    lab = plain_lab
    async with (
        lab.client(codec=Masked(1)) as client,
        lab.client(codec=Masked(2)) as stranger,
        lab.working(relay, codec=Masked(1)),
    ):
        handle = await client.start(relay.using(id="mine"), "a")
        waiting = [asyncio.create_task(one.handle("mine", relay).result(timeout=10)) for one in (client, stranger)]
        await lab.parked(handle, on="go")
        await client.signal(handle, go, "end")
        mine, other = await asyncio.gather(*waiting, return_exceptions=True)
        assert mine == "a by step then end"
        assert isinstance(other, CodecError)
        assert "result of workflow 'mine'" in str(other)
        assert "stored with another key" in str(other)
        with pytest.raises(CodecError):  # without the definition too
            await stranger.handle("mine").result(timeout=10)
        assert (await stranger.handle("mine").info()).status == "completed"
        assert keys(await stranger.handle("mine").journal()) == ["echo", "signal:go"]


async def test_a_history_that_cannot_be_read_never_reaches_workflow_code_and_a_retry_goes_on_with_it(
    plain_lab: Lab,
) -> None:
    lab = plain_lab
    lab.codec = Masked()
    async with lab.client() as client:
        async with lab.working(relay):
            handle = await client.start(relay, "a")
            await lab.parked(handle, on="go")
        await client.signal(handle, go, "end")
        async with lab.working(relay, codec=Refusing("by step", also_out=True)):
            with pytest.raises(WorkflowFailed, match="result of step 'echo' of workflow") as failed:
                await handle.result(timeout=10)
            assert failed.value.type_name == "CodecError"
        async with lab.working(relay):
            assert await handle.retry()
            await lab.parked(handle, on="go")
            await client.signal(handle, go, "again")
            assert await handle.result(timeout=10) == "a by step then again"
    assert bodies == ["a"]


async def test_a_signal_that_cannot_be_read_hurts_only_a_workflow_that_needs_it(plain_lab: Lab) -> None:
    lab = plain_lab
    lab.codec = Masked(1)
    async with lab.running(relay) as client, lab.client(codec=Masked(2)) as stranger:
        needing, careless = [await client.start(relay.using(id=name), name) for name in ("needing", "careless")]
        await lab.parked(needing, on="go")
        await lab.parked(careless, on="go")
        await stranger.signal(careless, said, "nobody waits for this")
        await client.signal(careless, go, "end")
        assert await careless.result(timeout=10) == "careless by step then end"
        await stranger.signal(needing, go, "end")
        with pytest.raises(WorkflowFailed, match=r"signal 'go' to workflow 'needing'.*another key"):
            await needing.result(timeout=10)


# ---------------------------------------------------------------------- codecs that refuse


@workflow
async def returning(where: str) -> str:
    """Makes a payload with the word in it at one place."""
    match where:
        case "progress":
            progress("poison")
            await echo("fine")
        case "step":
            await make_poison()
        case "child":
            await child("poison")
        case "result":
            await echo("fine")
            return "poison"
    return "fine"


@step
async def make_poison() -> str:
    """Returns what cannot be stored."""
    return "poison"


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ("progress", "progress of workflow 'bad'"),
        ("step", "result of step 'make_poison' of workflow 'bad'"),
        ("child", "arguments of workflow 'bad/child'"),
        ("result", "result of workflow 'bad'"),
    ],
)
async def test_what_the_codec_refuses_fails_its_own_workflow_only(lab: Lab, where: str, named: str) -> None:
    lab.codec = Refusing("poison")
    async with lab.client() as client:
        bad = await client.start(returning.using(id="bad"), where)
        neighbours = await client.start_many(child.bind(f"n{n}") for n in range(5))
        async with lab.working(returning, child):
            with pytest.raises(WorkflowFailed, match=f"{named}: .*the key server said no") as failed:
                await bad.result(timeout=10)
            assert failed.value.type_name == "CodecError"
            for n, neighbour in enumerate(neighbours):
                assert await neighbour.result(timeout=10) == f"n{n} by step by child"
            assert await (await client.start(returning, "nowhere")).result(timeout=10) == "fine"


@pytest.mark.parametrize(
    ("codec", "said_of_it"),
    [
        (Refusing("poison"), "RuntimeError: the key server said no"),
        (Unquoted(), "text that is no JSON"),
        (Bytes(), "a bytes, not a str"),
    ],
    ids=["raises", "no JSON", "no text"],
)
async def test_a_client_is_told_what_its_codec_refused_and_its_other_calls_go_on(
    plain_lab: Lab, codec: Codec, said_of_it: str
) -> None:
    async with plain_lab.client(codec=codec) as client:
        starts = [client.start(child.using(id=text), text) for text in ("one", "poison", "two")]
        one, bad, two = await asyncio.gather(*starts, return_exceptions=True)
        assert isinstance(bad, CodecError)
        assert bad.where == "arguments of workflow 'poison'"
        assert said_of_it in str(bad)
        assert not isinstance(one, BaseException)
        assert not isinstance(two, BaseException)
        assert {info.id for info in await client.list()} == {"one", "two"}
        with pytest.raises(CodecError, match="signal 'go' to workflow 'one'"):
            await client.signal("one", go, "poison")


async def test_after_an_unknown_commit_the_very_same_text_is_written_again(
    plain_lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = plain_lab
    lab.codec = Masked()
    async with lab.client() as client:
        worker = lab.worker(family, child)
        doubts = doubt_every_entry(worker, monkeypatch)
        async with worker:
            handle = await client.start(family, SECRET)
            await client.signal(handle, go, "end")
            assert (await handle.result(timeout=10))[-1] == "end"
    assert doubts
    assert bodies == [SECRET, SECRET]


def doubt_every_entry(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> list[Sequence[Op]]:
    """Let the first write of each journal entry commit without an answer."""
    coded = worker._store
    assert isinstance(coded, CodedStore)
    write = coded._inner.write
    doubts: list[Sequence[Op]] = []

    async def doubtful(batch: Sequence[Op], *, retry: bool = False) -> list[Outcome]:
        outcomes = await write(batch, retry=retry)
        if not retry and any(isinstance(op, JournalOp) and op.entries for op in batch):
            doubts.append(batch)
            raise OutcomeUnknown("the connection was lost after the commit was sent")
        return outcomes

    monkeypatch.setattr(coded._inner, "write", doubtful)
    return doubts


# ---------------------------------------------------------------------- options


async def test_the_plain_codec_is_none_at_all(plain_lab: Lab) -> None:
    plain_lab.codec = PlainCodec()
    async with plain_lab.running(child) as client:
        handle = await client.start(child, "a")
        await handle.result(timeout=10)
        [entry] = await handle.journal()
        assert entry.arguments == '{"text":"a"}'


@pytest.mark.parametrize("codec", [Masked, "utf-8", object()], ids=["class", "name", "object"])
def test_what_is_no_codec_is_refused_at_once(codec: Any) -> None:
    for make in (Client, lambda url, codec: Worker(url, workflows=[child], codec=codec)):
        with pytest.raises(ConfigurationError, match="codec takes an object"):
            make("memory://", codec=codec)

"""A stand-in for the Anthropic Messages API on this machine, troubles included; ai_pipeline.py asks it.

It streams answers as the API does, and meets each call with the next of the fates it is given: "answered", "overloaded" (529,
to be tried again in a second), "dropped" (the connection ends half-way) or "cut off" (half the answer, then silence until the
caller is gone). `calls` keeps what became of each call, by step; callers name theirs in the header X-Step.
"""

import asyncio
import contextlib
import json
import os
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator

ANSWERS = {  # by the first word of the question
    "List": "Two themes: the export loses rows, and the invoices come late.",
    "Judge": "The lost rows are severe, for customers act on them. The late invoices are a nuisance.",
    "Advise": "Mend the export this week, write to those whom it has hit, then look at the invoices.",
}


class MessagesStub:
    def __init__(self, fates: Iterable[str]) -> None:
        self._fates = iter(fates)
        self.calls: dict[str, list[str]] = defaultdict(list)

    @contextlib.asynccontextmanager
    async def served(self) -> AsyncIterator[None]:
        """Serve on a free port, which the `anthropic` package finds in the environment."""
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as server:
            url = "http://{}:{}".format(*server.sockets[0].getsockname())
            os.environ |= {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": "none"}
            yield

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            fields = {name.lower(): value for name, value in re.findall(r"([\w-]+): *(.*)\r\n", head)}
            request = json.loads(await reader.readexactly(int(fields["content-length"])))
            fate = next(self._fates, "answered")
            self.calls[fields["x-step"]].append(fate)
            if fate == "overloaded":
                writer.write(_head("529 Overloaded", "retry-after: 1") + b'{"error": {"type": "overloaded_error"}}')
                return
            writer.write(_head("200 OK", "content-type: text/event-stream\r\ntransfer-encoding: chunked"))
            events = list(_events(request["model"], ANSWERS[request["messages"][-1]["content"].split()[0]]))
            for event in events if fate == "answered" else events[: len(events) // 2]:
                writer.write(_chunk(event))
                await asyncio.sleep(0.02)  # a word at a time, as models do
            if fate == "answered":
                writer.write(_chunk(""))  # ends a chunked body; a dropped one has no such end
            elif fate == "cut off":
                await reader.read()


def _events(model: str, text: str) -> Iterator[str]:
    message = {"id": "msg_stub", "type": "message", "role": "assistant", "model": model, "content": []}
    message |= {"stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1}}
    yield _event("message_start", message=message)
    yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    for word in re.findall(r"\S+\s*", text):
        yield _event("content_block_delta", index=0, delta={"type": "text_delta", "text": word})
    yield _event("content_block_stop", index=0)
    yield _event("message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage={"output_tokens": 9})
    yield _event("message_stop")


def _event(kind: str, **fields: object) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n"


def _chunk(text: str) -> bytes:
    return f"{len(text.encode()):x}\r\n{text}\r\n".encode()


def _head(status: str, fields: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nconnection: close\r\n{fields}\r\n\r\n".encode()

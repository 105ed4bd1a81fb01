"""A TCP proxy in front of PostgreSQL that does what networks do: cut, black-hole, delay, and lose a request or its reply.

It reads enough of the protocol to know which statements a round trip holds, also where they were prepared earlier: faults are
armed by a part of the statement's text. It runs on an event loop in a thread of its own; every method may be called from
anywhere. Clients come by `url`, without TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, Literal, Self, TypeAlias
from urllib.parse import parse_qs, urlsplit

Loss: TypeAlias = Literal["reply", "request", "late"]
"""What becomes of a round trip whose client is cut off: its reply is lost once the server is through with it; the server never
hears of it; or the server hears of it only when the client has long connected anew."""
LATE_S = 0.5
_CHUNK = 65536
_THROUGH = b"Z\0\0\0\5"
"""The server's word that it is through with a round trip."""


class Proxy:
    """A proxy to the server of `upstream_url`; use as a context manager.

    Attributes:
        delay_s: how much later everything arrives, either way.
        is_refusing: new connections are cut at once.
        connection_count: how many have come.
        losses: the statements of each round trip that was lost.
        served_count: how many of those the server is through with.
    """

    def __init__(self, upstream_url: str) -> None:
        parts = urlsplit(upstream_url)
        options = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self._host = options.get("host") or parts.hostname or "localhost"
        self._port = int(options.get("port") or parts.port or 5432)
        self._credentials = parts.netloc.rpartition("@")[0] or "postgres"
        self._database = parts.path.lstrip("/")
        self.delay_s = 0.0
        self.is_refusing = False
        self.connection_count = 0
        self.losses: list[str] = []
        self.served_count = 0
        self._armed: tuple[Loss, str] | None = None
        self._after = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        self._links: set[_Link] = set()
        self._flow = asyncio.Event()
        self._flow.set()
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._ask(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._ask(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        """The way through the proxy to the same database."""
        return f"postgresql://{self._credentials}@127.0.0.1:{self.port}/{self._database}?sslmode=disable&gssencmode=disable"

    # ------------------------------------------------------------------ faults

    def cut(self) -> None:
        """Break every connection now; new ones are let in unless `is_refusing`."""
        self._loop.call_soon_threadsafe(self._cut)

    def stop_flow(self) -> None:
        """From now on nothing arrives any more, and nobody is told; new connections stay without an answer."""
        self._loop.call_soon_threadsafe(self._flow.clear)

    def resume_flow(self) -> None:
        """What was held back arrives."""
        self._loop.call_soon_threadsafe(self._flow.set)

    def lose(self, what: Loss, text: str, *, after: int = 0) -> None:
        """Lose the next round trip, or the one after so many others, whose statements contain `text`; once. They are one text with
        "^" before it, "$" behind it, and "; " between them."""
        self._armed, self._after = (what, text), after

    def loss_of(self, texts: list[str]) -> Loss | None:
        """Whether the round trip of these statements is to be lost (asked by the links)."""
        armed, text = self._armed, f"^{'; '.join(texts)}$"
        if armed is None or armed[1] not in text:
            return None
        if self._after > 0:
            self._after -= 1
            return None
        self._armed = None
        self.losses.append(text)
        return armed[0]

    # ------------------------------------------------------------------ inside

    def _ask(self, coroutine: Any) -> Any:
        future: Future[Any] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return future.result(30)

    def _cut(self) -> None:
        for link in list(self._links):
            link.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connection_count += 1
        if self.is_refusing:
            writer.transport.abort()
            return
        link = _Link(self, reader, writer)
        self._links.add(link)
        try:
            await self._flow.wait()
            await link.run(await self._connect())
        except OSError:
            writer.transport.abort()  # the server is not there
        finally:
            self._links.discard(link)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._host.startswith("/"):
            return await asyncio.open_unix_connection(f"{self._host}/.s.PGSQL.{self._port}")
        return await asyncio.open_connection(self._host, self._port)

    async def pass_on(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        """Let data through when the time has come."""
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        await self._flow.wait()
        writer.write(data)
        await writer.drain()

    async def _close(self) -> None:
        self._server.close()
        self.is_refusing = True
        self._flow.set()
        while self._links:
            self._cut()
            await asyncio.sleep(0.01)


class _Link:
    """One client's connection and its own to the server."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._client = (reader, writer)
        self._server: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._statements: dict[bytes, str] = {}
        self._loss: Loss | None = None

    async def run(self, server: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        """Carry both ways until one side ends."""
        self._server = server
        ways = [asyncio.ensure_future(self._carry_requests()), asyncio.ensure_future(self._carry_replies())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self.abort()

    def abort(self) -> None:
        """Break both connections."""
        self._client[1].transport.abort()
        if self._server is not None:
            self._server[1].transport.abort()

    async def _carry_requests(self) -> None:
        assert self._server is not None
        reader, writer = self._client[0], self._server[1]
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readexactly(4)
            [length] = struct.unpack("!I", head)
            await self._proxy.pass_on(head + await reader.readexactly(length - 4), writer)  # the greeting
            unit, texts = bytearray(), []
            async for kind, message in _messages(reader):
                unit += message
                text = self._read(kind, message[5:])
                if text is not None:
                    texts.append(text)
                if kind in b"PBDEC":
                    continue  # more of this round trip is to come
                self._loss = self._proxy.loss_of(texts)
                if self._loss == "request":
                    return
                if self._loss == "late":
                    self._client[1].transport.abort()
                    await asyncio.sleep(LATE_S)
                    writer.write(unit)
                    await asyncio.Event().wait()  # until the replies have come, which nobody gets
                await self._proxy.pass_on(bytes(unit), writer)
                unit, texts = bytearray(), []

    async def _carry_replies(self) -> None:
        assert self._server is not None
        reader, writer = self._server[0], self._client[1]
        seen = b""
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                if self._loss is None:
                    await self._proxy.pass_on(data, writer)
                    continue
                seen = seen[-len(_THROUGH) :] + data
                if _THROUGH in seen:
                    self._proxy.served_count += 1
                    return

    def _read(self, kind: int, body: bytes) -> str | None:
        """The statement that a message runs, if it does."""
        match chr(kind):
            case "Q":
                return body.split(b"\0", 1)[0].decode()
            case "P":
                name, text = body.split(b"\0", 2)[:2]
                self._statements[name] = text.decode()
            case "B":
                return self._statements.get(body.split(b"\0", 2)[1], "")
        return None


async def _messages(reader: asyncio.StreamReader) -> Any:
    while True:
        head = await reader.readexactly(5)
        [length] = struct.unpack("!I", head[1:])
        yield head[0], head + await reader.readexactly(length - 4)


@contextlib.contextmanager
def proxy_to(url: str) -> Iterator[Proxy]:
    """A proxy for the length of a block."""
    with Proxy(url) as proxy:
        yield proxy

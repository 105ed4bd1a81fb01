"""Counts round trips: stands between clients and a PostgreSQL server and passes everything on.

A round trip is counted whenever a client speaks again after the server has; the connections' set-up counts too. It runs on an
event loop in a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Self
from urllib.parse import parse_qs, quote, urlencode, urlsplit, urlunsplit

_CHUNK = 1 << 18


class Relay:
    """Use as a context manager; connect to `url`.

    Args:
        upstream_url: of the database.
    """

    def __init__(self, upstream_url: str) -> None:
        parts = urlsplit(upstream_url)
        options = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self._host = options.pop("host", "") or parts.hostname or "localhost"
        self._port = int(options.pop("port", "") or parts.port or 5432)
        user = parts.netloc.rpartition("@")[0] or "postgres"
        self._parts = parts._replace(query=urlencode({**options, "sslmode": "disable"}, quote_via=quote))
        self._user = user
        self.round_trips = 0
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay")
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        port = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        self.url = urlunsplit(self._parts._replace(netloc=f"{self._user}@127.0.0.1:{port}"))
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def _close(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self._host.startswith("/"):
                upstream = await asyncio.open_unix_connection(f"{self._host}/.s.PGSQL.{self._port}")
            else:
                upstream = await asyncio.open_connection(self._host, self._port)
            is_clients_turn = [True]
            try:
                there = asyncio.ensure_future(self._pass(reader, upstream[1], is_clients_turn, is_request=True))
                back = asyncio.ensure_future(self._pass(upstream[0], writer, is_clients_turn, is_request=False))
                try:
                    await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for one in (there, back):
                        one.cancel()
                    await asyncio.gather(there, back, return_exceptions=True)
            finally:
                upstream[1].close()
        except asyncio.CancelledError:
            pass  # the relay closes
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        is_clients_turn: list[bool],
        *,
        is_request: bool,
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                if is_request and is_clients_turn[0]:
                    self.round_trips += 1
                is_clients_turn[0] = not is_request
                writer.write(data)
                await writer.drain()

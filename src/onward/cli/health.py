"""The probes of `onward worker --health`: a tiny HTTP server for /live and /ready.

It runs in a thread of its own, with an event loop of its own, so that a worker whose loop is stuck is answered for with 503
instead of not at all. It answers GET and HEAD, one request a connection, and bounds everything that a stranger could make
large: the head of a request, the time it takes, the number of connections. It says nothing that is secret.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from typing import Self

import click
import msgspec

from onward.cli.settings import Failure
from onward.health import WorkerHealth

MOST_CONNECTIONS = 64
LONGEST_HEAD = 8192
PATIENCE_S = 5.0
"""What a client gets to send its request and to take the answer."""
BAD_INPUT = 2
_ADDRESS = re.compile(r"(?:(?P<host>\[[0-9A-Fa-f:.%]+\]|[^:\[\]]*):)?(?P<port>\d{1,5})")
_REQUEST = re.compile(rb"(?P<method>[A-Z]{1,16}) (?P<target>[!-~]{1,2048}) HTTP/1\.[01]")


def address(text: str | tuple[str, int]) -> tuple[str, int]:
    """PORT or HOST:PORT; the host is 127.0.0.1 unless given, port 0 is any free one.

    >>> address("8080"), address("0.0.0.0:8080"), address("[::]:0"), address(":9000")
    (('127.0.0.1', 8080), ('0.0.0.0', 8080), ('::', 0), ('127.0.0.1', 9000))
    """
    if isinstance(text, tuple):
        return text
    found = _ADDRESS.fullmatch(text.strip())
    if found is None or int(found["port"]) > 65535:
        raise click.BadParameter(f"{text!r} is no address: write PORT or HOST:PORT, as in 8080 or 0.0.0.0:8080")
    return (found["host"] or "127.0.0.1").strip("[]"), int(found["port"])


class HealthServer:
    """Answers probes from its own thread.

    Args:
        place: host and port, bound at once. Raises Failure (2) where that cannot be.
        look: the worker's health; called in the server's thread.
    """

    def __init__(self, place: tuple[str, int], look: Callable[[], WorkerHealth]) -> None:
        self._look = look
        self._socket = _bound(place)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._has_begun = threading.Event()
        self._stopping = asyncio.Event()
        self._connection_count = 0
        self._thread = threading.Thread(target=self._run, name="onward-health", daemon=True)

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._has_begun.wait()
        return self

    def __exit__(self, *_: object) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        try:
            server = await asyncio.start_server(self._connected, sock=self._socket, limit=LONGEST_HEAD)
            self._loop = asyncio.get_running_loop()
        finally:
            self._has_begun.set()
        try:
            await self._stopping.wait()
        finally:
            server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connection_count += 1
        try:
            if self._connection_count <= MOST_CONNECTIONS:
                async with asyncio.timeout(PATIENCE_S):
                    await self._answer(reader, writer)
        except (TimeoutError, ConnectionError):
            writer.transport.abort()  # it is not one of ours, or it is gone
        finally:
            self._connection_count -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return
        except asyncio.LimitOverrunError:
            writer.write(_response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, {}))
        else:
            writer.write(self._response_to(head))
        await writer.drain()

    def _response_to(self, head: bytes) -> bytes:
        request = _REQUEST.fullmatch(head.partition(b"\r\n")[0])
        if request is None:
            return _response(HTTPStatus.BAD_REQUEST, {})
        if request["method"] not in (b"GET", b"HEAD"):
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, {})
        is_head = request["method"] == b"HEAD"
        path = request["target"].partition(b"?")[0]
        if path not in (b"/live", b"/ready"):
            return _response(HTTPStatus.NOT_FOUND, {"paths": ["/live", "/ready"]}, is_head=is_head)
        health = self._look()
        is_well = health.is_live if path == b"/live" else health.is_ready
        status = HTTPStatus.OK if is_well else HTTPStatus.SERVICE_UNAVAILABLE
        return _response(status, _shown(health), is_head=is_head)


def _shown(health: WorkerHealth) -> dict[str, object]:
    return {
        "live": health.is_live,
        "ready": health.is_ready,
        "problems": health.problems,
        "worker": health.worker_id,
        "name": health.name,
        "slots": health.slots,
        "used": health.used,
    }


def _response(status: HTTPStatus, body: dict[str, object], *, is_head: bool = False) -> bytes:
    content = msgspec.json.encode(body) + b"\n" if body else f"{status.phrase}\n".encode()
    kind = "application/json" if body else "text/plain; charset=utf-8"
    allow = "Allow: GET, HEAD\r\n" if status is HTTPStatus.METHOD_NOT_ALLOWED else ""
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n"
        f"Cache-Control: no-store\r\n{allow}Connection: close\r\n\r\n"
    )
    return head.encode() + (b"" if is_head else content)


def _bound(place: tuple[str, int]) -> socket.socket:
    host, port = place
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=MOST_CONNECTIONS)
    except OSError as error:
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
        raise Failure(f"--health cannot listen on {shown}: {why}; name another place", BAD_INPUT) from error

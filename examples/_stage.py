"""The stage of the larger examples: web applications on free ports, a look at a page, processes that are killed.

ai_pipeline.py and webhook.py play on it, and import it first: it says which package is missing.
"""

import asyncio
import atexit
import contextlib
import html
import importlib.util
import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

for _name in ("anthropic", "fastapi", "httpx", "stripe", "uvicorn"):
    if importlib.util.find_spec(_name) is None:
        sys.exit(f'this example needs {_name}: pip install "onward[demo]"')

import httpx  # noqa: E402
import uvicorn  # noqa: E402
from _database import fresh, shown  # noqa: E402, F401  (for ai_pipeline.py)

os.environ["no_proxy"] = "127.0.0.1"  # this machine is reached directly, whatever proxy there is


def listen() -> tuple[socket.socket, str]:
    """Listen on a free port; gives the socket and its URL. Callers are kept waiting until a server takes it over."""
    listener = socket.create_server(("127.0.0.1", 0))
    atexit.register(listener.close)
    return listener, "http://{}:{}".format(*listener.getsockname())


@contextlib.asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    """Serve an ASGI application in this process while the block runs; gives its URL."""
    listener, url = listen()
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield url
    finally:
        server.should_exit = True
        await serving


async def text_of(url: str, *, having: str = "") -> str:
    """What a page shows, a line for each paragraph; the page is loaded again until it has this word."""
    async with httpx.AsyncClient(timeout=60) as browser:
        while having not in (page := (await browser.get(url)).text):  # noqa: ASYNC110  (a page has no event)
            await asyncio.sleep(0.05)
    return html.unescape(re.sub(r"<.*?>", "", re.sub(r"<title>.*?</title>", "", re.sub(r"<(h1|p)>", "\n  ", page))))


def start(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    """Start `python -m …` as a process of its own, which ends with this one."""
    process = subprocess.Popen([sys.executable, "-m", *arguments], **options)
    atexit.register(process.wait)
    atexit.register(process.terminate)  # the last one registered comes first
    return process


def kill(process: subprocess.Popen[bytes], when: str) -> None:
    """Kill it as `kill -9` does: it gets no warning, and no chance to clean up."""
    process.kill()
    process.wait()
    print(f"Process {process.pid} is killed with SIGKILL {when}.", flush=True)

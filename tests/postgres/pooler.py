"""A PgBouncer of a test's own, in transaction mode unless another is wanted, in front of a PostgreSQL server on a socket.

It listens on a socket in a temporary directory, and on no port. Debian's package `pgbouncer`; tests skip where it is missing.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import psycopg
import pytest

from tests.faults.processes import until
from tests.postgres.instances import server_directories, system_user

PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
POOL_SIZE = 4
_SETTINGS = """\
[databases]
* = host={host} port={port} user={user} password={password}
[pgbouncer]
listen_addr =
listen_port = 6432
unix_socket_dir = {directory}
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
max_client_conn = 500
server_lifetime = 5
server_login_retry = 0.2
admin_users = postgres
logfile = {directory}/log
pidfile = {directory}/pooler.pid
"""


@dataclass
class Pooler:
    """A running PgBouncer."""

    directory: Path
    process: subprocess.Popen[bytes]

    @property
    def base_url(self) -> str:
        """The way through it, without options."""
        return f"postgresql://postgres@/postgres?host={quote(str(self.directory), safe='')}&port=6432"

    def ask(self, command: str) -> list[tuple[Any, ...]]:
        """Say something to its console."""
        url = self.base_url.replace("/postgres?", "/pgbouncer?")
        with contextlib.closing(psycopg.connect(url, autocommit=True, cursor_factory=psycopg.ClientCursor)) as conn:
            cursor = conn.execute(command.encode())
            return cursor.fetchall() if cursor.description else []


@contextlib.contextmanager
def pooler_to(url: str, mode: str = "transaction") -> Iterator[Pooler]:
    """A pooler to the server of this URL, for the length of a block."""
    if PROGRAM is None:
        pytest.skip("PgBouncer is not installed (apt-get install pgbouncer)")
    parts = urlsplit(url)
    options = {name: values[0] for name, values in parse_qs(parts.query).items()}
    with server_directories() as base:
        settings = _SETTINGS.format(
            host=options.get("host") or parts.hostname or "localhost", port=options.get("port") or parts.port or 5432,
            user=parts.username or "postgres", password=parts.password or "none", directory=base, size=POOL_SIZE, mode=mode,
        )  # fmt: skip
        (base / "pgbouncer.ini").write_text(settings)
        process = subprocess.Popen(
            [PROGRAM, "-q", str(base / "pgbouncer.ini")], user=system_user(), stderr=subprocess.DEVNULL
        )
        pooler = Pooler(base, process)
        try:
            until(lambda: _answers(pooler), f"PgBouncer's start: {_log(base)}")
            yield pooler
        finally:
            process.kill()
            process.wait(10)


def _answers(pooler: Pooler) -> bool:
    try:
        return bool(pooler.ask("SHOW VERSION"))
    except psycopg.OperationalError:
        return False


def _log(directory: Path) -> str:
    log = directory / "log"
    return log.read_text() if log.exists() else "no log"

"""A PgBouncer before the session's server, on a socket in a directory of its own and on no port.

It comes from the system (Debian: `apt-get install pgbouncer`, `.ci/run` does it); where it is missing, the tests say so and skip.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, quote, urlsplit

import psycopg
import pytest

from tests.postgres.instances import server_directories, system_user
from tests.postgres.server import ENVIRONMENT_VARIABLE, server_url

BINARY = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
_PORT = 6432
"""Part of the socket's name only."""
_START_S = 30

Mode = Literal["transaction", "session", "statement"]


def pooled_url(directory: Path, **options: object) -> str:
    """The URL of the test server's database behind the pooler."""
    rest = "".join(f"&{name}={quote(str(value), safe='')}" for name, value in options.items())
    return f"postgresql://postgres@/postgres?host={quote(str(directory), safe='')}&port={_PORT}{rest}"


@contextlib.contextmanager
def pgbouncer(mode: Mode, *, pool_size: int = 20) -> Iterator[Path]:
    """A running PgBouncer; gives its directory, for `pooled_url`."""
    if BINARY is None:
        pytest.skip("PgBouncer is not installed: apt-get install pgbouncer")
    hosts = parse_qs(urlsplit(server_url()).query).get("host")
    if not hosts:
        pytest.skip(f"the pooler is tried before the tests' own server, not before that of {ENVIRONMENT_VARIABLE}")
    with server_directories() as base:
        log = base / "pgbouncer.log"
        (base / "users.txt").write_text('"postgres" ""\n')
        (base / "pgbouncer.ini").write_text(
            f"[databases]\npostgres = host={hosts[0]} user=postgres dbname=postgres\n"
            f"[pgbouncer]\nlisten_addr =\nlisten_port = {_PORT}\nunix_socket_dir = {base}\nauth_type = any\n"
            f"auth_file = {base}/users.txt\npool_mode = {mode}\ndefault_pool_size = {pool_size}\nmax_client_conn = 500\n"
            f"logfile = {log}\nserver_reset_query =\nignore_startup_parameters = extra_float_digits\n"
        )
        user = system_user()
        process = subprocess.Popen(
            [BINARY, "-q", str(base / "pgbouncer.ini")], user=user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            _wait(base, process, log)
            yield base
        finally:
            process.terminate()
            process.wait(_START_S)


def _wait(directory: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until it answers."""
    give_up_at = time.monotonic() + _START_S
    while True:
        try:
            psycopg.connect(pooled_url(directory), connect_timeout=5).close()
        except psycopg.OperationalError as error:
            if process.poll() is not None or time.monotonic() > give_up_at:
                shown = log.read_text()[-2000:] if log.exists() else ""
                raise AssertionError(f"PgBouncer does not answer: {error}\n{shown}") from error
            time.sleep(0.02)
        else:
            return

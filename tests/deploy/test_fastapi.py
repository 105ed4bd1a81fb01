"""The app of docs/howto-fastapi.md under uvicorn: killed and started again, stopped in time."""

from __future__ import annotations

import re
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.deploy import support

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytestmark = pytest.mark.slow


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory with the page's files."""
    support.write_files("howto-fastapi.md", tmp_path)
    return tmp_path


def _serving(here: Path, name: str) -> support.Running:
    command = ["uvicorn", "app:app", "--port", "0"]
    return support.running(command, here, name=name, env=support.environment(here))


def _url(server: support.Program) -> str:
    server.says("Uvicorn running on ")
    found = re.search(r"Uvicorn running on (http://\S+)", server.log)
    assert found is not None
    return found[1]


def _recorded(here: Path, workflow_id: str) -> list[str]:
    with closing(sqlite3.connect(here / "onward.db")) as connection:
        rows = connection.execute("SELECT key FROM onward_journal WHERE workflow_id = ? ORDER BY seq", (workflow_id,))
        return [key for (key,) in rows]


def test_a_workflow_goes_on_in_the_next_server_after_a_kill(here: Path) -> None:
    """Its first step is not run again; starting it twice starts one."""
    with _serving(here, "first") as server:
        url = _url(server)
        assert support.ask(f"{url}/users/ann?pause=2", post=True) == (202, {"id": "welcome-ann", "created": True})
        assert support.ask(f"{url}/users/ann?pause=2", post=True) == (202, {"id": "welcome-ann", "created": False})
        assert support.ask(f"{url}/users/bob")[0] == 404
        support.until(lambda: _recorded(here, "welcome-ann"), "the first step is recorded")
        server.kill()
    with _serving(here, "second") as server:
        url = _url(server)
        assert support.ask(f"{url}/users/ann?wait=60") == (200, {"result": "follow-up sent to ann"})
    assert _recorded(here, "welcome-ann") == ["send", "sleep", "send#2"]


def test_a_server_that_is_stopped_ends_its_worker_in_peace(here: Path) -> None:
    """SIGTERM: the lifespan is left, the sleeping workflow stays for the next one, and nothing is logged as an error."""
    with _serving(here, "server") as server:
        url = _url(server)
        assert support.ask(f"{url}/users/ann", post=True)[0] == 202
        support.until(lambda: _recorded(here, "welcome-ann"), "the first step is recorded")
        server.send(signal.SIGTERM)
        assert server.wait() in (0, -signal.SIGTERM)  # uvicorn raises the signal again once it has shut down
        assert "Application shutdown complete" in server.log
        assert "ERROR" not in server.log
        assert "Traceback" not in server.log
    with closing(sqlite3.connect(here / "onward.db")) as connection:
        assert connection.execute("SELECT status, worker FROM onward_workflows").fetchall() == [("pending", None)]
        assert connection.execute("SELECT count(*) FROM onward_workers").fetchone() == (0,)

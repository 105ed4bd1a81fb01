"""The app of docs/howto-flask.md under gunicorn, whose workers are forks of one process that has imported the app."""

from __future__ import annotations

import re
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.deploy import support

pytest.importorskip("flask")
pytest.importorskip("gunicorn")
pytestmark = pytest.mark.slow

USED_BEFORE_THE_FORK = """
import os

print("before the fork:", client.counts(), flush=True)  # connects: a thread, files, locks


@app.get("/pid")
def pid():
    return jsonify(pid=os.getpid(), total=sum(client.counts().values()))
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory with the page's files; the app says which process answers."""
    support.write_files("howto-flask.md", tmp_path)
    app = tmp_path / "app.py"
    app.write_text(app.read_text() + USED_BEFORE_THE_FORK)
    return tmp_path


@pytest.mark.parametrize("options", [["--preload"], ["--preload", "--threads", "4"], []], ids=" ".join)
def test_a_client_made_at_import_works_in_every_forked_process(here: Path, options: list[str]) -> None:
    """Also one that was used before the fork; and the parent's connections are not disturbed."""
    env = support.environment(here)
    serve = ["gunicorn", *options, "--workers", "2", "--bind", "127.0.0.1:0", "app:app"]
    worker = [sys.executable, "-m", "onward", "worker", "flows"]
    with (
        support.running(serve, here, name="gunicorn", env=env) as server,
        support.running(worker, here, name="worker", env=env),
    ):
        server.says("Listening at: ")
        found = re.search(r"Listening at: (http://\S+)", server.log)
        assert found is not None
        url = found[1]
        pids: set[int] = set()
        names = iter(range(10_000))

        def both_answer() -> bool:
            name = f"u{next(names)}"
            status, body = support.ask(f"{url}/users/{name}?pause=0", post=True)
            assert (status, body) == (202, {"id": f"welcome-{name}", "created": True}), server.log
            pids.add(support.ask(f"{url}/pid")[1]["pid"])
            return len(pids) == 2 and next(names) > 20

        support.until(both_answer, "both processes have answered")
        last = next(names)
        assert support.ask(f"{url}/users/last{last}?pause=0", post=True)[0] == 202
        result = support.ask(f"{url}/users/last{last}?wait=20")
        assert result == (200, {"result": f"follow-up sent to last{last}"}), server.log
        assert support.ask(f"{url}/users/nobody")[0] == 404
        assert server.pid not in pids
        assert server.log.count("before the fork: ") == (1 if "--preload" in options else 2)
        assert "Traceback" not in server.log
    with closing(sqlite3.connect(here / "onward.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)

"""The three scripts of `onward demo` on PostgreSQL, from the built wheel where hatchling is at hand: each in a schema of its own."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from onward import Client
from tests.examples.support import EXAMPLES, require_demo
from tests.postgres.server import connection, drop_schema, server_url, url_with

ROOT = EXAMPLES.parent
SCRIPTS = ("welcome", "webhook", "ai")
INSIDE = "onward/cli/_demo/examples"


def _environment(wheel: Path | None) -> dict[str, str]:
    """Of a process that imports Onward from the unpacked wheel."""
    return {**os.environ, "ONWARD_DATABASE_URL": "", **({} if wheel is None else {"PYTHONPATH": str(wheel)})}


def _hears_ctrl_c() -> None:
    """A shell starts background processes, and so perhaps these tests, with SIGINT ignored; that is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _schemas() -> set[str]:
    with connection() as database:
        return {name for (name,) in database.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'onward%'")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """The wheel as it is installed, or None where it cannot be built."""
    if importlib.util.find_spec("hatchling") is None:
        return None
    folder = tmp_path_factory.mktemp("wheel")
    build = "import sys, hatchling.build; hatchling.build.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=ROOT, check=True, capture_output=True, timeout=100)
    [file] = folder.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def _with_password(url: str) -> str:
    """The URL with a password that the server does not ask for."""
    return re.sub(r"//([^:@/]+)@", r"//\1:not-to-be-shown@", url)


@dataclass(frozen=True)
class Finished:
    """One run of `onward demo welcome webhook ai --keep`."""

    output: str
    folder: Path

    def part(self, name: str) -> str:
        """What one of them printed."""
        found = re.search(rf"^{name}: .*\n((?:.+\n)+)", self.output, re.MULTILINE)
        assert found is not None, self.output
        return found[1]

    def schema(self, name: str) -> str:
        """Where it played."""
        found = re.search(r"schema=(onward_demo_\w+)", self.part(name))
        assert found is not None, self.output
        return found[1]


@pytest.fixture(scope="module")
def finished(wheel: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """Run them."""
    require_demo()
    pytest.importorskip("aiosmtpd")
    folder, before = tmp_path_factory.mktemp("demo"), _schemas()
    demo = subprocess.Popen(
        [sys.executable, "-P", "-m", "onward", "demo", *SCRIPTS, "--keep", "--url", _with_password(server_url()), "--dir", str(folder)],
        cwd=folder, env=_environment(wheel), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=_hears_ctrl_c,  # noqa: PLW1509
    )  # fmt: skip
    try:
        try:
            output, complaints = demo.communicate(timeout=180)
        except subprocess.TimeoutExpired:
            demo.send_signal(signal.SIGINT)  # so that its own processes end too
            output, complaints = demo.communicate()
        assert demo.returncode == 0, output + complaints
        assert "not-to-be-shown" not in output + complaints
        yield Finished(output, folder)
    finally:
        for schema in _schemas() - before:
            drop_schema(schema)


def test_the_wheel_carries_the_examples_as_they_are(wheel: Path | None) -> None:
    if wheel is None:
        pytest.skip("hatchling is not installed")
    sources = {path.name: path.read_text() for path in EXAMPLES.glob("*.py")}
    assert {path.name: path.read_text() for path in (wheel / INSIDE).iterdir()} == sources


@pytest.mark.slow
@pytest.mark.timeout(300)
class TestARun:
    """What its reader sees, and finds in the database after it."""

    def test_the_welcome_sequence_sends_each_mail_once_though_its_worker_is_killed(self, finished: Finished) -> None:
        output = finished.part("welcome")
        received = re.findall(r"received '(.+?)', Message-ID <(.+?)@example.com>", output)
        assert received == [("welcome", "welcome-ada/send_email"), ("follow-up", "welcome-ada/send_email#2")]
        assert "is killed with SIGKILL; the workflow is sleeping until" in output
        assert "Completed: 2 mails. Look at it: onward show welcome-ada --url 'postgresql://" in output

    def test_three_deliveries_and_a_kill_are_one_provision_one_mail_and_three_rows_in_the_same_schema(
        self, finished: Finished
    ) -> None:
        lines = finished.part("webhook").splitlines()
        assert lines[5:-1] == [
            "  3 deliveries   1 event, 1 workflow",
            "  access         1 provision  (calls: 2, one Idempotency-Key)",
            "  mail           1 confirmation  (calls: 1)",
            "  rows           1 order, 1 licence, 1 ledger entry  (all in try 2)",
            "Ok: one provision, one mail, three rows.",
        ]
        schema = finished.schema("webhook")
        with connection() as database, Client(url_with(schema=schema)) as client:
            assert client.handle("evt_1").status() == "completed"
            assert database.execute(f"SELECT * FROM {schema}.orders").fetchall() == [("cs_1", "ada@example.com")]
            assert database.execute(f"SELECT * FROM {schema}.ledger").fetchall() == [("cs_1", 4900)]

    def test_the_ai_pipeline_asks_for_no_recorded_answer_again(self, finished: Finished) -> None:
        output = finished.part("ai")
        assert re.findall(r"^  (\w+): (\d) \((.*)\)$", output, re.MULTILINE) == [
            ("themes", "2", "overloaded, answered"),
            ("risks", "2", "dropped, answered"),
            ("advice", "2", "cut off, answered"),
        ]
        assert "Ok: what was answered was kept, and never asked for again.\n" in output

    def test_each_plays_in_a_schema_of_its_own_and_leaves_no_file(self, finished: Finished) -> None:
        assert len({finished.schema(name) for name in SCRIPTS} & _schemas()) == len(SCRIPTS)
        assert list(finished.folder.iterdir()) == []

    def test_it_names_each_source_and_ends_with_a_summary(self, finished: Finished, wheel: Path | None) -> None:
        sources = re.findall(r"^  (\S+\.py)   \(its source\)$", finished.output, re.MULTILINE)
        place = EXAMPLES if wheel is None else wheel / INSIDE
        assert sources == [str(place / name) for name in ("welcome_sequence.py", "webhook.py", "ai_pipeline.py")]
        assert finished.output.endswith("nothing was lost or done twice: welcome, webhook and ai.\n")


@pytest.mark.slow
def test_ctrl_c_ends_a_script_with_all_its_processes_and_drops_its_schema(tmp_path: Path) -> None:
    pytest.importorskip("aiosmtpd")
    before = _schemas()
    demo = subprocess.Popen(
        [sys.executable, "-P", "-m", "onward", "demo", "welcome", "--url", server_url(), "--dir", str(tmp_path)],
        env=_environment(None), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=_hears_ctrl_c,  # noqa: PLW1509
    )  # fmt: skip
    assert demo.stdout is not None
    shown = ""
    while not (started := re.search(r"Worker (\d+) is killed .*\nWorker \d+ is started", shown)):
        line = demo.stdout.readline()
        assert line, shown
        shown += line
    assert len(_schemas() - before) == 1
    demo.send_signal(signal.SIGINT)
    _, complaints = demo.communicate(timeout=100)  # until the last process that holds the pipes has ended
    assert demo.returncode == 130
    assert "asyncio.run(main(" not in complaints, "a traceback of the script"
    assert started is not None
    assert _schemas() == before
    assert list(tmp_path.iterdir()) == []

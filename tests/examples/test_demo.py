"""`onward demo pipeline` with few items: the report holds, and would not hold if the database or the log said anything else."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from onward.cli._demo import screen
from onward.cli._demo.place import SqliteFile
from onward.cli._demo.postgres import PostgresSchema
from onward.cli._demo.proof import Report, prove
from onward.cli._demo.service import BodyLog, Line, RateLimiter
from onward.cli._demo.sources import ROOT, digest_of, examine, source_files
from onward.cli._demo.stage import Plan, Played
from onward.retry import RetryLater
from tests.postgres.server import connection, server_url, url_with

ITEMS = 30
KILL_AT = 20


def _demo(*options: str, url: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "onward", "demo", "pipeline", *options],
        env={**os.environ, "ONWARD_DATABASE_URL": url}, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of one run."""
    folder = tmp_path_factory.mktemp("demo") / "files"
    run = _demo("--items", str(ITEMS), "--dir", str(folder))
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stderr.splitlines() == [f"database: {folder / 'demo.db'}"]
    return folder, run.stdout


@pytest.mark.slow
class TestTheReport:
    """What the demo says after a worker was killed in the middle."""

    def test_it_tells_of_the_refusal_the_kill_and_the_going_on(self, finished: tuple[Path, str]) -> None:
        _, output = finished
        assert f"refuses item {KILL_AT} (rate limit)" in output
        killed = re.search(rf"worker 1 \(pid (\d+)\) is killed with SIGKILL while item {KILL_AT}", output)
        went_on = re.search(rf"worker 2 \(pid (\d+)\) goes on with item {KILL_AT}, (\d+\.\d) s after the kill", output)
        assert killed is not None
        assert went_on is not None
        assert killed[1] != went_on[1]
        assert f"worker 2: {ITEMS} of {ITEMS} items" in output

    def test_every_claim_holds_and_the_cut_off_body_ran_again(self, finished: tuple[Path, str]) -> None:
        _, output = finished
        assert len(re.findall(r"^  ok   ", output, re.MULTILINE)) == 7
        assert "FAIL" not in output
        bodies = re.search(r"(\d+) ran = (\d+) recorded \+ (\d+) put off by the limiter \+ (\d+) run again", output)
        assert bodies is not None
        ran, recorded, put_off, again = map(int, bodies.groups())
        assert ran == recorded + put_off + again
        assert put_off >= 1
        assert again == 1, "the kill fell into a running body"

    def test_it_says_where_the_database_is_and_the_command_it_names_works(self, finished: tuple[Path, str]) -> None:
        folder, output = finished
        command = re.search(r"^  onward (show .+)$", output, re.MULTILINE)
        assert command is not None
        assert str(folder) in command[1]
        shown = subprocess.run(
            [sys.executable, "-m", "onward", *command[1].split()],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert f"classify#{KILL_AT}" in shown.stdout


def _proof_after(
    finished: tuple[Path, str], folder: Path, change: Callable[[Path, sqlite3.Connection], None]
) -> Report:
    """The proof of a copy of the finished run in which something was changed."""
    shutil.copytree(finished[0], folder, ignore=shutil.ignore_patterns("*-workers"))
    database = sqlite3.connect(folder / "demo.db")
    with database:
        change(folder, database)
    database.close()
    lines = BodyLog(folder).lines()
    began = next(line.at for line in lines if line.pid == lines[-1].pid)
    return prove(
        Plan(folder, SqliteFile(folder / "demo.db"), ITEMS), Played(lines[0].pid, lines[-1].pid, began - 1, began, 5.0)
    )


def _append(folder: Path, line: Line) -> None:
    with (folder / "bodies.log").open("a") as log:
        log.write(f'{{"at": {line.at}, "pid": {line.pid}, "key": "{line.key}", "event": "{line.event}"}}\n')


def _unchanged(folder: Path, database: sqlite3.Connection) -> None:
    pass


def _loaded_twice(folder: Path, database: sqlite3.Connection) -> None:
    database.execute(
        "INSERT INTO documents (path, digest, kind, lines, title)"
        " SELECT path, digest, kind, lines, title FROM documents WHERE rowid = 3"
    )


def _lost(folder: Path, database: sqlite3.Connection) -> None:
    database.execute("DELETE FROM documents WHERE rowid = 3")


def _not_completed(folder: Path, database: sqlite3.Connection) -> None:
    database.execute("UPDATE onward_workflows SET status = 'failed'")


def _ran_after_it_was_recorded(folder: Path, database: sqlite3.Connection) -> None:
    last = BodyLog(folder).lines()[-1]
    _append(folder, Line(last.at + 60, last.pid, "daily-pipeline/classify#5", "began"))


def _ran_unrecorded(folder: Path, database: sqlite3.Connection) -> None:
    last = BodyLog(folder).lines()[-1]
    _append(folder, Line(last.at, last.pid, "daily-pipeline/charge", "began"))


def _repeated_by_the_second_worker(folder: Path, database: sqlite3.Connection) -> None:
    lines = BodyLog(folder).lines()
    early = next(line for line in lines if line.key.endswith("/classify#2"))
    _append(folder, Line(early.at, lines[-1].pid, early.key, "began"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "broken"),
    [
        (_unchanged, set()),
        (_loaded_twice, {"no item is loaded twice"}),
        (_lost, {"no item is missing"}),
        (_not_completed, {"the workflow is completed"}),
        (_ran_after_it_was_recorded, {"no recorded step ran again"}),
        (_ran_unrecorded, {"every step body is accounted for"}),
        (_repeated_by_the_second_worker, {f"the second worker went on at item {KILL_AT}"}),
    ],
)
def test_the_proof_fails_where_the_facts_are_other(
    finished: tuple[Path, str], tmp_path: Path, change: Callable[[Path, sqlite3.Connection], None], broken: set[str]
) -> None:
    report = _proof_after(finished, tmp_path / "copy", change)
    failing = {check.claim for check in report.checks if not check.holds}
    assert broken <= failing
    assert report.holds == (not broken)


@pytest.mark.slow
def test_no_keep_leaves_nothing_behind(tmp_path: Path) -> None:
    run = _demo("--items", "12", "--dir", str(tmp_path / "demo"), "--no-keep")
    assert run.returncode == 0, run.stdout + run.stderr
    assert list((tmp_path / "demo").iterdir()) == []


def test_a_database_that_exists_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "demo.db").write_text("mine")
    run = _demo("--dir", str(tmp_path))
    assert run.returncode == 2
    assert "wants a fresh file" in run.stderr
    assert (tmp_path / "demo.db").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [tmp_path / "demo.db"]


def test_a_database_in_memory_is_refused(tmp_path: Path) -> None:
    run = _demo("--dir", str(tmp_path), "--url", "memory://")
    assert run.returncode == 2
    assert "runs on SQLite and PostgreSQL" in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_not_there_ends_it_with_one_line(tmp_path: Path) -> None:
    run = _demo("--dir", str(tmp_path), "--url", f"postgresql://app:secret@/app?host={tmp_path}&connect_timeout=2")
    assert run.returncode == 5, run.stdout + run.stderr
    *_, last = run.stderr.splitlines()
    assert last.startswith("error: ")
    assert "secret" not in run.stderr
    assert run.stdout == ""
    assert list(tmp_path.iterdir()) == []


def _schemas() -> set[str]:
    with connection() as database:
        return {name for (name,) in database.execute("SELECT nspname FROM pg_namespace")}


@pytest.mark.slow
@pytest.mark.timeout(300)
class TestOnPostgres:
    """The same demo in a schema of its own."""

    def test_the_proof_holds_and_the_schema_is_gone_after_it(self, tmp_path: Path) -> None:
        run = _demo("--items", "30", "--dir", str(tmp_path), url=url_with(schema="mine"))
        assert run.returncode == 0, run.stdout + run.stderr
        schema = re.fullmatch(r"database: postgresql://\S+schema=(onward_demo_[0-9a-f]{8})\n", run.stderr)
        assert schema is not None
        assert f"killed with SIGKILL while item {KILL_AT}" in run.stdout
        assert f"the second worker went on at item {KILL_AT}" in run.stdout
        assert len(re.findall(r"^  ok   ", run.stdout, re.MULTILINE)) == 7
        assert schema[1] not in _schemas()
        assert list(tmp_path.iterdir()) == []

    def test_ctrl_c_drops_the_schema_too(self, tmp_path: Path) -> None:
        demo = subprocess.Popen(
            [sys.executable, "-m", "onward", "demo", "pipeline", "--url", server_url(), "--dir", str(tmp_path)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )  # fmt: skip
        assert demo.stdout is not None
        shown = ""
        while " works on " not in shown:
            line = demo.stdout.readline()
            assert line, shown
            shown += line
        schema = re.search(r"schema=(onward_demo_\w+)", shown)
        assert schema is not None
        assert schema[1] in _schemas()
        demo.send_signal(signal.SIGINT)
        demo.communicate(timeout=100)
        assert demo.returncode == 130
        assert schema[1] not in _schemas()
        assert list(tmp_path.iterdir()) == []

    def test_with_keep_the_proof_can_be_read_again_and_fails_for_a_document_loaded_twice(self, tmp_path: Path) -> None:
        folder = tmp_path / "files"
        run = _demo("--items", "12", "--keep", "--dir", str(folder), "--url", server_url())
        assert run.returncode == 0, run.stdout + run.stderr
        commands = re.findall(r"^  ((?:onward|psql) .+?)(?:   \(.*)?$", run.stdout, re.MULTILINE)
        shown, counted, dropped = (shlex.split(command) for command in commands)
        schema = dropped[-1].split()[2]
        place = PostgresSchema(url_with(schema=schema), schema)
        try:
            assert f"FROM {schema}.documents" in counted[-1]
            show = [sys.executable, "-m", "onward", *shown[1:]]
            assert "classify#8" in subprocess.run(show, capture_output=True, text=True, timeout=60, check=True).stdout
            lines = BodyLog(folder).lines()
            played = Played(lines[0].pid, lines[-1].pid, lines[0].at, lines[-1].at, 1.0)
            assert prove(Plan(folder, place, 12), played).holds
            with psycopg.connect(counted[1], autocommit=True) as database:  # the URL that is meant for psql
                database.execute(f"INSERT INTO {schema}.documents SELECT * FROM {schema}.documents LIMIT 1")
            broken = [check.claim for check in prove(Plan(folder, place, 12), played).checks if not check.holds]
            assert broken == ["no item is loaded twice"]
        finally:
            place.remove()
        assert schema not in _schemas()


class TestTheSources:
    """The demo's input."""

    def test_the_same_files_come_in_the_same_order_each_time(self) -> None:
        assert source_files(200) == source_files(200) == sorted(source_files(200))
        assert len(set(source_files(200))) == 200

    def test_even_a_small_choice_holds_duplicates(self) -> None:
        paths = source_files(12)
        assert len({digest_of(path) for path in paths}) < len(paths)

    def test_files_are_classified_by_what_is_in_them(self) -> None:
        assert examine("json/__init__.py").kind == "package"
        assert examine("timeit.py").kind == "program"
        assert examine("types.py").kind == "functions"
        assert examine("queue.py").kind == "classes"
        assert examine("token.py").kind == "data" or examine("keyword.py").kind == "data"
        assert examine("queue.py").lines == len((ROOT / "queue.py").read_bytes().splitlines())


def test_the_rate_limiter_is_shared_by_all_who_use_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    RateLimiter(tmp_path).set_up(limit=2, pause_s=3)
    RateLimiter(tmp_path).take()
    RateLimiter(tmp_path).take()
    for _ in range(2):
        with pytest.raises(RetryLater):
            RateLimiter(tmp_path).take()
    now += 3
    RateLimiter(tmp_path).take()


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("has_rich", [True, False])
def test_a_terminal_shows_a_bar_and_lines_above_it(monkeypatch: pytest.MonkeyPatch, *, has_rich: bool) -> None:
    if has_rich:
        pytest.importorskip("rich")
    else:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    with screen.bar("worker 1", 10, 3) as shown:
        shown.say("a line")
        shown.reach(10)
    assert "a line" in terminal.getvalue()
    assert "10/10" in terminal.getvalue()


def test_without_a_terminal_there_are_plain_lines_only(capsys: pytest.CaptureFixture[str]) -> None:
    with screen.bar("worker 1", 12, 4) as shown:
        for count in range(4, 13):
            shown.reach(count)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "  worker 1: 12 of 12 items"
    assert len(lines) <= screen.LINES

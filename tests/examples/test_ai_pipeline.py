"""The AI pipeline, run as its reader would run it: its report, its page while it runs and after the kill, its database."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.examples.support import EXAMPLES, environment, require_demo, without

EXAMPLE = EXAMPLES / "ai_pipeline.py"
TITLES = ["themes", "risks", "advice"]


@dataclass(frozen=True)
class Finished:
    """One run with `--stay`."""

    output: str
    pages: list[str]
    """What the page showed, each state once, in order."""
    database: Path

    def answers(self) -> dict[str, str]:
        """What the database holds in the end."""
        with closing(sqlite3.connect(self.database)) as database:
            answers: dict[str, str] = json.loads(database.execute("SELECT result FROM onward_workflows").fetchone()[0])
        return answers


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Run it, and read its page all the while."""
    require_demo()
    folder = tmp_path_factory.mktemp("ai")
    complaints = folder / "complaints.txt"
    with complaints.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, str(EXAMPLE), "--stay"],
            cwd=folder, env=environment(folder), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        place = re.fullmatch(
            r"Follow the analysis at (\S+), or with: onward show analysis --url 'sqlite:///(\S+)'\n", first
        )
        assert place is not None, first + complaints.read_text()
        pages = _pages_until_it_is_completed(place[1], process)
        output, _ = process.communicate("\n", timeout=120)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, output + complaints.read_text()
    return Finished(first + output, pages, Path(place[2]))


def _pages_until_it_is_completed(url: str, process: subprocess.Popen[str]) -> list[str]:
    pages: list[str] = []
    while "Analysis: completed" not in "".join(pages[-1:]) and process.poll() is None:
        with urllib.request.urlopen(url, timeout=60) as answer:
            assert answer.headers.get_content_type() == "text/html"
            page = answer.read().decode()
        if page not in pages[-1:]:
            pages.append(page)
        time.sleep(0.02)
    return pages


@pytest.mark.slow
@pytest.mark.timeout(300)
class TestARun:
    """What its reader sees."""

    def test_the_calls_that_were_recorded_are_made_once_and_the_others_again(self, finished: Finished) -> None:
        calls = re.findall(r"^  (\w+): (\d) \((.*)\)$", finished.output, re.MULTILINE)
        assert calls == [
            ("themes", "2", "overloaded, answered"),
            ("risks", "2", "dropped, answered"),
            ("advice", "2", "cut off, answered"),
        ]
        assert finished.output.endswith("Ok: what was answered was kept, and never asked for again.\n")

    def test_the_page_after_the_kill_shows_what_was_recorded_and_the_half_answer(self, finished: Finished) -> None:
        killed = re.search(
            r"Process \d+ is killed with SIGKILL in the middle of the third answer\.\nThe page still shows\n"
            r"  Analysis: running\n  themes: (.*)\n  risks: (.*)\n  advice: (.+) …\n",
            finished.output,
        )
        assert killed is not None, finished.output
        answers = finished.answers()
        *recorded, half = killed.groups()
        assert recorded == [answers["themes"], answers["risks"]]
        assert answers["advice"].startswith(half)
        assert half != answers["advice"]

    def test_the_page_never_loses_what_it_showed(self, finished: Finished) -> None:
        shown = [re.findall(r"<p><b>(\w+)</b>: (.*?)</p>", page) for page in finished.pages]
        answers = list(finished.answers().items())
        for parts in shown:
            done, written = parts[:-1], "".join(text for _, text in parts[-1:])
            assert done == answers[: len(done)]
            assert answers[len(done)][1].startswith(written.removesuffix("…").rstrip())
            assert written.endswith("…") or parts in ([], answers)
        assert [len(parts) for parts in shown] == sorted(len(parts) for parts in shown)
        assert shown[-1] == answers
        assert [name for name, _ in answers] == TITLES

    def test_the_page_loads_itself_again_until_the_workflow_has_ended(self, finished: Finished) -> None:
        for page in finished.pages:
            assert ('http-equiv="refresh"' in page) == ("Analysis: completed" not in page)

    def test_the_journal_has_each_call_once_and_the_tries_that_were_spent(self, finished: Finished) -> None:
        with closing(sqlite3.connect(finished.database)) as database:
            entries = database.execute("SELECT key, kind, tries, result FROM onward_journal ORDER BY seq").fetchall()
            [(status, progress)] = database.execute("SELECT status, progress FROM onward_workflows").fetchall()
        answers = finished.answers()
        assert [(key, kind, json.loads(result)) for key, kind, _, result in entries] == [
            (title, "step", answers[title]) for title in TITLES
        ]
        assert [tries for _, _, tries, _ in entries] == [1, 2, 1], (
            "an overload is put off; a dropped connection is a try"
        )
        assert (status, json.loads(progress)) == ("completed", answers)


SPOILED = """
import asyncio, sqlite3, sys
sys.path.insert(0, {examples!r})
import _stage, ai_pipeline
kill, fresh = _stage.kill, _stage.fresh

def database_that_is_kept(name):
    global url
    url = fresh(name)
    return url

def kill_and_forget(process, when):
    kill(process, when)
    with sqlite3.connect(url.removeprefix("sqlite:///")) as journal:
        journal.execute("DELETE FROM onward_journal WHERE key = 'risks'")
    journal.close()

_stage.kill, _stage.fresh = kill_and_forget, database_that_is_kept
asyncio.run(ai_pipeline.main())
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_fails_where_a_recorded_answer_is_lost_and_asked_for_again(tmp_path: Path) -> None:
    require_demo()
    run = subprocess.run(
        [sys.executable, "-c", SPOILED.format(examples=str(EXAMPLES))],
        cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert run.returncode == 1, run.stdout + run.stderr
    assert "  risks: 3 (dropped, answered, answered)\n" in run.stdout
    assert "BROKEN: an answer was lost, or asked for again" in run.stderr


@pytest.mark.parametrize("package", ["anthropic", "httpx", "uvicorn"])
def test_without_a_package_it_ends_with_the_pip_command(package: str) -> None:
    assert without(package, EXAMPLE) == f'this example needs {package}: pip install "onward[demo]"\n'

"""`onward worker -p N` as processes: how they start, what becomes of them when one is killed, and how they all end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sqlite3
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from onward._store.opening import open_store
from onward._store.records import WorkerInfo
from onward.errors import SchemaError
from tests.cli.conftest import Cli
from tests.cli.processes import DEADLINE_S, Start, until, wait_for_file


def workers(tmp_path: Path) -> list[WorkerInfo]:
    async def read() -> list[WorkerInfo]:
        store = open_store(f"sqlite:///{tmp_path / 'onward.db'}")
        await store.open(migrate=False)
        try:
            return await store.workers()
        finally:
            await store.close()

    return asyncio.run(read())


def working(tmp_path: Path, count: int = 2) -> list[WorkerInfo]:
    """The workers of a group, once all of them work."""

    def look() -> list[WorkerInfo]:
        with contextlib.suppress(SchemaError):  # it is being made
            alive = [worker for worker in workers(tmp_path) if not worker.is_dead]
            return alive if len(alive) == count else []
        return []

    return until(look, f"{count} workers")


def holder(tmp_path: Path, workflow_id: str) -> WorkerInfo:
    """The worker that runs a workflow now."""
    with closing(sqlite3.connect(tmp_path / "onward.db")) as conn:
        [(worker_id,)] = conn.execute("SELECT worker FROM onward_workflows WHERE id = ?", (workflow_id,)).fetchall()
    [found] = [worker for worker in workers(tmp_path) if worker.id == worker_id]
    return found


def shown(cli: Cli, workflow_id: str) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(cli("show", workflow_id, "--json").stdout)
    return row


def test_the_processes_work_under_names_of_their_own_and_end_with_the_parent(
    cli: Cli, flows: str, tmp_path: Path, start_worker: Start
) -> None:
    group = start_worker(flows, "-p", "2", "--name", "mine", "--queue", "mail")
    assert [worker.name for worker in sorted(working(tmp_path), key=lambda worker: worker.name)] == ["mine-1", "mine-2"]
    pids = {worker.pid for worker in workers(tmp_path)}
    assert group.process.pid not in pids
    assert {int(group.until(f"worker {number} is process").split()[-1]) for number in (1, 2)} == pids
    assert cli("start", f"{flows}:hello", '["x"]', "--queue", "mail", "--wait").exit_code == 0
    group.process.send_signal(signal.SIGTERM)
    assert group.wait() == 0
    assert workers(tmp_path) == []  # each has retired
    lines = "".join(group.lines)
    assert "SIGTERM: stopping 2 workers" in lines
    assert [lines.count(words) for words in ("processes: 2\n", "database: ", "workflows: ", "queues: mail\n")] == [
        1
    ] * 4
    for number in (1, 2):
        assert re.search(
            rf"^[-0-9:, ]+ \[{number}\] INFO +onward\.worker: worker mine-{number} works on", lines, re.MULTILINE
        )


def test_a_killed_process_is_started_again_and_another_one_takes_over_what_it_held(
    cli: Cli, flows: str, tmp_path: Path, start_worker: Start
) -> None:
    cli("start", f"{flows}:taking", "[60]", "--id", "t")
    group = start_worker(flows, "-p", "2", "--grace", "100ms")
    wait_for_file(tmp_path / "began", group)
    first = {worker.pid for worker in working(tmp_path)}
    victim = holder(tmp_path, "t")
    number = victim.name[-1]
    os.kill(victim.pid, signal.SIGKILL)
    said = group.until(f"worker {number} (process {victim.pid}) was killed by SIGKILL after")
    assert said.endswith("starting it again in 1.0 s\n")
    until(lambda: (tmp_path / "began").read_text() == "yesyes", "the takeover")
    until(lambda: first != (now := {worker.pid for worker in working(tmp_path)}) and now, "the new process")
    assert victim.pid not in {worker.pid for worker in working(tmp_path)}
    group.process.send_signal(signal.SIGTERM)
    assert group.wait() == 0
    row = shown(cli, "t")
    assert (row["status"], row["crashes"], row["attempts"]) == ("pending", 1, 0)


def test_when_the_parent_is_killed_its_processes_let_running_steps_end_and_go(
    cli: Cli, flows: str, tmp_path: Path, start_worker: Start
) -> None:
    cli("start", f"{flows}:taking", "[1]", "--id", "t")
    group = start_worker(flows, "-p", "2")
    wait_for_file(tmp_path / "began", group)
    working(tmp_path)
    group.process.kill()
    assert group.wait() == -signal.SIGKILL  # and everybody who could write to its stderr is gone
    assert workers(tmp_path) == []
    row = shown(cli, "t")
    assert [entry["result"] for entry in row["journal"]] == ["taken"]
    assert row["crashes"] == 0
    assert sum("the process that supervised this worker is gone" in line for line in group.lines) == 2


def test_a_signal_to_all_of_them_at_once_is_not_taken_for_a_second_one(
    cli: Cli, flows: str, tmp_path: Path, start_worker: Start
) -> None:
    cli("start", f"{flows}:taking", "[1]", "--id", "t")
    group = start_worker(flows, "-p", "2")
    wait_for_file(tmp_path / "began", group)
    for pid in [worker.pid for worker in working(tmp_path)] + [group.process.pid]:  # as service managers do
        os.kill(pid, signal.SIGTERM)
    assert group.wait() == 0
    assert [entry["result"] for entry in shown(cli, "t")["journal"]] == ["taken"]
    assert "starting it again" not in "".join(group.lines)


@pytest.mark.parametrize(("second", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_all_of_them_at_once(
    cli: Cli, flows: str, tmp_path: Path, start_worker: Start, second: signal.Signals, code: int
) -> None:
    cli("start", f"{flows}:taking", "[60]", "--id", "t")
    group = start_worker(flows, "-p", "2", "--grace", "1h")
    wait_for_file(tmp_path / "began", group)
    working(tmp_path)
    group.process.send_signal(signal.SIGINT)
    group.until("SIGINT: stopping 2 workers")
    group.process.send_signal(second)
    assert group.wait() == code
    assert shown(cli, "t")["status"] == "running"  # whoever works next takes it over


def test_what_is_wrong_is_said_once_and_ends_it(tmp_path: Path, flows: str, start_worker: Start) -> None:
    for args, code in (
        (["no_such_module"], 2),
        ([flows, "--queue", ""], 2),
        ([flows, "--url", "sqlite:////no/such/dir/x.db"], 5),
        ([flows, "--url", "memory://"], 2),
    ):
        group = start_worker(*args, "-p", "3")
        assert group.wait() == code
        assert sum(line.startswith("error: ") for line in group.lines) == 1, group.lines
        assert "starting it again" not in "".join(group.lines)
    assert not (tmp_path / "onward.db").exists()


def test_the_probes_of_the_parent_answer_for_all(flows: str, tmp_path: Path, start_worker: Start) -> None:
    group = start_worker(flows, "-p", "2", "--health", "0", "--slots", "7", "--name", "mine")
    url = group.until("health: ").split()[1].removesuffix("/live")
    answer = until(lambda: found if (found := ask(f"{url}/ready"))[0] == 200 else None, "all processes to be ready")
    assert answer == (
        200,
        {"live": True, "ready": True, "problems": [], "worker": None, "name": "mine", "slots": 14, "used": 0},
    )
    assert ask(f"{url}/live")[0] == 200
    group.process.send_signal(signal.SIGTERM)
    assert group.wait() == 0


def ask(url: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(url, timeout=DEADLINE_S) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_with_log_format_json_each_line_says_from_which_process_it_is(
    flows: str, tmp_path: Path, start_worker: Start
) -> None:
    group = start_worker(flows, "-p", "2", "--log-format", "json", "--retention", "30d")
    working(tmp_path)
    group.process.send_signal(signal.SIGTERM)
    assert group.wait() == 0
    lines = [json.loads(line) for line in group.lines]
    assert lines[0]["message"] == "workers start"
    assert lines[0]["processes"] == 2
    assert {line.get("process") for line in lines if line["message"] == "worker starts"} == {1, 2}
    assert {line.get("process") for line in lines if line["message"].startswith("worker 2 is process")} == {None}


def test_what_the_users_code_starts_neither_sees_nor_holds_the_lifeline(tmp_path: Path, start_worker: Start) -> None:
    (tmp_path / "curious.py").write_text(
        "import os, stat, sys\n"
        "from onward import workflow\n"
        "line = f'{\"_ONWARD_LIFELINE\" in os.environ} {stat.S_ISSOCK(os.fstat(0).st_mode)} {sys.stdin.read()!r}'\n"
        "with open('seen', 'a') as seen: seen.write(line + '\\n')\n"
        "@workflow\n"
        "async def flow() -> None: ...\n"
    )
    group = start_worker("curious.py", "-p", "2")
    working(tmp_path)
    group.process.send_signal(signal.SIGTERM)
    assert group.wait() == 0
    assert (tmp_path / "seen").read_text() == "False False ''\n" * 2

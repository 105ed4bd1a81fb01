"""What a diagnosis makes of the facts: each check's level, its words, and its cure, from made-up facts."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from onward._store import checks
from onward._store.checks import Life, daily_bytes, findings_of, life, process_count
from onward._store.diagnosis import Diagnosis, Finding, Group, Level, Payload, Sample, Work
from onward._store.records import WorkerInfo

NOW = 1_800_000_000_000_000
SECOND = 1_000_000
DAY = 24 * 3600 * SECOND


def worker(worker_id: str = "w1", **changes: Any) -> WorkerInfo:
    values: dict[str, Any] = {
        "id": worker_id,
        "name": f"host:{worker_id}",
        "host": "host",
        "pid": 1,
        "queues": ("default",),
        "types": ("flow",),
        "code_version": "c1",
        "started_at": NOW - 60 * SECOND,
        "expires_at": NOW + 10 * SECOND,
        "is_dead": False,
    }
    return WorkerInfo(**{**values, **changes})


def work(*groups: Group, workers: tuple[WorkerInfo, ...] = (), **facts: Any) -> Work:
    return Work(now=NOW, groups=groups, workers=workers, **facts)


def pending(count: int = 1, due: int = 0, late_s: float = 0, queue: str = "default", type: str = "flow") -> Group:
    since = NOW - int(late_s * SECOND) if due else None
    return Group("pending", queue, type, count, due, since, NOW - 100 * SECOND)


def only(name: str, facts: Work) -> Finding:
    """The one finding of this check."""
    [found] = [finding for finding in findings_of(Diagnosis(url="x", findings=(), work=facts)) if finding.check == name]
    return found


@pytest.mark.parametrize(
    ("changes", "proof", "expected"),
    [
        ({}, None, Life.ALIVE),
        ({}, True, Life.ALIVE),
        ({}, False, Life.GONE),
        ({"expires_at": NOW - 1}, None, Life.GONE),
        ({"expires_at": NOW - 1}, True, Life.SILENT),
        ({"expires_at": NOW - 1}, False, Life.GONE),
        ({"is_dead": True}, True, Life.DEAD),
    ],
)
def test_a_worker_lives_by_its_proof_and_its_lease(changes: dict[str, Any], proof: bool | None, expected: Life) -> None:
    facts = work(workers=(worker(**changes),), proofs={} if proof is None else {"w1": proof})
    assert life(facts.workers[0], facts) is expected


def test_processes_are_counted_once_however_many_workers_are_in_them() -> None:
    workers = (
        worker("a"),
        worker("b"),
        worker("c", pid=2),
        worker("d", host="other"),
        worker("e", pid=3, is_dead=True),
    )
    assert process_count(work(workers=workers)) == 3


def test_a_database_with_nothing_wrong_has_only_good_findings() -> None:
    running = Group("running", "default", "flow", 3)
    facts = work(running, pending(5, due=2, late_s=1), workers=(worker(),), held={"w1": 3})
    found = findings_of(Diagnosis(url="x", findings=(), work=facts))
    assert {finding.level for finding in found} == {"ok"}
    assert only("workers", facts).text == "1 worker: host:w1 (1 type in queue default; holds 3)"
    assert only("workflows", facts).text == "3 running, 5 pending"


def test_the_stores_findings_come_after_the_software_and_before_the_work() -> None:
    own = Finding(check="mine", level="ok", text="fine")
    found = findings_of(Diagnosis(url="x", findings=(own,), work=work()))
    assert [finding.check for finding in found[:3]] == ["software", "mine", "workers"]


def test_without_readable_tables_only_the_stores_findings_count() -> None:
    assert [finding.check for finding in findings_of(Diagnosis(url="x", findings=()))] == ["software"]


@pytest.mark.parametrize(
    ("groups", "level", "words"),
    [
        ((), "ok", "nothing to do"),
        ((Group("completed", "default", "flow", 9),), "ok", "nothing to do"),
        ((pending(2),), "warn", "no worker runs, but 2 workflows are unfinished"),
        ((pending(2, due=1, late_s=20),), "warn", "1 of them due for 20.0 s"),
        ((pending(1, due=1, late_s=61),), "fail", "1 of them due for 1 min 1 s"),
    ],
)
def test_no_worker_matters_if_there_is_work(groups: tuple[Group, ...], level: Level, words: str) -> None:
    found = only("workers", work(*groups, workers=(worker(is_dead=True),)))
    assert (found.level, words in found.text) == (level, True), found.text


def test_several_code_versions_at_once_are_told() -> None:
    facts = work(workers=(worker("a"), worker("b", code_version="c2")))
    assert only("workers", facts).text.endswith("they run 2 versions of the code")


def test_rows_of_dead_workers_are_a_failure_unless_someone_takes_over() -> None:
    groups = (Group("running", "default", "flow", 3),)
    gone = worker("gone", expires_at=NOW - 1)
    held = {"gone": 2, "never-heard-of": 1}
    alone = only("leases", work(*groups, workers=(gone,), held=held))
    assert (alone.level, alone.data["orphaned"]) == ("fail", 3)
    assert "3 workflows are held by dead workers (host:gone)" in alone.text
    assert "onward worker" in alone.cure
    assert only("leases", work(*groups, workers=(gone, worker()), held=held)).level == "warn"


def test_a_worker_whose_lease_ran_out_while_its_process_lives_is_a_failure() -> None:
    silent = worker("w1", expires_at=NOW - 40 * SECOND, pid=77)
    found = only("leases", work(workers=(silent,), proofs={"w1": True}, held={"w1": 2}))
    assert found.level == "fail"
    assert (
        "let its lease run out 40.0 s ago, but its process (pid 77 on host) lives and holds 2 workflows" in found.text
    )


def test_past_deaths_are_told_and_no_failure() -> None:
    facts = work(workers=(worker("a", is_dead=True), worker("b", is_dead=True), worker("c", expires_at=NOW - 1)))
    found = only("leases", facts)
    assert found.level == "ok"
    assert "2 found dead in the last 7 days; 1 dead and not noticed yet" in found.text


@pytest.mark.parametrize(
    ("group", "level", "words", "cure"),
    [
        (pending(4, type="gone"), "warn", "no living worker has type 'gone'", "also="),
        (pending(4, due=2, late_s=5, type="gone"), "warn", "4 workflows of type 'gone' in queue 'default', 2 due for 5.0 s", ""),
        (pending(4, due=2, late_s=3600, type="gone"), "fail", "2 due for 1 h", "run a worker with its module"),
        (pending(1, queue="mail"), "warn", "no living worker serves queue 'mail'", "--queue mail"),
        (pending(1, queue="mail", type="send"), "warn", "serves queue 'mail' and has type 'send' too", "--queue mail"),
        (Group("waiting", "default", "gone", 1), "warn", "1 workflow of type 'gone'", ""),
    ],
)  # fmt: skip
def test_a_type_or_queue_that_no_worker_has_is_told(group: Group, level: Level, words: str, cure: str) -> None:
    workers = [worker("a"), worker("b", queues=("other",), types=("send",))]
    if group.type != "flow":
        workers.append(worker("c", queues=("mail",), types=("else",)))
    found = only("unclaimable", work(group, workers=tuple(workers)))
    assert found.level == level
    assert words in found.text
    assert cure in found.cure


def test_pending_and_waiting_workflows_of_one_type_are_one_finding() -> None:
    groups = (pending(3, due=1, late_s=5, type="gone"), Group("waiting", "default", "gone", 2, 1, NOW - 70 * SECOND))
    found = only("unclaimable", work(*groups, workers=(worker(),)))
    assert found.data == {"type": "gone", "queue": "default", "count": 5, "due": 2}
    assert found.level == "fail"


def test_finished_and_running_rows_of_an_unknown_type_are_nobodys_concern() -> None:
    groups = (Group("completed", "default", "gone", 3), Group("running", "default", "gone", 1))
    assert only("unclaimable", work(*groups, workers=(worker(),), held={"w1": 1})).level == "ok"


def test_a_dead_worker_serves_nothing() -> None:
    facts = work(pending(1, type="old"), workers=(worker(), worker("b", types=("old",), is_dead=True)))
    assert only("unclaimable", facts).level == "warn"


def test_rows_that_wait_long_for_busy_workers_are_a_backlog() -> None:
    facts = work(pending(50, due=50, late_s=90), workers=(worker(),), held={"w1": 200})
    found = only("backlog", facts)
    assert (found.level, found.data) == ("warn", {"due": 50, "late_s": 90.0})
    assert "50 workflows are due, the first for 1 min 30 s; 1 worker holds 200" in found.text
    assert only("backlog", work(pending(50, due=50, late_s=2), workers=(worker(),))).level == "ok"


@pytest.mark.parametrize(
    ("name", "check", "level"),
    [
        ("unwakeable", "waits", "fail"),
        ("quarantined", "crashes", "warn"),
        ("crashed", "crashes", "warn"),
        ("diverged", "divergences", "fail"),
    ],
)
def test_a_sample_is_told_with_its_ids_and_a_cure(name: str, check: str, level: Level) -> None:
    assert only(check, work()).level == "ok"
    found = only(check, msgspec.structs.replace(work(), **{name: Sample(1200, ("a", "b"))}))
    assert found.level == level
    assert "1,200 workflows" in found.text
    assert "a, b and 1,198 more" in found.text
    assert found.cure
    assert found.data == {"count": 1200, "examples": ["a", "b"]}


@pytest.mark.parametrize("ahead_s", [4, 6])
def test_times_that_have_not_come_yet_are_a_failure(ahead_s: int) -> None:
    newest = NOW + ahead_s * SECOND
    by_row = only("clock", work(Group("completed", "default", "flow", 1, 0, None, newest)))
    by_worker = only("clock", work(workers=(worker(started_at=newest),)))
    assert by_row.level == by_worker.level == ("ok" if ahead_s <= 5 else "fail")


@pytest.mark.parametrize(
    ("oldest_age", "created", "expected"),
    [(10 * DAY, 500, 500_000), (DAY // 2, 500, 1_000_000), (DAY // 48, 500, None), (None, 0, None)],
)
def test_growth_is_judged_by_the_last_day(oldest_age: int | None, created: int, expected: int | None) -> None:
    facts = work(
        Group("completed", "default", "flow", 1000),
        size=1_000_000,
        created_last_day=created,
        oldest_created_at=None if oldest_age is None else NOW - oldest_age,
    )
    assert daily_bytes(facts) == expected
    found = only("growth", facts)
    assert (", about " in found.text) == (expected is not None)


def test_large_payloads_are_a_warning() -> None:
    small, large = Payload("a", "arguments", 900), Payload("b", "result of step x", 1_500_000)
    assert only("payloads", work(payloads=(small,))).level == "ok"
    found = only("payloads", work(payloads=(large, small)))
    assert found.level == "warn"
    assert "1.5 MB (result of step x of b), 900 B (arguments of a)" in found.text
    assert "--full" in only("payloads", work(payloads=None)).text


def test_every_finding_that_is_not_well_has_a_cure_and_all_are_json() -> None:
    bad = work(
        pending(1, due=1, late_s=100, type="gone"),
        pending(9, due=9, late_s=100),
        Group("running", "default", "flow", 1, 0, None, NOW + DAY),
        workers=(worker(), worker("s", expires_at=NOW - 1), worker("g", expires_at=NOW - 1)),
        proofs={"s": True, "g": False},
        held={"s": 1, "g": 1},
        quarantined=Sample(1, ("q",)),
        crashed=Sample(1, ("c",)),
        diverged=Sample(1, ("d",)),
        unwakeable=Sample(1, ("u",)),
        payloads=(Payload("a", "result", 2_000_000),),
    )
    found = [finding for finding in findings_of(Diagnosis(url="x", findings=(), work=bad)) if finding.level != "ok"]
    assert len(found) == 10
    assert all(finding.cure for finding in found)
    assert msgspec.json.encode(found)


def test_every_check_says_something_of_an_empty_database_except_where_there_is_nothing_to_say() -> None:
    silent = {check.__name__ for check in checks.CHECKS if not list(check(work()))}
    assert silent == {"unclaimable", "backlog", "payloads"}

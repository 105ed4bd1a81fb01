"""What the benchmarks make of their figures: rounds that alternate, medians, verdicts, and what was not run. Nothing is measured."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import page, subjects, targets
from benchmarks.bench import Bench
from benchmarks.results import Results, Sample
from benchmarks.subjects import Peers, Subject

MISSING = Peers(Path("/nowhere"), Path("/nowhere/python"))


def results_of(**rates: list[float]) -> Results:
    """Rates of `three`, by subject."""
    results = Results(None)
    for subject, values in rates.items():
        for value in values:
            results.add(Sample("targets", "three", subject.replace("_", "-"), {"per_s": value}, 100))
    return results


def test_a_ratio_is_the_median_of_the_rounds_or_that_of_the_medians_where_one_ran_less_often() -> None:
    results = results_of(onward_pg=[100.0, 1000.0, 5000.0], bare_pg=[200.0, 2000.0, 50.0], absurd=[60.0])
    by_target = {(v.what, v.target): v for v in targets.verdicts(results)}
    bare = by_target["three, PostgreSQL", "at least 0.5 times bare-pg"]
    assert (bare.measured, bare.beside) == ("1,000 workflows/s", "200 workflows/s")
    assert (bare.ratio, bare.is_met) == ("0.5", True)
    assert by_target["three, PostgreSQL", "at least 20 times absurd"].is_met is False


def test_what_was_not_run_is_said_and_not_judged() -> None:
    by_target = {(v.what, v.target): v for v in targets.verdicts(results_of(onward_pg=[1000.0]))}
    peer = by_target["three, PostgreSQL", "at least 100 times dbos-pg"]
    assert (peer.measured, peer.beside, peer.is_met) == ("1,000 workflows/s", "not run", None)


def test_a_failed_run_counts_for_nothing_and_is_shown(tmp_path: Path) -> None:
    results = results_of(onward_pg=[1000.0])
    results.add(Sample("targets", "three", "absurd", {}, 100, "it `fell`\nover"))
    assert results.values("targets", "three", "absurd", "per_s") == []
    page.write(results, tmp_path / "page.md")
    assert "- absurd, targets, three: `it fell over`" in (tmp_path / "page.md").read_text()


def test_rounds_alternate_between_the_subjects(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(targets, "run_script", lambda subject, case, *_: Sample("targets", case, subject.name, {}))
    bench = Bench(Results(None), "", tmp_path, MISSING, rounds=2, tell=lambda _: None)
    targets.run(bench, cases=("long",))
    order = ["onward-pg", "bare-pg", "onward-sqlite", "bare-sqlite"]
    assert [sample.subject for sample in bench.results.samples] == order * 2


def test_a_script_that_fails_leaves_a_sample_with_its_last_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "peer.py").write_text("import sys\nsys.exit('no luck')")
    peers = Peers(tmp_path, Path(sys.executable))
    subject = Subject("peer", "peer.py", "sqlite", {"noop": subjects.Size(10)})
    assert "no luck" in subjects.run(subject, "noop", 1.0, "", tmp_path, peers).error
    monkeypatch.setattr(subjects, "PATIENCE_S", 0.2)
    (tmp_path / "peer.py").write_text("import threading\nthreading.Event().wait()")
    assert subjects.run(subject, "noop", 1.0, "", tmp_path, peers).error == "over 0.2 s"


def test_the_figures_of_a_script_are_its_last_line(tmp_path: Path) -> None:
    (tmp_path / "peer.py").write_text('print(\'{"ev": 1}\')\nprint(\'{"peer": "x", "n": 20, "per_s": 5.5}\')')
    subject = Subject("peer", "peer.py", "sqlite", {"noop": subjects.Size(10, 3, ("a=b",))})
    sample = subjects.run(subject, "noop", 1.0, "", tmp_path, Peers(tmp_path, Path(sys.executable)))
    assert (sample.error, sample.size, sample.figures["per_s"]) == ("", 20, 5.5)
    assert "n" not in sample.figures


def test_parts_of_a_run_are_kept_and_make_one_page(tmp_path: Path) -> None:
    kept = tmp_path / "results.json"
    for subject, rate in (("onward-pg", 1000.0), ("bare-pg", 1500.0)):
        part = Results(kept, keeps=True)
        part.setup = {"date": "today", "peers": {"absurd-sdk": "1.2"}}
        part.add(Sample("targets", "three", subject, {"per_s": rate}, 100))
    command.main(["--measured", "--write", "--results", str(kept), "--page", str(tmp_path / "page.md")])
    text = (tmp_path / "page.md").read_text()
    assert (
        "| three, PostgreSQL | at least 0.5 times bare-pg | 1,000 workflows/s | 1,500 workflows/s | 0.667 | met |"
        in text
    )
    assert "absurd-sdk 1.2" in text
    Results(kept).add(Sample("targets", "three", "onward-pg", {"per_s": 1.0}, 100))
    assert len(Results(kept, keeps=True).samples) == 1, "without --append a run begins anew"

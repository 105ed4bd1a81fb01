"""The closing report of the demo: what the database says, read with the plain driver after all workers are gone.

It asks nothing of Onward: the tables, the log of step bodies, and the source files read once more are all it knows. A check
that fails makes `onward demo` exit with code 1.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import msgspec

from onward.cli._demo.service import BodyLog, Line
from onward.cli._demo.sources import digest_of, source_files
from onward.cli._demo.stage import WORKFLOW_ID, Plan, Played


@dataclass(frozen=True, slots=True)
class Check:
    """One claim, whether it holds, and the numbers."""

    holds: bool
    claim: str
    numbers: str


@dataclass(frozen=True, slots=True)
class Report:
    """What the run did, and the claims about it."""

    kinds: dict[str, int]
    loaded: int
    duplicates: dict[str, str]
    checks: tuple[Check, ...]

    @property
    def holds(self) -> bool:
        """Every claim holds."""
        return all(check.holds for check in self.checks)


class _Facts:
    """Everything read once."""

    def __init__(self, plan: Plan) -> None:
        found = plan.place.find(WORKFLOW_ID)
        self.documents, self.status, self.recorded = found.documents, found.status, found.recorded
        self.result = msgspec.json.decode(found.result or "{}")
        self.lines = [
            msgspec.structs.replace(line, key=line.key.partition("/")[2]) for line in BodyLog(plan.folder).lines()
        ]
        first_with: dict[str, str] = {}
        self.expected_duplicates: dict[str, str] = {}
        for path in source_files(plan.items):
            first = first_with.setdefault(digest_of(path), path)
            if first != path:
                self.expected_duplicates[path] = first
        self.expected = sorted(first_with.values())


def prove(plan: Plan, played: Played) -> Report:
    """Read the database and check every claim."""
    facts = _Facts(plan)
    checks = (
        _completed(facts, plan),
        _none_twice(facts),
        _none_missing(facts),
        _duplicates_dropped(facts),
        _recorded_once(facts),
        _bodies(facts),
        _went_on(facts, plan, played),
    )
    kinds = dict(Counter(kind for _, _, kind in facts.documents).most_common())
    return Report(kinds, len(facts.documents), facts.expected_duplicates, checks)


def _completed(facts: _Facts, plan: Plan) -> Check:
    collected = facts.result.get("collected")
    return Check(
        facts.status == "completed" and collected == plan.items,
        "the workflow is completed",
        f"{collected} documents collected, status {facts.status}",
    )


def _none_twice(facts: _Facts) -> Check:
    rows = len(facts.documents)
    paths = len({path for path, _, _ in facts.documents})
    contents = len({digest for _, digest, _ in facts.documents})
    return Check(
        rows == paths == contents, "no item is loaded twice", f"{rows} rows, {paths} paths, {contents} contents"
    )


def _none_missing(facts: _Facts) -> Check:
    loaded = {path for path, _, _ in facts.documents}
    missing = [path for path in facts.expected if path not in loaded]
    strangers = loaded.difference(facts.expected)
    detail = f", missing {missing[0]}" if missing else ""
    return Check(
        not missing and not strangers,
        "no item is missing",
        f"{len(facts.expected)} different contents on disk, {len(missing)} not in the table{detail}",
    )


def _duplicates_dropped(facts: _Facts) -> Check:
    dropped = facts.result.get("duplicates")
    example = next((f", for instance {path} = {first}" for path, first in facts.expected_duplicates.items()), "")
    return Check(
        dropped == facts.expected_duplicates and bool(facts.expected_duplicates),
        "duplicates are dropped",
        f"{len(facts.expected_duplicates)} files repeat another's content{example}",
    )


def _recorded_once(facts: _Facts) -> Check:
    """A body that began after its step had been recorded would break the promise."""
    recorded_at = dict(facts.recorded)
    late = [line for line in _begun(facts) if line.at * 1e6 > recorded_at.get(line.key, float("inf"))]
    return Check(
        not late and len(recorded_at) == len(facts.recorded),
        "no recorded step ran again",
        f"{len(facts.recorded)} steps recorded, {len(late)} bodies began after that",
    )


def _bodies(facts: _Facts) -> Check:
    """Every body that ran is accounted for: recorded, put off, or cut off by the kill and run again."""
    begun = Counter(line.key for line in _begun(facts))
    put_off = Counter(line.key for line in facts.lines if line.event == "put off")
    failed = sum(line.event == "failed" for line in facts.lines)
    recorded = {key for key, _ in facts.recorded}
    again = sum(count - put_off[key] - 1 for key, count in begun.items())
    is_complete = recorded == set(begun)
    return Check(
        is_complete and again in (0, 1) and failed == 0,
        "every step body is accounted for",
        f"{begun.total()} ran = {len(recorded)} recorded + {put_off.total()} put off by the limiter + {again} run again",
    )


def _went_on(facts: _Facts, plan: Plan, played: Played) -> Check:
    before = {line.key for line in facts.lines if line.pid == played.first_pid}
    after = [line.key for line in facts.lines if line.pid == played.second_pid]
    repeated = before.intersection(after) - {plan.kill_key}
    return Check(
        bool(after) and after[0] == plan.kill_key and not repeated,
        f"the second worker went on at item {plan.kill_at}",
        f"its first step was {after[0] if after else 'none'}; it repeated {len(repeated)} of the first worker's other steps",
    )


def _begun(facts: _Facts) -> list[Line]:
    return [line for line in facts.lines if line.event == "began"]

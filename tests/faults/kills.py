"""Rounds of "kill a worker at this point, let a fresh one finish, compare": many at a time, each on its own copy of one database.

A round spends nearly all of its time waiting (for a sleep, for the takeover), so a handful of threads run them side by side.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onward.client import Client
from tests.faults import flows
from tests.faults.databases import IS_LONG
from tests.faults.faultworker import Job
from tests.faults.processes import ForkServers, until
from tests.faults.scenes import Scene

SIDE_BY_SIDE = 6
ID = "t"
SURVIVED = -1


@dataclass(frozen=True)
class Round:
    """What one round did."""

    failpoint: str
    was_killed: bool
    takeover_s: float | None
    """From the kill to the first commit that gave the victim's rows back; None where it held none."""


class Matrix:
    """A started `trial`, its undisturbed outcome, and rounds on copies of it."""

    def __init__(self, directory: Path, servers: ForkServers, kind: str) -> None:
        self.template = Scene(directory / "template", servers, kind)
        self.template.expect_takeovers()
        self.template.start(flows.trial.using(id=ID).bind(4))
        self.signalled = self.template.copy("signalled")
        _send(self.signalled)
        undisturbed = self.signalled.copy("undisturbed")
        points = undisturbed.directory / "points"
        with undisturbed.worker(twists={"count-points": str(points)}):
            undisturbed.until_final()
        undisturbed.check()
        assert undisturbed.status(ID) == "completed", undisturbed.describe()
        self.undisturbed = undisturbed.outcome()
        self.points = Counter(points.read_text(encoding="utf-8").split())
        """How often each failpoint was passed in the undisturbed run."""
        undisturbed.close()

    def close(self) -> None:
        """Remove the databases that rounds are copies of."""
        self.signalled.close()
        self.template.close()

    def round(self, failpoint: str, *, late_signal: bool = False, **options: Any) -> Round:
        """Kill a worker at `failpoint`, let a fresh one finish, check everything. A late signal is sent after the kill (or when
        the victim has come to wait for it and was stopped)."""
        name = f"{failpoint.replace('*', 'any').replace(':', '-')}-{late_signal}-{'-'.join(options)}"
        scene = (self.template if late_signal else self.signalled).copy(name)
        try:
            return self._play(scene, failpoint, late_signal, options)
        finally:
            scene.close()

    def _play(self, scene: Scene, failpoint: str, late_signal: bool, options: dict[str, Any]) -> Round:
        victim = scene.spawn(failpoint=failpoint, **options)
        until(lambda: victim.ended is not None or _rests(scene), f"the end of the victim of {failpoint}")
        if victim.ended is None:
            victim.send(signal.SIGTERM)  # it may still come upon its failpoint on its way out
        code = victim.wait()
        assert code in (0, -signal.SIGKILL), f"{failpoint}: the victim ended with {code}\n{victim.log}"
        scene.check()
        _check_stages(scene)
        held = scene.rows("SELECT DISTINCT worker FROM onward_workflows WHERE status = 'running'")
        killed_at = time.monotonic()
        if late_signal:
            _send(scene)
        takeover_s = None
        with scene.worker(**options):
            if held:
                sql = "SELECT count(*) FROM onward_workflows WHERE status = 'running' AND worker = ?"
                until(lambda: scene.rows(sql, held[0]) == [0], f"the takeover after {failpoint}\n{scene.describe()}")
                takeover_s = time.monotonic() - killed_at
            scene.until_final()
        scene.check()
        assert scene.outcome() == self.undisturbed, f"{failpoint}: another outcome\n{scene.describe()}"
        return Round(failpoint, code != 0, takeover_s)

    def is_over(self, scene: Scene) -> bool:
        """Whether the trial has ended."""
        return scene.status(ID) in ("completed", "failed", "cancelled")

    def rounds(self, failpoints: Iterable[str], **options: Any) -> list[Round]:
        """Several rounds side by side."""
        with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            futures = [pool.submit(self.round, failpoint, **options) for failpoint in failpoints]
        return [future.result() for future in futures]


def _check_stages(scene: Scene) -> None:
    """No effect without the record of what led to it: a body that has begun finds everything before it in the journal."""
    begun = set(scene.bodies_of(ID))
    recorded = set(scene.rows("SELECT key FROM onward_journal WHERE workflow_id = ? AND struck = 0", ID))
    before: set[str] = set()
    for stage in flows.TRIAL_STAGES:
        assert not begun & stage or before <= recorded, f"{begun & stage} began, not recorded: {before - recorded}"
        before |= stage


def _send(scene: Scene) -> None:
    with Client(scene.url) as client:
        client.signal(ID, flows.go_on, "yes")


def _rests(scene: Scene) -> bool:
    """Nothing will happen any more in this scene: all has ended, or waits for the signal."""
    rows = scene.rows("SELECT status, waiting_for FROM onward_workflows")
    return all(
        status in ("completed", "failed") or (status == "waiting" and "go_on" in waiting) for status, waiting in rows
    )


def part_of(outcome: dict[str, Any], workflow_id: str) -> dict[str, Any]:
    """The part of an outcome that belongs to one trial and its child, without their ids."""
    part: dict[str, Any] = {}
    for (owner, key), value in outcome["entries"].items():
        if owner.split("/")[0] == workflow_id:
            part[owner.removeprefix(workflow_id) + ":" + key] = value
    for owner, (name, status, result, progress, _parent) in outcome["workflows"].items():
        if owner.split("/")[0] == workflow_id:
            part[owner.removeprefix(workflow_id)] = (name, status, result, progress)
    return part


def tell(rounds: list[Round]) -> None:
    """Print what a person wants to know of many rounds."""
    kills = [one for one in rounds if one.was_killed]
    took = sorted(one.takeover_s for one in rounds if one.takeover_s is not None)
    if took:
        print(
            f"{len(kills)} kills in {len(rounds)} rounds; takeover of {len(took)} victims' rows: "
            f"median {took[len(took) // 2]:.2f} s, longest {took[-1]:.2f} s"
        )


__all__ = ["ID", "IS_LONG", "SIDE_BY_SIDE", "Job", "Matrix", "Round", "part_of", "tell"]

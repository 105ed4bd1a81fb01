"""Random programs in a random world: every prefix of every history replays to the same commands, order, waits and end.

The histories are also replayed in other processes: another hash seed, heap and collector threshold, on every CPython at hand.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import onward
from tests.property.programs import VERSION_DEPENDENT, Block, build, names_in
from tests.property.simulator import Simulator, Story, differences, replayed

STORIES = int(os.environ.get("ONWARD_STORIES", "150"))
"""How many stories go to the other processes."""
ROOT = Path(__file__).parents[2]


@st.composite
def blocks(draw: st.DrawFn) -> Block:
    """A random program."""
    return build(lambda below: draw(st.integers(0, below - 1)), depth=2)


relaxed = settings(
    max_examples=int(os.environ.get("ONWARD_EXAMPLES", "120")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@relaxed
@given(blocks(), st.integers(0, 2**32))
def test_every_prefix_replays_to_what_was_seen_live(block: Block, seed: int) -> None:
    story = Simulator(json.dumps(block), Random(seed)).run()
    assert differences(story) == []


@relaxed
@given(blocks(), st.integers(0, 2**32))
def test_parking_after_every_entry_changes_nothing(block: Block, seed: int) -> None:
    source = json.dumps(block)
    story = Simulator(source, Random(seed), parks=True).run()
    seen, core = replayed(source, story.seed, story.history)
    core.close()
    assert seen == story.seen[len(story.history)]
    live = Simulator(source, Random(seed)).run()
    assert live.history == story.history


def _stories() -> list[Story]:
    stories = []
    for seed in range(STORIES):
        rng = Random(seed)
        stories.append(Simulator(json.dumps(build(rng.randrange, depth=3)), rng).run())
    return stories


def _pythons() -> dict[str, str]:
    """CPython 3.11 and newer with msgspec, by version; the one that runs this included."""
    found = {f"{sys.version_info.major}.{sys.version_info.minor}": sys.executable}
    candidates = os.environ.get("ONWARD_TEST_PYTHONS", "").split(os.pathsep)
    candidates += [shutil.which(f"python3.{minor}") or "" for minor in range(11, 20)]
    for path in filter(None, candidates):
        code = "import sys, msgspec, onward; print('%d.%d' % sys.version_info[:2])"
        answer = subprocess.run([path, "-c", code], capture_output=True, text=True, env=_environment(), check=False)
        version = answer.stdout.strip()
        if answer.returncode == 0 and tuple(map(int, version.split("."))) >= (3, 11):
            found.setdefault(version, path)
    return found


@pytest.fixture(scope="module")
def stories() -> list[Story]:
    return _stories()


def _environment() -> dict[str, str]:
    """For another interpreter: this repository's code, or, where a wheel is tested, the one that is installed there."""
    source = Path(onward.__file__).parents[1]
    paths = [ROOT] if source.name == "site-packages" else [source, ROOT]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}


def _replay_in(python: str, stories: list[Story], tmp_path: Path, hash_seed: str) -> list[str]:
    file = tmp_path / "stories.json"
    file.write_bytes(msgspec.json.encode(stories))
    env = {**_environment(), "PYTHONHASHSEED": hash_seed}
    answer = subprocess.run(
        [python, "-W", "error", "-m", "tests.property.replayer", str(file)],
        capture_output=True, text=True, env=env, check=False, cwd=ROOT,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr == ""
    found: list[str] = json.loads(answer.stdout)
    return found


def test_the_stories_reach_every_kind_of_entry_and_end(stories: list[Story]) -> None:
    kinds = {entry.kind for story in stories for entry in story.history}
    assert kinds == {"step", "timer", "signal", "child", "start", "cancel", "timeout", "patch", "attempt"}
    ends = {story.seen[max(story.seen)].ending.split()[0].split("(")[0] for story in stories}
    assert {"returned", "raised", "Cancelled"} <= ends
    assert sum(len(story.history) for story in stories) > 5 * STORIES


@pytest.mark.parametrize("hash_seed", ["0", "1", "4242"])
def test_stories_replay_alike_in_another_process(stories: list[Story], tmp_path: Path, hash_seed: str) -> None:
    assert _replay_in(sys.executable, stories, tmp_path, hash_seed) == []


def test_stories_replay_alike_on_every_python_at_hand(stories: list[Story], tmp_path: Path) -> None:
    portable = [story for story in stories if not names_in(json.loads(story.source)) & VERSION_DEPENDENT]
    pythons = _pythons()
    del pythons[f"{sys.version_info.major}.{sys.version_info.minor}"]
    if not pythons:
        pytest.skip("no other CPython with msgspec found; set ONWARD_TEST_PYTHONS to their paths")
    for version, python in pythons.items():
        assert _replay_in(python, portable, tmp_path, "random") == [], (
            f"recorded on {sys.version}, replayed on {version}"
        )

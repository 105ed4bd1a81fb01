"""The files of deploy/: each is sound for its own tool, its commands work, and its time-outs fit those of the worker."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from onward._engine.dispatcher import STOP_PATIENCE_S
from onward._store.opening import open_store
from onward.cli.worker import LEFTOVER_S
from onward.cli.worker import worker as worker_command
from onward.retry import seconds
from tests.deploy import support
from tests.docs.blocks import blocks

UNIT = support.DEPLOY / "onward-worker.service"
DOCKERFILE = support.DEPLOY / "Dockerfile"
COMPOSE = support.DEPLOY / "compose.yaml"
KUBERNETES = [support.DEPLOY / "kubernetes.yaml", support.DEPLOY / "kubernetes-postgres.yaml"]
AIR_S = 5.0
"""Between the longest stop of a worker and the moment at which it is killed."""


def _options(words: list[str]) -> dict[str, Any]:
    """What `onward worker` understands of a command line; it refuses what it does not know."""
    assert Path(words[0]).name == "onward"
    assert words[1] == "worker"
    context = worker_command.make_context("worker", list(words[2:]))
    return context.params


def _duration(text: str) -> float:
    found = re.fullmatch(r"(\d+)s", text)
    assert found is not None, text
    return float(found[1])


def _fits(stop_s: float, options: dict[str, Any]) -> bool:
    """Whether a worker with these options has left before it is killed after `stop_s`."""
    longest_s: float = seconds(options["grace"], "grace") + STOP_PATIENCE_S + LEFTOVER_S
    return longest_s + AIR_S <= stop_s


# ---------------------------------------------------------------------- systemd


def _unit() -> dict[str, list[str]]:
    """The settings of the unit, each with all its values."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_the_unit_stops_the_worker_as_it_wants_to_be_stopped() -> None:
    """SIGTERM to the worker alone, and SIGKILL only when it must have left already."""
    unit = _unit()
    options = _options(shlex.split(unit["ExecStart"][0]))
    assert unit["KillSignal"] == ["SIGTERM"]
    assert unit["KillMode"] == ["mixed"]
    assert _fits(_duration(unit["TimeoutStopSec"][0]), options)


def test_the_unit_may_write_where_its_database_is() -> None:
    """Everything else is read-only under ProtectSystem=strict."""
    unit = _unit()
    (url,) = [value.split("=", 1)[1] for value in unit["Environment"] if value.startswith("ONWARD_DATABASE_URL=")]
    assert open_store(url).url == f"sqlite:////var/lib/{unit['StateDirectory'][0]}/onward.db"
    assert unit["ProtectSystem"] == ["strict"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("name", ["onward-worker.service", "onward-worker@.service"])
def test_systemd_accepts_the_unit(tmp_path: Path, name: str) -> None:
    """Under its own name, and as a template for several workers; with a command that exists on this machine."""
    unit = tmp_path / name
    unit.write_text(UNIT.read_text().replace("/srv/myapp/.venv/bin/onward", str(support.BIN / "onward")))
    ran = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False, timeout=60)
    mine = [line for line in ran.stderr.splitlines() if "onward-worker" in line]
    assert mine == []


# ---------------------------------------------------------------------- Docker


def _instructions(name: str) -> list[str]:
    """The arguments of every such instruction, lines joined."""
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    return re.findall(rf"^{name} (.*)$", text, re.MULTILINE)


def test_the_image_runs_the_worker_itself() -> None:
    """Not through a shell, which would keep the signals to itself."""
    (command,) = _instructions("CMD")
    options = _options(json.loads(command))
    assert _instructions("STOPSIGNAL") == ["SIGTERM"]
    assert not _instructions("ENTRYPOINT")
    assert [str(options["health_place"][1])] == _instructions("EXPOSE")


def test_compose_gives_the_worker_time_to_stop() -> None:
    """More than Docker's ten seconds, and a local volume for the database."""
    (command,) = _instructions("CMD")
    compose = yaml.safe_load(COMPOSE.read_text())
    worker = compose["services"]["worker"]
    assert _fits(_duration(worker["stop_grace_period"]), _options(json.loads(command)))
    assert worker["environment"]["ONWARD_DATABASE_URL"] == "sqlite:////data/onward.db"
    assert worker["volumes"] == ["data:/data"]
    assert compose["volumes"] == {"data": {}}


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not installed")
def test_compose_accepts_its_file() -> None:
    """With the plug-in or the older program: both read the same file."""
    command = ["docker-compose", "-f", str(COMPOSE), "config", "--quiet"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.slow
def test_the_commands_of_the_image_work(tmp_path: Path) -> None:
    """CMD in a directory with what the image copies, HEALTHCHECK against it, a workflow, and the stop signal."""
    for file in support.DEPLOY.glob("*.py"):
        shutil.copy(file, tmp_path)
    env = support.environment(tmp_path, ONWARD_DATABASE_URL=f"sqlite:///{tmp_path}/onward.db")
    (command,) = [json.loads(text) for text in _instructions("CMD")]
    with support.running(["0" if word == "8080" else word for word in command], tmp_path, env=env) as worker:
        worker.says("works on")
        place = json.loads(next(line for line in worker.log.splitlines() if "worker starts" in line))["health"]
        (check,) = [json.loads(text.partition("CMD ")[2]) for text in _instructions("HEALTHCHECK")]
        assert "http://127.0.0.1:8080/live" in check[-1]
        check = [word.replace("http://127.0.0.1:8080", place) for word in check]
        assert subprocess.run(check, env=env, check=False, timeout=60).returncode == 0
        start = [sys.executable, "-m", "onward", "start", "flows:welcome", '["ann", 0]', "--wait"]
        ran = subprocess.run(start, cwd=tmp_path, env=env, capture_output=True, text=True, check=True, timeout=60)
        assert ran.stdout.splitlines()[-1] == '"follow-up sent to ann"'
        worker.send(signal.SIGTERM)
        assert worker.wait() == 0
        assert subprocess.run(check, env=env, capture_output=True, check=False, timeout=60).returncode != 0


# ---------------------------------------------------------------------- Kubernetes


def _pods() -> Iterator[Any]:
    for file in KUBERNETES:
        for document in yaml.safe_load_all(file.read_text()):
            if "template" in document["spec"]:
                yield pytest.param(document, id=file.stem)


@pytest.mark.parametrize("document", list(_pods()))
def test_a_pod_gives_its_worker_time_to_stop_and_asks_it_how_it_is(document: Any) -> None:
    """Its grace is longer than the worker's; the probes reach the port that the worker answers on."""
    pod = document["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    options = _options(container["args"])
    assert _fits(pod["terminationGracePeriodSeconds"], options)
    host, port = options["health_place"]
    assert host == "0.0.0.0"  # probes come from outside of the pod
    assert container["ports"] == [{"name": "health", "containerPort": port}]
    assert container["livenessProbe"]["httpGet"] == {"path": "/live", "port": "health"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "health"}
    assert document["spec"]["selector"]["matchLabels"] == document["spec"]["template"]["metadata"]["labels"]


def test_sqlite_gets_one_pod_and_a_volume_of_its_own() -> None:
    """Never two pods, and never a volume that several machines can mount."""
    (document,) = yaml.safe_load_all(KUBERNETES[0].read_text())
    assert document["kind"] == "StatefulSet"
    assert document["spec"]["replicas"] == 1
    (claim,) = document["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    (container,) = document["spec"]["template"]["spec"]["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert container["env"] == [
        {"name": "ONWARD_DATABASE_URL", "value": f"sqlite:///{mounts[claim['metadata']['name']]}/onward.db"}
    ]


# ---------------------------------------------------------------------- all of them


@pytest.mark.parametrize(
    ("page", "files"),
    [
        ("howto-deploy-systemd.md", ["onward-worker.service"]),
        ("howto-deploy-docker.md", ["Dockerfile", "compose.yaml"]),
        ("howto-deploy-kubernetes.md", ["kubernetes.yaml", "kubernetes-postgres.yaml"]),
    ],
)
def test_a_page_shows_its_files_as_they_are(page: str, files: list[str]) -> None:
    """Readers copy them from there: each stands on the page as it stands in deploy/."""
    shown = [block.code for block in blocks((support.ROOT / "docs" / page).read_text())]
    for file in files:
        assert (support.DEPLOY / file).read_text() in shown, file


@pytest.mark.slow
def test_a_worker_leaves_although_a_step_outlasts_the_grace(tmp_path: Path) -> None:
    """A thread cannot be ended; the process is, soon after the grace, and the workflow is there for the next worker."""
    (tmp_path / "flows.py").write_text(
        "import threading\nimport onward\n\n\n@onward.step\ndef endless() -> None:\n"
        "    print('it begins', flush=True)\n    threading.Event().wait()\n\n\n"
        "@onward.workflow\nasync def stuck() -> None:\n    await endless()\n"
    )
    env = support.environment(tmp_path)
    onward = [sys.executable, "-m", "onward"]
    subprocess.run([*onward, "start", "flows:stuck", "--id", "stuck"], cwd=tmp_path, env=env, check=True, timeout=60)
    with support.running([*onward, "worker", "flows", "--grace", "0s"], tmp_path, env=env) as worker:
        worker.says("it begins")
        worker.send(signal.SIGTERM)
        assert worker.wait() == 0
        assert "leaving without them" in worker.log
    shown = subprocess.run(
        [*onward, "show", "stuck", "--json"], cwd=tmp_path, env=env, capture_output=True, check=True, timeout=60
    )
    assert json.loads(shown.stdout)["status"] == "pending"

"""`onward worker --health`: the probes of a real process, and what strangers can send to them."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from onward import WorkerHealth
from onward.cli import health
from onward.cli.health import HealthServer
from onward.cli.settings import Failure
from tests.cli.conftest import Cli
from tests.cli.processes import DEADLINE_S, Process, Start, until, wait_for_file

WELL = WorkerHealth(is_live=True, is_ready=True, problems=(), worker_id="id", name="n", slots=200, used=3)


class Probes:
    """The probes of one address."""

    def __init__(self, url: str) -> None:
        found = re.fullmatch(r"http://\[?([^\]]+?)\]?:(\d+)", url)
        assert found is not None, url
        self.host, self.port = found[1], int(found[2])

    def ask(self, path: str, method: str = "GET") -> tuple[int, Any]:
        """The status, and the body: JSON decoded where it is some."""
        connection = HTTPConnection(self.host, self.port, timeout=DEADLINE_S)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            body = answer.read()
            is_json = answer.headers["Content-Type"] == "application/json"
            return answer.status, json.loads(body) if is_json and body else body
        finally:
            connection.close()

    def until(self, path: str, status: int) -> Any:
        """The body, as soon as the probe answers with this status."""
        answers: list[Any] = []

        def look() -> bool:
            found, body = self.ask(path)
            answers.append(body)
            return found == status

        until(look, f"{path} answers {status}")
        return answers[-1]

    def send(self, raw: bytes) -> bytes:
        """All that comes back for these bytes."""
        with socket.create_connection((self.host, self.port), DEADLINE_S) as conn:
            conn.sendall(raw)
            with contextlib.suppress(ConnectionResetError):
                return b"".join(iter(lambda: conn.recv(65536), b""))
        return b""


def probes_of(worker: Process) -> Probes:
    line = worker.until("health: ")
    found = re.fullmatch(r"health: (http://\S+)/live (http://\S+)/ready\n", line)
    assert found is not None, line
    assert found[1] == found[2]
    return Probes(found[1])


# ------------------------------------------------------------------ a real worker


def test_a_working_worker_is_live_and_ready_and_says_what_it_holds(
    cli: Cli, flows: str, tmp_path: Path, start_worker: Start
) -> None:
    cli("start", f"{flows}:taking", "[60]")
    worker = start_worker(flows, "--health", "0", "--slots", "7", "--name", "mine", "--grace", "10ms")
    probes = probes_of(worker)
    wait_for_file(tmp_path / "began", worker)
    status, body = probes.ask("/ready")
    assert status == 200
    assert body.pop("worker")
    assert body == {"live": True, "ready": True, "problems": [], "name": "mine", "slots": 7, "used": 1}
    assert probes.ask("/live?verbose=1")[0] == 200
    worker.process.send_signal(signal.SIGTERM)
    assert worker.wait() == 0
    with pytest.raises(ConnectionRefusedError):
        probes.ask("/live")


def test_a_stopping_worker_is_live_and_not_ready(cli: Cli, flows: str, tmp_path: Path, start_worker: Start) -> None:
    cli("start", f"{flows}:taking", "[600]")
    worker = start_worker(flows, "--health", "127.0.0.1:0", "--grace", "10m")
    probes = probes_of(worker)
    wait_for_file(tmp_path / "began", worker)
    worker.process.send_signal(signal.SIGTERM)
    worker.until("stopping")
    assert probes.until("/ready", 503)["problems"] == ["stopping"]
    assert probes.ask("/live")[0] == 200
    worker.process.kill()


def test_a_worker_whose_loop_is_blocked_answers_that_it_is_not_live(
    cli: Cli, flows: str, tmp_path: Path, start_worker: Start
) -> None:
    worker = start_worker(flows, "--health", "0", "--lease", "2s")
    probes = probes_of(worker)
    probes.until("/ready", 200)
    cli("start", f"{flows}:blocking")
    wait_for_file(tmp_path / "began", worker)
    assert probes.until("/live", 503)["problems"][0].startswith("the event loop has not turned for ")
    assert probes.ask("/ready")[0] == 503


def test_a_port_in_use_is_one_line_and_2_and_nothing_is_made(cli: Cli, flows: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        result = cli("worker", flows, "--health", place)
    assert result.exit_code == 2
    assert result.stderr == f"error: --health cannot listen on {place}: Address already in use; name another place\n"
    assert not (tmp_path / "onward.db").exists()


@pytest.mark.parametrize("place", ["http", "host:", "1.2.3.4", "127.0.0.1:99999", "a:b:1", "-1"])
def test_what_is_no_address_is_a_usage_error(cli: Cli, flows: str, tmp_path: Path, place: str) -> None:
    result = cli("worker", flows, f"--health={place}")
    assert result.exit_code == 2
    assert "HOST:PORT" in result.stderr
    assert not (tmp_path / "onward.db").exists()


def test_with_log_format_json_the_address_is_a_field(flows: str, start_worker: Start) -> None:
    worker = start_worker(flows, "--log-format", "json", "--health", "0")
    first = json.loads(worker.until("worker starts"))
    assert Probes(first["health"]).ask("/live")[0] == 200


# ------------------------------------------------------------------ the server


@pytest.fixture
def served() -> Iterator[tuple[Probes, Callable[[WorkerHealth], None]]]:
    """A server of the health that the test sets."""
    now = [WELL]
    with HealthServer(("127.0.0.1", 0), lambda: now[0]) as server:
        yield Probes(server.url), lambda new: now.__setitem__(0, new)
    assert not any(thread.name == "onward-health" for thread in threading.enumerate())


Served = tuple[Probes, Callable[[WorkerHealth], None]]


@pytest.mark.parametrize(
    ("is_live", "is_ready", "live", "ready"),
    [(True, True, 200, 200), (True, False, 200, 503), (False, False, 503, 503)],
)
def test_each_probe_answers_for_itself(served: Served, is_live: bool, is_ready: bool, live: int, ready: int) -> None:
    probes, become = served
    become(replace(WELL, is_live=is_live, is_ready=is_ready))
    assert (probes.ask("/live")[0], probes.ask("/ready")[0]) == (live, ready)


def test_head_has_no_body_and_other_paths_and_methods_are_refused(served: Served) -> None:
    probes, _ = served
    assert probes.ask("/ready", "HEAD") == (200, b"")
    assert probes.ask("/") == (404, {"paths": ["/live", "/ready"]})
    assert probes.ask("/live/../../etc/passwd")[0] == 404
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert probes.ask("/live", method)[0] == 405
    assert b"Allow: GET, HEAD\r\n" in probes.send(b"DELETE /live HTTP/1.1\r\n\r\n")


@pytest.mark.parametrize(
    "raw", [b"hello\r\n\r\n", b"GET /live\r\n\r\n", b"get /live HTTP/1.1\r\n\r\n", b"\x16\x03\x01\r\n\r\n", b"\r\n\r\n"]
)
def test_what_is_no_request_is_400(served: Served, raw: bytes) -> None:
    assert served[0].send(raw).startswith(b"HTTP/1.1 400 ")


def test_a_head_without_end_is_cut_off_and_others_are_still_served(served: Served) -> None:
    probes, _ = served
    answer = probes.send(b"GET /live HTTP/1.1\r\nX: " + b"a" * 100_000)
    assert answer in (b"", answer) and (not answer or answer.startswith(b"HTTP/1.1 431 "))
    assert probes.ask("/live")[0] == 200


def test_a_client_that_says_nothing_is_let_go(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "PATIENCE_S", 0.05)
    probes, _ = served
    with socket.create_connection((probes.host, probes.port), DEADLINE_S) as silent:
        with contextlib.suppress(ConnectionResetError):
            assert silent.recv(1) == b""
        assert probes.ask("/live")[0] == 200


def test_more_connections_than_are_allowed_are_closed(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "MOST_CONNECTIONS", 3)
    monkeypatch.setattr(health, "PATIENCE_S", 600.0)
    probes, _ = served
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_connection((probes.host, probes.port))) for _ in range(3)]
        for one in held:
            one.sendall(b"GET ")
        assert until(lambda: probes.send(b"GET /live HTTP/1.1\r\n\r\n") == b"", "it is full")
    assert until(lambda: b" 200 OK" in probes.send(b"GET /live HTTP/1.1\r\n\r\n"), "there is room again")


def test_it_ends_at_once_even_with_a_client_connected() -> None:
    with HealthServer(("127.0.0.1", 0), lambda: WELL) as server:
        probes = Probes(server.url)
        silent = socket.create_connection((probes.host, probes.port))
        assert probes.ask("/live")[0] == 200
    silent.close()
    assert not any(thread.name == "onward-health" for thread in threading.enumerate())


def test_ipv6_has_its_brackets() -> None:
    try:
        server = HealthServer(("::1", 0), lambda: WELL)
    except Failure:
        pytest.skip("this machine has no IPv6")
    with server:
        assert server.url.startswith("http://[::1]:")
        assert Probes(server.url).ask("/ready")[0] == 200

"""The examples' workflows in the testing kit, as their users would test their own: time leaps, mails are stubbed, workers die."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType

import pytest

from onward.testing import Environment

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def load(name: str) -> ModuleType:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def hello() -> Iterator[ModuleType]:
    yield load("hello")
    del sys.modules["hello"]


@pytest.fixture
def welcome(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    pytest.importorskip("aiosmtpd")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield load("welcome_sequence")
    for name in ("welcome_sequence", "_database"):
        sys.modules.pop(name, None)


def test_the_countdown_says_each_number_once_a_second(hello: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with Environment() as env:
        begun = env.now
        assert env.run(hello.countdown, 3) == "Lift-off!"
        assert capsys.readouterr().out.splitlines() == ["3 …", "2 …", "1 …", "Lift-off!"]
        assert [(call.at - begun).total_seconds() for call in env.calls(hello.say)] == [0, 1, 2, 3]


def test_no_crash_makes_the_countdown_end_otherwise(hello: ModuleType) -> None:
    with Environment() as env:
        report = env.crash_everywhere(hello.countdown, 2)
        assert report.value == "Lift-off!"
        assert set(report.repeated) == {"say", "say#2", "say#3"}


def test_the_welcome_sequence_waits_three_days_between_its_two_mails(welcome: ModuleType) -> None:
    pause = timedelta(days=3)
    with Environment() as env:
        stub = env.stub(welcome.send_email, side_effect=lambda address, template: template)
        assert env.run(welcome.welcome_sequence, "ada@example.com", pause.total_seconds()) == ["welcome", "follow-up"]
        assert stub.calls[1].at - stub.calls[0].at == pause
        assert [call.arguments["address"] for call in stub.calls] == ["ada@example.com"] * 2


def test_a_mail_that_is_sent_again_after_a_crash_has_the_same_message_id(welcome: ModuleType) -> None:
    with Environment() as env:
        env.stub(welcome.send_email, returns="sent")
        env.crash_during(welcome.send_email)
        env.run(welcome.welcome_sequence, "ada@example.com", 60.0)
        keys = [call.idempotency_key for call in env.calls(welcome.send_email)]
        assert keys == [keys[0], keys[0], "welcome_sequence-1/send_email#2"]


def test_a_mail_server_that_is_away_is_tried_four_times(welcome: ModuleType) -> None:
    with Environment() as env:
        stub = env.stub(welcome.send_email, side_effect=[OSError("away"), OSError("away"), OSError("away"), "a", "b"])
        assert env.run(welcome.welcome_sequence, "ada@example.com", 60.0) == ["a", "b"]
        assert [call.try_number for call in stub.calls] == [1, 2, 3, 4, 1]


def test_no_crash_makes_the_welcome_sequence_end_otherwise(welcome: ModuleType) -> None:
    with Environment() as env:
        env.stub(welcome.send_email, side_effect=lambda address, template: template)
        assert env.crash_everywhere(welcome.welcome_sequence, "ada@example.com", 3600.0).value == [
            "welcome",
            "follow-up",
        ]

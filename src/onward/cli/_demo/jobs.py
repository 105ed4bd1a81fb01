"""The four systems of `onward demo`. One is pipeline.py; three are the scripts of `examples/`, which the wheel carries, each run
in a process of its own, as its reader would run it.

demo.py looks here for names and titles, asks which packages are missing, and lets a script play. What a script's processes make
lies below the folder it is given, or in a schema of its own on a PostgreSQL server.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from onward._store.urls import ENVIRONMENT_VARIABLE

PIPELINE = "pipeline"
PATIENCE_S = 60.0
"""How long a script that is interrupted may take to end its processes and to drop its schema."""
_WEB = ("anthropic", "fastapi", "httpx", "stripe", "uvicorn")


@dataclass(frozen=True, slots=True)
class Job:
    """One system: its source, what happens to it, and the packages it needs beside Onward's own."""

    source: Path
    title: str
    packages: tuple[str, ...] = ()

    def lacks(self) -> list[str]:
        """The packages that are not installed."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]


def _examples() -> Path:
    """In the wheel they lie beside this file, in a checkout at its root."""
    packed = Path(__file__).with_name("examples")
    return packed if packed.is_dir() else Path(__file__).parents[4] / "examples"


JOBS: Mapping[str, Job] = MappingProxyType(
    {
        PIPELINE: Job(
            Path(__file__).with_name("pipeline.py"),
            "documents are classified and loaded into a table; the worker dies with one in its hands",
        ),
        "welcome": Job(
            _examples() / "welcome_sequence.py",
            "a mail now and one three days later; the worker dies in between",
            ("aiosmtpd",),
        ),
        "webhook": Job(
            _examples() / "webhook.py",
            "Stripe delivers one event three times; the web server dies while it fulfils the order",
            _WEB,
        ),
        "ai": Job(
            _examples() / "ai_pipeline.py",
            "three calls of a language model, followed on a page; the worker dies in the middle of an answer",
            _WEB,
        ),
    }
)
"""By name, in the order in which they play."""


def play_script(job: Job, *, url: str, folder: Path, keep: bool) -> int:
    """Run a script to its end; gives its exit code. Without a `url` of PostgreSQL it makes an SQLite file below `folder`; `keep`
    tells it to leave its schema. An interrupt ends all its processes first, and lets it drop its schema."""
    environment = {**os.environ, ENVIRONMENT_VARIABLE: url, "TMPDIR": str(folder), "KEEP": "1" if keep else ""}
    command = [sys.executable, "-P", "-m", "onward.cli._demo.script", str(job.source)]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        return process.wait()
    except BaseException:
        _interrupt(process)
        raise


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """What Ctrl-C in a terminal is to a script and to all that it has started: in a session of their own they saw none."""
    _signal(process, signal.SIGINT)
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        _signal(process, getattr(signal, "SIGKILL", signal.SIGTERM))
        process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
    else:
        process.terminate()

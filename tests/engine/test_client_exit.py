"""A `Client` that nobody closes: it leaves nothing behind when it is dropped, and its process ends in silence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, sys, onward
client = onward.Client()
@onward.workflow
async def greet(name: str) -> str:
    return name
client.start(greet.using(id="one"), "Ann")
if "fork" in sys.argv and os.fork() == 0:
    assert client.handle("one").status() == "pending"
    sys.exit(0)
if "fork" in sys.argv:
    assert os.wait()[1] == 0
print(client.handle("one").status())
if "fail" in sys.argv:
    1 / 0
"""


@pytest.mark.parametrize("how", ["", "fork", "fail"])
def test_a_client_that_is_not_closed_says_nothing_at_the_end_of_its_process(how: str, tmp_path: Path) -> None:
    """At the end of a script, in a forked child, and where an error ends it."""
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.stdout == "pending\n"
    complaints = [line for line in ended.stderr.splitlines() if "DeprecationWarning" not in line]
    if how == "fail":
        assert complaints[-1] == "ZeroDivisionError: division by zero"
        assert "Task was destroyed" not in ended.stderr
    else:
        assert complaints == []
    assert ended.returncode == (1 if how == "fail" else 0)


DROPS = """
import gc, threading, time, onward
for _ in range(10):
    onward.Client().counts()
gc.collect()
give_up_at = time.monotonic() + 60
while threading.active_count() > 1 and time.monotonic() < give_up_at:
    time.sleep(0.01)
print(threading.active_count())
for _ in range(3):
    onward.Client().counts()
"""


def test_a_client_that_is_dropped_takes_its_threads_and_connections_along(tmp_path: Path) -> None:
    """One client a request, never closed, does not fill a web server with threads; nor does the end of the process complain."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", DROPS],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    assert (ended.stdout, ended.stderr) == ("1\n", "")

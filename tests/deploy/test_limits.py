"""The numbers of docs/explain-limits.md are those of the code."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import onward
from onward import _options
from onward._codec import arguments, values
from onward._engine import bodies, connection, dispatcher, failures, lease
from onward._engine.replay.loop import DEFAULT_LIMITS
from onward._store import verdicts
from onward._store.sqlite.connection import MINIMUM_VERSION
from onward._store.sqlite.database import BUSY_S
from onward.cli.worker import LEFTOVER_S

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "explain-limits.md").read_text()


def _default(of: Callable[..., object], name: str) -> Any:
    return inspect.signature(of).parameters[name].default


CLAIMS = [
    f"as of November 2026 and version {onward.__version__.rpartition('.')[0]}",
    f"SQLite {'.'.join(map(str, MINIMUM_VERSION[:2]))} or newer",
    f"give up after {connection.PATIENCE_S:.0f} to {connection.PATIENCE_S + BUSY_S:.0f} s",
    f"{values.MAX_BYTES:,} bytes of JSON",
    f"{values.MAX_DEPTH} levels",
    f"{_options.LONGEST} characters",
    f"the first {arguments.ARGUMENTS_SHOWN:,} bytes",
    f"{failures.MAX_TEXT:,} characters",
    f"come to rest within {DEFAULT_LIMITS.seconds:.0f} s",
    f"within {DEFAULT_LIMITS.handles:,} callbacks",
    f"From {lease.STUCK_WARNING_S:.0f} s on the line is logged",
    f"A transactional step on SQLite gets {bodies.TRANSACTION_LIMIT_S:.0f} s",
    f"| executions held at once | {_default(onward.Worker, 'slots')} |",
    f"| `def` bodies at once | {_default(onward.Worker, 'threads')} |",
    f"one of the worker's {_default(onward.Worker, 'threads')} threads",
    f"| {_default(onward.Worker, 'lease'):.0f} s after its last renewal | `--lease`, at least 2 s |",
    f"| {_default(onward.Worker, 'grace'):.0f} s, and up to {dispatcher.STOP_PATIENCE_S + LEFTOVER_S:.0f} s more",
    f"until it is run alone | {verdicts.QUARANTINE_CRASHES} |",
    f"until it is failed | {verdicts.CRASH_LIMIT} |",
    f"| attempts of a workflow | {_default(onward.workflow, 'max_attempts')} |",
]


@pytest.mark.parametrize("claim", CLAIMS)
def test_the_page_says_what_the_code_does(claim: str) -> None:
    """Word for word; whoever changes the code finds the page by this."""
    assert claim in PAGE

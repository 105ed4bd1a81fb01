"""What to say when code and history disagree, and which recorded errors are in an error that escapes.

Called by matching.py, once an execution is lost; builds texts and walks exceptions, changes nothing.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from onward._engine.replay.private import waits_for
from onward._engine.replay.where import location
from onward._store.records import Entry
from onward.errors import NonDeterminismError

if TYPE_CHECKING:
    from onward._engine.replay.matching import Execution

_CURE = "run code that fits the history, or guard the change with onward.patched('...') or a new name"


def not_called(execution: Execution, entry: Entry) -> NonDeterminismError:
    """An entry for whose key nothing is outstanding."""
    wait = next((w for w in execution.outstanding.values() if w.kind == entry.kind), None)
    wait = wait or next(iter(execution.outstanding.values()), None)
    others = ", ".join(f"{w.kind} {w.key!r}" for w in list(execution.outstanding.values())[:5])
    called = f"waits for {others}" if others else "waits for nothing"
    return _error(execution, entry, wait, f"the code did not call it; it {called}", called)


def other_kind(execution: Execution, entry: Entry, wait: Any) -> NonDeterminismError:
    """An entry whose key is outstanding as something else."""
    called = _called(wait)
    return _error(execution, entry, wait, f"the code called {called}", called)


def other_arguments(execution: Execution, entry: Entry, wait: Any) -> NonDeterminismError:
    """An entry of a call with other arguments."""
    called = _called(wait)
    return _error(execution, entry, wait, f"the code called {called}", called)


def ended_early(execution: Execution, entry: Entry) -> NonDeterminismError:
    """History is left where the workflow function has ended."""
    called = f"ended ({type(execution.ending).__name__.lower()})"
    error = getattr(execution.ending, "error", None)
    if error is not None:
        called = f"ended (raised {error!r})"
    return _error(execution, entry, None, f"the code {called} before it", called)


def _called(wait: Any) -> str:
    text = getattr(getattr(wait, "call", None), "arguments", None)
    return f"{wait.kind} {wait.key!r}" + (f" with {text}" if text else "")


def _error(execution: Execution, entry: Entry, wait: Any, what: str, called: str) -> NonDeterminismError:
    place = place_of(execution, wait)
    recorded = f"{entry.kind} {entry.key!r}" + (f" with {entry.arguments}" if entry.arguments else "")
    text = (
        f"workflow {execution.workflow_id!r} ({execution.spec.name}): the history has {recorded} at entry {entry.seq}, but {what}"
        f"{f', at {place}' if place else ''}; {_CURE}"
    )
    for remark in _versions(execution):
        text += f"; {remark}"
    return NonDeterminismError(text, key=entry.key, recorded=recorded, called=called, location=place, seq=entry.seq)


def place_of(execution: Execution, wait: Any) -> str:
    """`file:line` at which the code awaits this, else where its first unfinished task stands."""
    tasks = [task for task in execution.loop.tasks if not task.done()]
    for task in tasks:
        if wait is not None and waits_for(task) is wait and (place := location(task.get_coro())):
            return place
    return next((place for task in tasks if (place := location(task.get_coro()))), "")


def _versions(execution: Execution) -> list[str]:
    remarks = []
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    recorded = (execution.recorded_version or "").rpartition("/")[2]
    if recorded and recorded != python:
        remarks.append(f"it began under Python {recorded}, this is {python}, whose asyncio may order things otherwise")
    was, is_now = execution.recorded_code_version, execution.code_version
    if was and was != is_now:
        remarks.append(f"it began under code version {was!r}, this is {is_now!r}")
    return remarks


def recorded_in(error: BaseException) -> tuple[int, ...]:
    """The seqs of the recorded errors that this one is, wraps (cause or context) or groups; by identity."""
    found: set[int] = set()
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        item = todo.pop()
        if item is None or id(item) in seen:
            continue
        seen.add(id(item))
        seq = item.__dict__.get("__onward_seq__")
        if seq is not None:
            found.add(seq)
        todo += (item.__cause__, item.__context__)
        if isinstance(item, BaseExceptionGroup):
            todo += item.exceptions
    return tuple(sorted(found))

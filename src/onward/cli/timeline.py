"""The text of `onward show`: facts, the reason of a wait, the journal as a timeline, the children. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import click

from onward._store.quantities import span
from onward._store.records import WorkerInfo
from onward.cli.settings import one_line
from onward.cli.words import cut, error_line, instant, json_line, relative, state
from onward.info import JournalEntry, Wait, WorkflowInfo, moment

COLOURS = {
    "completed": "green",
    "failed": "red",
    "cancelled": "yellow",
    "running": "cyan",
    "waiting": "magenta",
    "pending": "blue",
}
UNCLAIMED = timedelta(seconds=3)
"""A row that has been due for longer than this is probably served by no worker."""
FACT = 2000
"""Characters shown of arguments, result and error, unless --full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """All that is shown."""

    info: WorkflowInfo
    journal: tuple[JournalEntry, ...]
    children: tuple[WorkflowInfo, ...]
    workers: tuple[WorkerInfo, ...]
    now: datetime


def lines(picture: Picture, *, width: int | None) -> Iterator[str]:
    """The lines; `width` is that of the screen, None cuts nothing and shows tracebacks."""
    info = picture.info
    yield f"{click.style(one_line(info.type), bold=True)} {info.id}"
    for name, text in _facts(picture, None if width is None else FACT):
        yield f"  {name:<10} {text}"
    if width is None and info.error is not None and info.error.traceback:
        yield from _indented(info.error.traceback)
    yield ""
    yield from _journal(picture, width)
    if picture.children:
        yield ""
        yield f"children ({len(picture.children)})"
        for child in picture.children:
            yield f"  {child.id}  {_coloured(child, state(child, picture.now))}"


# ------------------------------------------------------------------ facts


def _facts(picture: Picture, limit: int | None) -> Iterator[tuple[str, str]]:
    info, now = picture.info, picture.now
    yield "state", _coloured(info, state(info, now))
    for reason in _reasons(picture):
        yield "", reason
    if info.progress is not None:
        yield "progress", json_line(info.progress, limit)
    yield "arguments", json_line(info.arguments, limit)
    if info.result is not None or info.status == "completed":
        yield "result", json_line(info.result, limit)
    if info.error is not None and (info.status, info.error.message) != ("cancelled", "cancelled"):
        name, colour = {"failed": ("error", "red"), "cancelled": ("reason", "yellow")}.get(
            info.status, ("last error", "red")
        )
        yield name, click.style(error_line(info.error, limit), fg=colour)
    yield "created", f"{instant(info.created_at)} ({relative(info.created_at, now)})"
    if info.started_at is not None:
        waited = (info.started_at - info.created_at).total_seconds()
        yield "started", f"{instant(info.started_at)} ({span(waited)} later)"
    if info.finished_at is not None:
        took = (info.finished_at - (info.started_at or info.created_at)).total_seconds()
        yield "ended", f"{instant(info.finished_at)} (after {span(took)})"
    if info.deadline is not None and info.finished_at is None:
        yield "time limit", f"{instant(info.deadline)} ({relative(info.deadline, now)})"
    if info.attempts or info.crashes:
        crashes = f", {info.crashes} crashed workers" if info.crashes else ""
        yield "attempts", f"{info.attempts} of {info.max_attempts} failed{crashes}"
    options = [f"queue {one_line(info.queue)}"]
    if info.partition is not None:
        options.append(f"partition {one_line(info.partition)}")
    if info.priority:
        options.append(f"priority {info.priority}")
    yield "queue", ", ".join(options).removeprefix("queue ")
    if info.tags:
        yield "tags", " ".join(one_line(f"{name}={value}") for name, value in info.tags.items())
    if info.parent_id is not None:
        yield "parent", info.parent_id


def _reasons(picture: Picture) -> Iterator[str]:
    """Why it does not go on now, and what would make it."""
    info, now = picture.info, picture.now
    waits = info.waiting_for
    if len(waits) != 1 or waits[0].kind not in ("timer", "child"):  # a lone one is in the state already
        for wait in waits:
            yield _reason(info, wait, now)
    if info.cancel_requested_at is not None and info.finished_at is None:
        yield f"cancel was requested {relative(info.cancel_requested_at, now)}"
    match info.status:
        case "running":
            worker = next((worker for worker in picture.workers if worker.id == info.worker), None)
            yield _held_by(info, worker, now)
        case "failed":
            yield f"to run it again from where it failed: onward retry {info.id}"
        case "pending" if info.error is not None or any(wait.kind == "retry" for wait in waits):
            yield f"to try it now: onward retry {info.id}"
    if info.next_run_at is not None and now - info.next_run_at > UNCLAIMED:
        yield _unclaimed(picture, now - info.next_run_at)


def _held_by(info: WorkflowInfo, worker: WorkerInfo | None, now: datetime) -> str:
    if worker is None:
        return f"on worker {info.worker}, which is gone: the next running worker takes it over"
    if worker.is_dead or moment(worker.expires_at) <= now:
        since = instant(moment(worker.expires_at))
        return f"on worker {worker.name}, whose lease ended at {since}: the next running worker takes it over"
    return f"on worker {worker.name}"


def _reason(info: WorkflowInfo, wait: Wait, now: datetime) -> str:
    until = f" until {instant(wait.until)} ({relative(wait.until, now)})" if wait.until is not None else ""
    key = one_line(wait.key)
    match wait.kind:
        case "timer":
            return f"timer {key}{until}"
        case "signal":
            return f"waits for signal {one_line(wait.name)}{until}: onward signal {info.id} {one_line(wait.name)} JSON"
        case "child":
            return f"waits for workflow {wait.name or key}{until}"
        case "retry":
            again = f"step {key} is tried again{until.replace(' until', ' at')}"
            return f"{again}; try {wait.tries} failed: {one_line(wait.error)}" if wait.error else again
        case _:
            return f"{wait.kind} {key}{until}"


def _unclaimed(picture: Picture, late: timedelta) -> str:
    info = picture.info
    alive = [w for w in picture.workers if not w.is_dead and moment(w.expires_at) > picture.now]
    since = f"due for {span(late.total_seconds())}"
    if not alive:
        return f"{since}, but no worker is running: onward worker MODULE"
    if not any(info.queue in w.queues for w in alive):
        return f"{since}, but no running worker serves queue {info.queue!r}: onward worker MODULE --queue {info.queue}"
    if not any(info.type in w.types and info.queue in w.queues for w in alive):
        return f"{since}, but no running worker has workflow {info.type!r}"
    return f"{since}; the workers are busy"


# ------------------------------------------------------------------ journal


def _journal(picture: Picture, width: int | None) -> Iterator[str]:
    journal = picture.journal
    if not journal:
        yield "journal: nothing recorded yet"
        return
    origin = picture.info.started_at or picture.info.created_at
    yield f"journal ({len(journal)})"
    rows = [_cells(entry, origin) for entry in journal]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    limit = None if width is None else max(width - sum(widths) - 10, 30)
    for entry, row in zip(journal, rows, strict=True):
        number, at, took = (cell.rjust(size) for cell, size in zip(row[:3], widths[:3], strict=True))
        text = f"  {number}  {at}  {took}  {row[3]:<{widths[3]}}  {cut(row[4], limit)}".rstrip()
        if entry.struck:
            text = click.style(text, dim=True)
        elif entry.error is not None:
            text = click.style(text, fg="red")
        yield text
        if width is None and entry.error is not None and entry.error.traceback:
            yield from _indented(entry.error.traceback)


def _cells(entry: JournalEntry, origin: datetime) -> tuple[str, str, str, str, str]:
    """Number, time since the start, duration, what, and how it ended."""
    at = (entry.finished_at - origin).total_seconds()
    took = span((entry.finished_at - entry.started_at).total_seconds()) if entry.started_at is not None else ""
    kind = "" if entry.key == entry.kind or entry.key.startswith((f"{entry.kind}:", entry.kind)) else f"{entry.kind} "
    notes = []
    if entry.struck:
        notes.append("[struck out, tried again]")
    if entry.tries > 1:
        notes.append(f"[{entry.tries} tries]")
    notes.append(_outcome(entry))
    return str(entry.seq), f"+{span(max(at, 0))}", took, one_line(f"{kind}{entry.key}"), " ".join(filter(None, notes))


def _outcome(entry: JournalEntry) -> str:
    if entry.error is not None:
        return f"! {error_line(entry.error)}"
    match entry.kind:
        case "step":
            arguments = one_line(entry.arguments) if entry.arguments else ""
            return f"{arguments} -> {json_line(entry.result)}"
        case "child" | "signal":
            return f"-> {json_line(entry.result)}"
        case "attempt":
            moved = entry.result / 1e6 if isinstance(entry.result, int) else 0
            return f"an attempt failed; the next one after {span(moved)}"
        case "timer":
            return "fired"
        case "cancel":
            return "cancel was requested"
        case "timeout":
            return "the workflow's time limit passed"
        case "start":
            return "child started"
        case "patch":
            return "marked"
        case _:  # spoiled by hand
            return json_line(entry.result)


def _indented(text: str) -> Iterator[str]:
    for line in text.splitlines():
        yield f"      {one_line(line) if not line.isprintable() else line}"


def _coloured(info: WorkflowInfo, text: str) -> str:
    return click.style(text, fg=COLOURS[info.status])

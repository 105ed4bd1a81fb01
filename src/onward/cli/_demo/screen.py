"""What the demo shows while it runs: a progress bar on a terminal (rich where installed), a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from typing import Any, Protocol

import click

LINES = 6
"""How many progress lines one worker prints where there is no terminal."""


class Bar(Protocol):
    """A bar that is told how far the work has come, and lets a line be printed above it."""

    def reach(self, count: int) -> None:
        """Show `count` of the total."""
        ...

    def say(self, text: str) -> None:
        """Print a line."""
        ...


class _Lines:
    """No terminal: plain lines, some of them about the progress."""

    def __init__(self, label: str, total: int, start: int) -> None:
        self._label = label
        self._total = total
        self._every = max(1, total // LINES)
        self._shown = start

    def reach(self, count: int) -> None:
        if count // self._every > self._shown // self._every or (count == self._total > self._shown):
            self.say(f"  {self._label}: {count} of {self._total} items")
            self._shown = count

    def say(self, text: str) -> None:
        click.echo(text)


class _ClickBar:
    """click's own bar."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def reach(self, count: int) -> None:
        self._bar.update(count - self._bar.pos)

    def say(self, text: str) -> None:
        click.echo(f"\r\033[2K{text}")
        self._bar.render_progress()


class _RichBar:
    """rich's bar."""

    def __init__(self, progress: Any, task: Any) -> None:
        self._progress = progress
        self._task = task

    def reach(self, count: int) -> None:
        self._progress.update(self._task, completed=count)

    def say(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)


@contextlib.contextmanager
def bar(label: str, total: int, start: int = 0) -> Iterator[Bar]:
    """A progress bar named `label` that begins at `start`."""
    if not sys.stdout.isatty():
        yield _Lines(label, total, start)
        return
    if importlib.util.find_spec("rich") is None:
        with click.progressbar(length=total, label=f"  {label}", show_pos=True, show_eta=False) as drawn:
            drawn.update(start)
            yield _ClickBar(drawn)
        return
    rich = importlib.import_module("rich.progress")
    columns = (
        rich.TextColumn("  {task.description}"),
        rich.BarColumn(40),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
    )
    with rich.Progress(*columns) as progress:
        yield _RichBar(progress, progress.add_task(label, total=total, completed=start))

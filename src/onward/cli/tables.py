"""Tables on a terminal, by rich. The only file that imports it; loaded by `ls.print_table` where it is installed."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

STYLES = {
    "completed": "green",
    "failed": "bold red",
    "cancelled": "yellow",
    "running": "bold cyan",
    "waiting": "magenta",
    "pending": "blue",
}


def print_rich(
    columns: Sequence[str], rows: Sequence[Sequence[str]], statuses: Sequence[str], console: Console | None = None
) -> None:
    """Print rows; the third column is coloured by status. Ids are never cut, since people copy them."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(columns):
        table.add_column(name, no_wrap=index == 0, overflow="fold")
    for row, status in zip(rows, statuses, strict=True):
        cells = [Text(cell) for cell in row]
        cells[2].stylize(STYLES.get(status, ""))
        table.add_row(*cells)
    (console or Console()).print(table)

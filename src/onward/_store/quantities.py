"""Lengths of time and sizes as people read them. Pure; for messages, findings and the command line."""

from __future__ import annotations


def span(seconds: float) -> str:
    """A length of time in at most two units.

    >>> span(0.0123), span(3.25), span(75), span(7260), span(273600)
    ('12 ms', '3.2 s', '1 min 15 s', '2 h 1 min', '3 d 4 h')
    """
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, small, small_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if round(whole / small) * small >= size:
            whole = round(whole / small) * small
            rest = whole % size // small
            return f"{whole // size} {unit}" + (f" {rest} {small_unit}" if rest else "")
    return f"{whole} s"


def size(count: float) -> str:
    """A number of bytes.

    >>> size(0), size(999), size(4096), size(25_400_000), size(3_000_000_000)
    ('0 B', '999 B', '4.1 kB', '25 MB', '3.0 GB')
    """
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.5:
            return f"{count:.1f} {unit}" if count < 9.95 else f"{count:.0f} {unit}"
    return f"{count / 1000:.1f} TB"


def counted(count: int, noun: str) -> str:
    """A count and its noun.

    >>> counted(1, "workflow"), counted(12000, "workflow"), counted(2, "process")
    ('1 workflow', '12,000 workflows', '2 processes')
    """
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"

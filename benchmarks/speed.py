"""How fast the machine is just now: the time of a fixed piece of Python, taken before each run.

A shared machine changes its speed within minutes, and for what needs the processor's caches by far more than for what waits for
the disk. The page says how far that went, so that ratios between the two kinds can be read for what they are.
"""

from __future__ import annotations

import time

TURNS = 300_000


def loop_ms() -> float:
    """Processor time of the fixed loop, in milliseconds: the least of three, so that a switch of processes does not count."""
    return min(_once() for _ in range(3)) * 1e3


def _once() -> float:
    began = time.thread_time()
    kept: dict[int, tuple[int, str]] = {}
    for turn in range(TURNS):
        kept[turn & 1023] = (turn, str(turn))
    return time.thread_time() - began

"""Where the testing kit takes hold of a worker. A worker in production has no seams, and every one of them is then a
comparison with None.

`onward.testing` makes a `Seams` for each life of its worker. With seams nothing depends on how fast the machine is: waits
are never sat out in memory, a parent is woken by each of its children at once, and a loop that does not turn is no news.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onward._engine.specs import StepSpec, WorkflowSpec
from onward._store.base import Store
from onward.errors import NonDeterminismError


@dataclass(frozen=True, slots=True, kw_only=True)
class Seams:
    """What the kit is asked, and told."""

    seed: int
    """Of the jitter in back-offs."""
    probe: Callable[[str], None]
    """Passed by the store at its commits, as in `_engine/failpoints.py`; what it raises ends that write."""
    wrap_store: Callable[[Store], Store]
    """Gives the store that the worker is to use."""
    step: Callable[[StepSpec], StepSpec]
    """What runs in place of a step; asked each time that one begins."""
    workflow: Callable[[WorkflowSpec], WorkflowSpec]
    """What runs in place of a workflow; asked at each claim."""
    mismatched: Callable[[str, NonDeterminismError | str], None]
    """A workflow's replay from its journal does not agree with its execution: its id, and how."""
    rested: Callable[[], None]
    """The worker has nothing to do now but to wait for a hint, for a body, or for the time."""

"""Test workflows in milliseconds: an environment in which time makes leaps, steps can be stubbed and workers crash on demand.

Everything public is here; docs/howto-testing.md shows it at work. Names load their modules at first use: pytest imports this
package for its plugin, in every project where Onward is installed, and must not become slower for that.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onward.testing._blocking import BlockingEnvironment
    from onward.testing._doubles import StepCall
    from onward.testing._environment import Environment
    from onward.testing._errors import Deadlock, OutcomeChanged, OutOfPatience
    from onward.testing._everywhere import CrashReport, CrashRound
    from onward.testing._faults import CLIENT_POINTS, POINTS, Crashed, PlannedFault
    from onward.testing._replaying import Replayed, replay
    from onward.testing._stubs import Stub

__all__ = [
    "CLIENT_POINTS",
    "POINTS",
    "BlockingEnvironment",
    "CrashReport",
    "CrashRound",
    "Crashed",
    "Deadlock",
    "Environment",
    "OutOfPatience",
    "OutcomeChanged",
    "PlannedFault",
    "Replayed",
    "StepCall",
    "Stub",
    "replay",
]

_HOMES = {
    "BlockingEnvironment": "_blocking",
    "CLIENT_POINTS": "_faults",
    "CrashReport": "_everywhere",
    "CrashRound": "_everywhere",
    "Crashed": "_faults",
    "Deadlock": "_errors",
    "Environment": "_environment",
    "OutOfPatience": "_errors",
    "OutcomeChanged": "_errors",
    "POINTS": "_faults",
    "PlannedFault": "_faults",
    "Replayed": "_replaying",
    "StepCall": "_doubles",
    "Stub": "_stubs",
    "replay": "_replaying",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

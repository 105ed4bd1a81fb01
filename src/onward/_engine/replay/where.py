"""Where workflow code stands: `file:line` of a suspended coroutine, for messages.

Called by the replay core only when it has something to complain of; it costs nothing before.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

_ENGINE = Path(__file__).parents[1]
_INTERNAL = (str(Path(asyncio.__file__).parent), str(_ENGINE), str(_ENGINE.parent / "context.py"))


def location(coroutine: Any) -> str:
    """`file:line` of the innermost frame of user code in a suspended coroutine (or async generator); "" if there is none."""
    place = ""
    while coroutine is not None:
        frame = _attribute(coroutine, "cr_frame", "ag_frame", "gi_frame")
        if frame is not None and not frame.f_code.co_filename.startswith(_INTERNAL):
            place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        coroutine = _attribute(coroutine, "cr_await", "ag_await", "gi_yieldfrom")
    return place


def is_finished(coroutine: Any) -> bool:
    """Whether nothing of a coroutine or async generator can run any more."""
    return _attribute(coroutine, "cr_frame", "ag_frame", "gi_frame") is None


def _attribute(value: Any, *names: str) -> Any:
    return next((found for name in names if (found := getattr(value, name, None)) is not None), None)

"""Where the event loop is stuck: read from the frames of its thread by the lease thread, which cannot ask the loop.

Nothing is kept up to date for this while all is well: the workflow, and the user's line, are found on the stack itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from onward._engine.bodies import Body
from onward._engine.runner import Runner

_MACHINERY = tuple(str(Path(module).parent) for module in (__file__, asyncio.__file__))


def describe_block(frame: FrameType | None) -> str:
    """What blocks a loop whose thread is in `frame`: workflow or step if there is one, the user's line, and where that is."""
    if frame is None:
        return "line unknown"
    frames = list(_outwards(frame))
    inner = frames[0]
    users: list[FrameType] = []
    for one in frames:
        if one.f_code.co_filename.startswith(_MACHINERY):
            break
        users.append(one)
    place = _shown(users[-1] if users else inner)
    if users and users[-1] is not inner:
        place += f", at {_shown(inner)}"
    return _subject(frames) + place


def _subject(frames: list[FrameType]) -> str:
    for frame in frames:
        body, runner = frame.f_locals.get("body"), frame.f_locals.get("self")
        if isinstance(body, Body):
            return f"in step {body.command.key} of workflow {body.info.workflow_id}: "
        if isinstance(runner, Runner):
            return f"in workflow {runner.row.id}: "
    return ""


def _shown(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"


def _outwards(frame: FrameType) -> Iterator[FrameType]:
    at: FrameType | None = frame
    while at is not None:
        yield at
        at = at.f_back

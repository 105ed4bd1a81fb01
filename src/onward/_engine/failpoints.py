"""Places at which the fault suite kills this very process with SIGKILL, or counts that they were reached.

Armed only by the environment variable ``ONWARD_FAILPOINT`` (read when a worker starts): ``NAME`` or ``NAME@N`` kills at the
N-th time that point is reached, ``*@N`` at the N-th point of any name. Unarmed, `hit` is one comparison. Never used to
decide anything else.
"""

from __future__ import annotations

import os
import signal

_target: str | None = None
_remaining = 0


def arm(setting: str | None) -> None:
    """Take a setting as in the environment variable; None or an empty string disarms."""
    global _target, _remaining
    name, _, count = (setting or "").partition("@")
    _target = name or None
    _remaining = int(count or 1)


def hit(name: str) -> None:
    """Pass the point `name`; the armed one ends the process as a power failure would, with nothing flushed or closed."""
    global _remaining
    if _target is None or _target not in (name, "*"):
        return
    _remaining -= 1
    if _remaining == 0:
        os.kill(os.getpid(), signal.SIGKILL)

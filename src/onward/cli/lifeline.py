"""The line between `onward worker -p N` and each of its worker processes: a socket that the child gets as its stdin.

Down it goes the word to stop; its end, which comes whatever kills the parent, stops the child too. Up goes the worker's health,
once a second, from a thread of its own: also while the event loop is stuck. The word is no signal, so that a service manager
that signals the parent and all its children at once is not taken for one who asks twice.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable
from typing import Self

import msgspec

from onward.health import WorkerHealth

log = logging.getLogger("onward.cli")

VARIABLE = "_ONWARD_LIFELINE"
"""Set for the child alone: its place in the group, as JSON."""
STOP = b"stop\n"
BEAT_S = 1.0
FIRST_BEAT_S = 0.1
"""Until the worker is ready, which the parent waits for."""


class Place(msgspec.Struct, frozen=True):
    """A child's place: its number, from 1, and whether it leaves it to another one to say what is served."""

    number: int
    is_quiet: bool = False


class Lifeline:
    """The child's end.

    Args:
        place: as the parent has said.
        line: the socket.
    """

    def __init__(self, place: Place, line: socket.socket) -> None:
        self.place = place
        self._line = line
        self._lock = threading.Lock()
        self._stop: Callable[[], object] | None = None
        self._look: Callable[[], WorkerHealth] | None = None
        self._leave_after_s = 0.0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._hold, name="onward-lifeline", daemon=True)

    @classmethod
    def inherited(cls) -> Self | None:
        """This process's lifeline, taken from its stdin; None where nobody supervises it. Call it once, before anything of the
        user's runs: what the user's code starts must neither see the variable nor hold the socket."""
        text = os.environ.pop(VARIABLE, None)
        if text is None:
            return None
        try:
            place = msgspec.json.decode(text, type=Place)
            line = socket.socket(fileno=os.dup(0))
        except (msgspec.MsgspecError, OSError):  # a variable that somebody else has set
            return None
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        lifeline = cls(place, line)
        lifeline._thread.start()
        return lifeline

    def attach(self, stop: Callable[[], object], look: Callable[[], WorkerHealth], leave_after_s: float) -> None:
        """There is a worker now. `stop` is called from the lifeline's thread, once; before, a stop ends the process at once.

        `leave_after_s`: if the parent is gone, the process ends so long after `stop`, done or not: nobody else would end it.
        """
        with self._lock:
            self._stop, self._look, self._leave_after_s = stop, look, leave_after_s

    def close(self) -> None:
        """The worker has ended."""
        self._is_over.set()
        with contextlib.suppress(OSError):
            self._line.shutdown(socket.SHUT_RDWR)

    def _hold(self) -> None:
        self._line.settimeout(FIRST_BEAT_S)
        has_stopped = False
        while not self._is_over.is_set():
            try:
                said = self._line.recv(256)
            except TimeoutError:
                self._report()
                continue
            except OSError:
                said = b""
            if self._is_over.is_set():
                return
            if not said:
                self._parent_is_gone()
                return
            if not has_stopped:
                has_stopped = True
                self._stop_worker()

    def _report(self) -> None:
        with self._lock:
            look = self._look
        if look is None:
            return
        health = look()
        with contextlib.suppress(OSError):  # a parent that stands still; when it is gone, the next read says so
            self._line.sendall(msgspec.json.encode(health) + b"\n")
        if health.is_ready:
            self._line.settimeout(BEAT_S)

    def _stop_worker(self) -> None:
        with self._lock:
            stop = self._stop
        if stop is None:
            os._exit(0)
        stop()

    def _parent_is_gone(self) -> None:
        log.warning("the process that supervised this worker is gone; stopping")
        self._stop_worker()
        if not self._is_over.wait(self._leave_after_s):
            log.warning("the worker does not end; leaving without it")
            logging.shutdown()
            os._exit(1)

"""A process that has imported everything and forks fault workers on request: a kill costs milliseconds, not a start of Python.

Run as `python -m tests.faults.forkserver` with its own PYTHONHASHSEED; speaks JSON lines over stdin and stdout (see
processes.py). It starts no loop and no thread itself, so that its forks are clean. When its stdin ends it kills what it forked.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

import msgspec

from tests.faults.faultworker import Job, perform


def main() -> None:
    """Serve requests until stdin ends."""
    children: dict[int, int | None] = {}
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    for line in requests:
        request = msgspec.json.decode(line)
        match request["do"]:
            case "spawn":
                pid = os.fork()
                if pid == 0:
                    requests.close()
                    answers.close()
                    _become(msgspec.convert(request["job"], Job))
                children[pid] = None
                answer: object = pid
            case "poll":
                answer = _poll(children, request["pid"])
            case other:
                raise ValueError(other)
        answers.write(msgspec.json.encode(answer) + b"\n")
    for pid, status in children.items():
        if status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _poll(children: dict[int, int | None], pid: int) -> int | None:
    """How the child ended: its exit code, or minus the signal; None while it lives."""
    if children[pid] is None:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            children[pid] = os.waitstatus_to_exitcode(status)
    return children[pid]


def _become(job: Job) -> None:
    """Turn this fork into the fault worker; never returns."""
    code = 70
    try:
        os.setpgid(0, 0)
        null = os.open(os.devnull, os.O_RDONLY)
        log = os.open(job.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        perform(job)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()

"""`onward worker`: runs the workflows of the given modules until it is told to stop.

The first SIGTERM or SIGINT stops it gracefully (`Worker.stop`); the second leaves at once, with 143 or 130. The handlers are
Python's, not the loop's, so that the second signal is heard even while a workflow blocks the loop. With `-p N` this process
only supervises (supervisor.py), and each worker process comes here again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import signal
import socket
import sys
import threading
from types import FrameType

import click

from onward._store.urls import database_url
from onward.cli.database import announce, checked_url, unusable
from onward.cli.health import HealthServer, address
from onward.cli.lifeline import Lifeline
from onward.cli.loading import all_of, collect
from onward.cli.parameters import duration
from onward.cli.settings import Failure, Settings, common_options, pass_settings
from onward.cli.supervisor import Supervisor, options_again, this_command
from onward.worker import Worker

log = logging.getLogger("onward.cli")

BAD_USAGE = 2
LEFTOVER_S = 5.0
"""What is left in threads after a stop (steps that outlasted the grace, exit handlers) gets so long before the process goes."""


@click.command()
@common_options
@click.argument("modules", metavar="MODULES...", nargs=-1, required=True)
@click.option(
    "--queue", "queues", multiple=True, help="A queue to serve (repeatable, the first ones first).  [default: default]"
)
@click.option(
    "--slots",
    type=click.IntRange(1),
    default=200,
    show_default=True,
    help="Executions held at once; sleeping ones are not held.",
)
@click.option("--threads", type=click.IntRange(1), default=32, show_default=True, help="`def` steps run at once.")
@click.option(
    "--grace",
    type=duration,
    default=30.0,
    metavar="DURATION",
    help="What running steps get to end at a stop.  [default: 30s]",
)
@click.option(
    "--lease",
    type=duration,
    default=15.0,
    metavar="DURATION",
    help="Silence after which it counts as dead.  [default: 15s]",
)
@click.option("--name", help="For people.  [default: host and process id]")
@click.option(
    "-p", "--processes", type=click.IntRange(1, 256), default=1, show_default=True, help="Worker processes, supervised."
)
@click.option(
    "--retention",
    type=duration,
    metavar="DURATION",
    help="Delete workflows that finished longer ago, now and then.  [default: never]",
)
@click.option(
    "--health",
    "health_place",
    type=address,
    metavar="[HOST:]PORT",
    help="Answer the probes GET /live and /ready there.  [host: 127.0.0.1]",
)
@click.option("--code-version", help="What counts as the same code.  [default: a digest of the source files]")
@pass_settings
def worker(
    settings: Settings,
    modules: tuple[str, ...],
    queues: tuple[str, ...],
    slots: int,
    threads: int,
    grace: float,
    lease: float,
    name: str | None,
    processes: int,
    retention: float | None,
    health_place: tuple[str, int] | None,
    code_version: str | None,
) -> None:
    """Run the workflows of some modules.

    MODULES are pkg.mod or file.py. A module-level `lifespan` (an async context manager) is entered before the first
    workflow runs. SIGTERM or Ctrl-C: it claims nothing more, lets running steps end within the grace, and gives the rest
    back. A second signal leaves at once; whatever was running goes on elsewhere.

    With -p N it runs N processes, each with all these options, and starts again whichever ends by itself.
    """
    line = Lifeline.inherited()
    settings.start_logging("info", process=None if line is None else line.place.number)
    if processes > 1 and line is None:
        click.get_current_context().exit(_supervise(settings, modules, processes, name, slots, grace, health_place))
    click.get_current_context().call_on_close(gc.enable)
    gc.disable()  # what is loaded stays; see _tune_process
    workflows, lifespans = collect(modules)
    served = sorted({workflow.name for workflow in workflows})
    queues = queues or ("default",)
    url = checked_url(settings)

    async def work() -> None:
        one = Worker(
            database_url(settings.url),
            workflows=workflows,
            queues=queues,
            slots=slots,
            threads=threads,
            grace=grace,
            lease=lease,
            lifespan=all_of(lifespans),
            name=name,
            code_version=code_version,
            retention=retention,
        )
        as_log = settings.log_format == "json"
        is_quiet = as_log or (line is not None and line.place.is_quiet)
        async with contextlib.AsyncExitStack() as stack:
            probes = None if health_place is None else stack.enter_context(HealthServer(health_place, one.health)).url
            if not is_quiet:
                announce(settings)
            stack.push_async_callback(one._store.close)
            with unusable():
                await one._open()  # whether it can be used is known before anything else begins
            shown = {"workflows": ", ".join(served), "queues": ", ".join(queues)}
            if probes is not None:
                shown["health"] = f"{probes}/live {probes}/ready"
            if as_log:
                extra = {"database": url, "workflows": served, "queues": list(queues), "health": probes}
                log.info("worker starts", extra=extra)
            elif not is_quiet:
                click.echo("\n".join(f"{name}: {text}" for name, text in shown.items()), err=True)
            _stop_on_signals(one)
            if line is not None:
                loop = asyncio.get_running_loop()
                stop = functools.partial(loop.call_soon_threadsafe, one.stop)
                line.attach(stop, one.health, grace + 3 * LEFTOVER_S)
            _tune_process()
            await one.run()
            if line is not None:
                line.close()
            _leave_soon()

    asyncio.run(work())
    log.info("stopped")


def _supervise(
    settings: Settings,
    modules: tuple[str, ...],
    processes: int,
    name: str | None,
    slots: int,
    grace: float,
    health_place: tuple[str, int] | None,
) -> int:
    """Be the parent of so many workers; returns the exit code."""
    if sys.platform == "win32":
        raise Failure("-p needs a Unix; start several workers instead", BAD_USAGE)
    if checked_url(settings).startswith("memory:"):
        raise Failure("memory:// belongs to one process; with -p name a database that several can open", BAD_USAGE)
    group = name or f"{socket.gethostname()}:{os.getpid()}"
    options = options_again(click.get_current_context(), without=("processes", "health_place", "name"))
    options += [f"--log-format={settings.log_format}"] + (
        [f"--log-level={settings.log_level}"] if settings.log_level else []
    )
    commands = [
        [*this_command(), "worker", *options, f"--name={group}-{number}", "--", *modules]
        for number in range(1, processes + 1)
    ]
    environment = {**os.environ, "ONWARD_DATABASE_URL": database_url(settings.url)}  # no password among the arguments
    supervisor = Supervisor(commands, environment, name=group, slots=slots, grace_s=grace)
    with contextlib.ExitStack() as stack:
        probes = None
        if health_place is not None:
            probes = stack.enter_context(HealthServer(health_place, supervisor.health)).url
        if settings.log_format == "json":
            log.info("workers start", extra={"processes": processes, "health": probes})
        else:
            shown = [f"processes: {processes}", *([] if probes is None else [f"health: {probes}/live {probes}/ready"])]
            click.echo("\n".join(shown), err=True)
        return asyncio.run(supervisor.run())


def _leave_soon() -> None:
    """Python waits for every thread before it exits, and nobody can end a `def` step: bound that. Its workflow has been given
    back, so that another worker runs the step again; it must not go on here for hours beside it."""

    def leave() -> None:
        log.warning("steps still run in threads after the grace; leaving without them")
        logging.shutdown()
        os._exit(0)

    timer = threading.Timer(LEFTOVER_S, leave)
    timer.daemon = True
    timer.start()


def _tune_process() -> None:
    """Set up CPython for a process that does nothing but work; an embedded worker leaves all this alone.

    Garbage: what is loaded by now, with nobody looking for garbage meanwhile, is never looked at again, and the rest more
    rarely, since executions leave none of their own; some 6 % fewer instructions a workflow. Threads: a commit's thread needs
    the interpreter for a moment before and after its call into the database, and a busy loop lets it wait for the switch
    interval each time, 5 ms by default.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    gc.enable()
    sys.setswitchinterval(0.0005)


def _stop_on_signals(one: Worker) -> None:
    loop = asyncio.get_running_loop()
    seen: list[int] = []

    def received(number: int, frame: FrameType | None) -> None:
        if seen:
            os._exit(128 + number)
        seen.append(number)
        loop.call_soon_threadsafe(_stop, one, signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, received)


def _stop(one: Worker, name: str) -> None:
    log.info("%s: stopping; running steps may end within the grace, a second signal leaves at once", name)
    one.stop()

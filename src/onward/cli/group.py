"""The command group: finds commands lazily, and turns every error that Onward raises on purpose into one line and an exit code.

Imported by each run of `onward`, so it imports nothing that is slow: no asyncio, no msgspec, no client.
"""

from __future__ import annotations

import contextlib
import difflib
import gc
import importlib
import sys
from collections.abc import Iterator
from typing import Any

import click

from onward import errors
from onward._version import __version__
from onward.cli.settings import Failure, Settings, common_options, one_line

COMMANDS = {
    "cancel": "onward.cli.cancel",
    "copy": "onward.cli.copy",
    "demo": "onward.cli.demo",
    "doctor": "onward.cli.doctor",
    "export": "onward.cli.export",
    "ls": "onward.cli.ls",
    "migrate": "onward.cli.migrate",
    "prune": "onward.cli.prune",
    "retry": "onward.cli.retry",
    "run": "onward.cli.run",
    "show": "onward.cli.show",
    "signal": "onward.cli.signal",
    "start": "onward.cli.start",
    "worker": "onward.cli.worker",
}
"""Command → the module that has a click command of the same name."""

EXIT_CODES = """\b
Exit codes:
  0  done
  1  the workflow failed or was cancelled (start --wait, run); a check failed (doctor)
  2  wrong usage or bad input
  3  there is no such workflow
  4  conflict: the id is taken, the workflow has ended already, workers are alive (migrate --drop), not to be copied (copy)
  5  the database cannot be used
  6  the workflows were moved to another database (copy), or the copy into this one is not complete
  130, 143  ended by Ctrl-C (SIGINT) or by SIGTERM
"""

_CODES: tuple[tuple[type[Exception], int], ...] = (
    (errors.WorkflowNotFound, 3),
    (errors.WorkflowIdConflict, 4),
    (errors.WorkflowAlreadyEnded, 4),
    (errors.SchemaError, 5),
    (errors.StoreMoved, 6),
    (errors.StoreImporting, 6),
    (errors.StoreError, 5),
    (errors.WorkflowFailed, 1),
    (errors.NonDeterminismError, 1),
)


def exit_code(error: Exception) -> int:
    """The exit code of an error: part of the interface, see EXIT_CODES. What is not listed is bad input."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), 2)


class LazyGroup(click.Group):
    """Imports the module of a command when the command is looked up."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, by name."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, or None if there is none of this name."""
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        gc.disable()  # what is loaded stays
        try:
            command = getattr(importlib.import_module(module), cmd_name)
        finally:
            gc.enable()
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the arguments name; one that is nearly spelled so is offered."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            cure = f"is {near[0]!r} meant?" if near else f"there are {', '.join(COMMANDS)}"
            raise click.UsageError(f"there is no command {args[0]!r}: {cure}", ctx)
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the options before the command's name."""
        with _usage_on_one_line(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run; errors of Onward end it with `error: …` on stderr, and with a traceback too under --log-level debug."""
        try:
            with _usage_on_one_line(ctx):
                return super().invoke(ctx)
        except Failure as failure:
            _show_traceback(ctx)
            raise failure from None
        except errors.OnwardError as error:
            _show_traceback(ctx)
            raise Failure(str(error), exit_code(error)) from None
        except KeyboardInterrupt:
            click.echo(err=True)
            ctx.exit(130)


@contextlib.contextmanager
def _usage_on_one_line(ctx: click.Context) -> Iterator[None]:
    """What click has to say about wrong usage has the form of every other error; `onward` alone shows the help."""
    try:
        yield
    except click.UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # not in click 8.1, which prints the help and exits
            raise
        ctx = error.ctx or ctx
        message = error.format_message().rstrip(".")
        message = message[:1].lower() + message[1:]
        usage = "; usage: " + " ".join(ctx.command.get_usage(ctx).removeprefix("Usage: ").split())
        cure = usage if isinstance(error, click.MissingParameter) else f"; see: {ctx.command_path} --help"
        raise Failure(message + cure, error.exit_code) from error


def _show_traceback(ctx: click.Context) -> None:
    settings = ctx.find_object(Settings)
    if settings is not None and settings.log_level == "debug":
        click.echo(settings.traceback(), err=True, nl=False)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=EXIT_CODES,
)
@common_options
@click.version_option(__version__, prog_name="onward", message="%(prog)s %(version)s")
def onward() -> None:
    """Durable workflows in the database that your application already has.

    The database is --url, else the environment variable ONWARD_DATABASE_URL, else the file onward.db in the
    working directory.
    """


def main() -> None:
    """The entry point: runs the command line of this process and exits."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # what a terminal cannot show must not end the command
    onward(prog_name="onward")


__all__ = ["COMMANDS", "EXIT_CODES", "exit_code", "main", "one_line", "onward"]

"""The options that every command takes, before or after its name: --url, --log-level, --log-format.

`Settings` holds them for one run. `Failure` is how a command ends with a message and an exit code.
"""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

LEVELS = ("debug", "info", "warning", "error")


class Failure(click.ClickException):
    """Ends the command: one line on stderr, no traceback."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(one_line(message))
        vars(self)["exit_code"] = exit_code  # click declares it a class variable, and reads it from the instance

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line."""
        click.echo(f"{click.style('error:', fg='red', bold=True)} {self.message}", err=True, file=file)


@dataclass
class Settings:
    """What the options of this run say; None where an option was not given."""

    url: str | None = None
    log_level: str | None = None
    log_format: str = "text"

    def start_logging(self, default: str = "warning", *, process: int | None = None) -> None:
        """Log to stderr; `default` is the level where --log-level does not say, `process` labels the lines."""
        logs = importlib.import_module("onward.cli.logs")
        logs.start_logging(self.log_level or default, self.log_format, process)

    @staticmethod
    def traceback() -> str:
        """The traceback of the error being handled."""
        return traceback.format_exc()


pass_settings = click.make_pass_decorator(Settings, ensure=True)


def _keep(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    settings = ctx.find_root().ensure_object(Settings)
    if value is not None and param.name is not None:
        setattr(settings, param.name, value)


def common_options(fn: F) -> F:
    """Give a command the common options; they land in `Settings`, the ones after the command's name win."""
    for option in (
        click.option(
            "--log-format",
            type=click.Choice(["text", "json"]),
            expose_value=False,
            callback=_keep,
            help="Log lines for people (text) or one JSON object a line.",
        ),
        click.option(
            "--log-level",
            type=click.Choice(LEVELS, case_sensitive=False),
            expose_value=False,
            callback=_keep,
            help="Least level that is logged to stderr; debug also shows tracebacks.",
        ),
        click.option(
            "--url",
            metavar="URL",
            expose_value=False,
            callback=_keep,
            help="Database, for instance sqlite:////var/lib/app/onward.db.",
        ),
    ):
        fn = option(fn)
    return fn


def one_line(text: str) -> str:
    """A text on one line, safe for a terminal: breaks become spaces, other control characters are escaped."""
    joined = " ".join(text.split())
    if joined.isprintable():
        return joined
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in joined)

"""What the engine knows of a definition: plain values that `definitions.py` makes from decorated functions.

The replay core and the runner work on these, so that the engine never imports the public decorators. Codecs are bound here
once at definition time, lazily resolved at first use (type hints may name what is defined later in the module).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from onward._store.within.base import CallerConnection
from onward.codec import ArgumentsCodec, ValueCodec
from onward.retry import Retry

PROGRESS = ValueCodec(Any, "progress")
"""How a progress value is written."""


@dataclass(frozen=True, slots=True, eq=False)
class StepSpec:
    """A step. `key` is what `using(key=)` gave, else None: the name with its call number is the key."""

    name: str
    fn: Callable[..., Any]
    is_async: bool
    arguments: ArgumentsCodec
    result: ValueCodec
    retry: Retry
    raises: tuple[type[Exception], ...] = ()
    timeout_s: float | None = None
    check_args: bool = True
    on_cancel: Literal["wait", "abandon"] = "abandon"
    is_transactional: bool = False
    key: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class WorkflowSpec:
    """A workflow function under its registered type name; `also` are former names that it answers to as well."""

    name: str
    fn: Callable[..., Coroutine[Any, Any, Any]]
    arguments: ArgumentsCodec
    result: ValueCodec
    also: tuple[str, ...] = ()
    raises: tuple[type[Exception], ...] = ()
    queue: str = "default"
    max_attempts: int = 5
    backoff: Retry | None = None
    module: str = field(default="")


class StartOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How one workflow is started: the arguments of `workflow.using(...)`, checked there."""

    id: str | None = None
    queue: str | None = None
    priority: int = 0
    partition: str | None = None
    delay_s: float | None = None
    run_at_us: int | None = None
    timeout_s: float | None = None
    tags: tuple[tuple[str, str], ...] = ()
    max_attempts: int | None = None
    tx: CallerConnection | None = None

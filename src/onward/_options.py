"""Checks what users write in `@step(…)`, `@workflow(…)` and `using(…)`; called by `definitions.py` alone.

Every refusal is a `ConfigurationError` (for the function itself a `DefinitionError`) that names the value and the cure.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from onward._engine.specs import StartOptions
from onward._store.within.base import CallerConnection
from onward.errors import ConfigurationError, DefinitionError
from onward.retry import NO_RETRY, Duration, Retry, seconds

CHILD_SEPARATOR = "/"
"""Between a parent's id and a step key in a child's id; no id that a user chooses may contain it."""
LONGEST = 200
"""Characters of an id, name or key."""
_LONGEST_SECONDS = 1e11
"""About 3,000 years: instants stay within 64-bit microseconds."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def is_coroutine_function(fn: Any) -> bool:
    """Whether calling it gives a coroutine: `async def`, a partial of one, or an object with an async `__call__`."""
    if isinstance(fn, type):
        return False
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(type(fn).__call__)


def function_name(fn: Any) -> str:
    """The `__name__` of what is called in the end."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return getattr(fn, "__name__", None) or type(fn).__name__


def check_function(fn: Any, kind: str, *, is_static: bool) -> None:
    """Refuse what cannot be a step or workflow."""
    if isinstance(fn, classmethod):
        raise DefinitionError(
            f"@{kind} on class method {function_name(fn)!r}: a {kind} is a function or a static method; use @staticmethod"
        )
    if not callable(fn):
        raise DefinitionError(
            f"@{kind} takes a function, not {fn!r}; options are written with their names, @{kind}(name=…)"
        )
    if hasattr(fn, "spec") and hasattr(fn, "fn"):
        raise DefinitionError(f"{fn!r} is decorated already; decorate the bare function (.fn) once")
    name = function_name(fn)
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        cure = "return a list" if kind == "step" else "await its steps and return a result"
        raise DefinitionError(f"@{kind} on generator {name!r}: a {kind} has one result; {cure}")
    if kind == "workflow" and not is_coroutine_function(fn):
        raise DefinitionError(f"workflow {name!r} is not async: write `async def {name}(…)`")
    if not is_static and _looks_like_method(fn):
        raise DefinitionError(
            f"@{kind} on instance method {fn.__qualname__!r}: a {kind} is a function or a static method, since an instance "
            "is not stored; add @staticmethod, drop the first parameter and pass what it needs as arguments"
        )


def check_name(name: object, what: str) -> str:
    """A name, queue or partition: 1 to 200 printable characters without "/" and "#"."""
    return _printable(name, f"a {what} name" if what in ("step", "workflow") else f"{what}=", forbidden="/#")


def check_key(key: object) -> str:
    """A step key: as a name; "#" is how calls of one name are counted."""
    return _printable(key, "using(key=)", forbidden="/#")


def check_id(workflow_id: object, what: str = "using(id=)") -> str:
    """A workflow id that a user chose: 1 to 200 printable characters without "/"."""
    return _printable(workflow_id, what, forbidden=CHILD_SEPARATOR)


def check_max_attempts(value: object) -> int:
    """At least one attempt."""
    return _whole(value, "max_attempts=", 1, 1_000_000)


def former_names(also: Sequence[str], where: str) -> tuple[str, ...]:
    """The names of `also=`."""
    if isinstance(also, str) or not isinstance(also, Sequence):
        raise DefinitionError(f"{where}: also= takes a list of former names, also=[{also!r}], not {also!r}")
    return tuple([check_name(name, "workflow") for name in also])


def retry_policy(value: Retry | int | None, where: str) -> Retry:
    """A policy from `retry=`."""
    if value is None:
        return NO_RETRY
    if isinstance(value, Retry):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return Retry(tries=value)
    raise ConfigurationError(f"{where}: retry= takes a Retry or a number of tries, not {value!r}")


def backoff_policy(value: Retry | None, where: str) -> Retry | None:
    """A policy from `backoff=`."""
    if value is None or isinstance(value, Retry):
        return value
    raise ConfigurationError(f"{where}: backoff= takes a Retry (its delays are used), not {value!r}")


def start_options(
    base: StartOptions,
    *,
    id: str | None,
    queue: str | None,
    priority: int | None,
    partition: str | None,
    delay: Duration | None,
    run_at: datetime | None,
    timeout: Duration | None,
    tags: Mapping[str, str] | None,
    max_attempts: int | None,
    tx: CallerConnection | None,
) -> StartOptions:
    """`base` with what is given; a new delay replaces a former run_at and the other way round."""
    changes: dict[str, Any] = {}
    if delay is not None and run_at is not None:
        raise ConfigurationError("using() takes either delay= or run_at=, not both")
    if id is not None:
        changes["id"] = check_id(id)
    if queue is not None:
        changes["queue"] = check_name(queue, "queue")
    if priority is not None:
        changes["priority"] = _whole(priority, "priority=", -(2**31), 2**31 - 1)
    if partition is not None:
        changes["partition"] = _printable(partition, "partition=", forbidden="")
    if delay is not None:
        changes |= {"delay_s": _duration(delay, "delay="), "run_at_us": None}
    if run_at is not None:
        changes |= {"run_at_us": _instant_us(run_at), "delay_s": None}
    if timeout is not None:
        changes["timeout_s"] = _duration(timeout, "timeout=")
    if tags is not None:
        changes["tags"] = _tags(tags)
    if max_attempts is not None:
        changes["max_attempts"] = check_max_attempts(max_attempts)
    if tx is not None:
        changes["tx"] = tx
    return msgspec.structs.replace(base, **changes)


def refuse_tx(options: StartOptions, name: str) -> None:
    """A child is started by its parent's own commit."""
    if options.tx is not None:
        raise ConfigurationError(
            f"child workflow {name!r} has using(tx=), but it is started by the commit of its parent; tx= is for clients, "
            "also for one inside a transactional step"
        )


def _looks_like_method(fn: Callable[..., Any]) -> bool:
    """Defined in a class body (its qualname says so), with a first parameter that says `self`."""
    scope = getattr(fn, "__qualname__", "").rpartition(".")[0]
    code = getattr(inspect.unwrap(fn), "__code__", None)
    if not scope or scope.endswith("<locals>") or code is None or inspect.ismethod(fn):
        return False
    return code.co_argcount > 0 and code.co_varnames[0] in ("self", "cls")


def _printable(value: object, what: str, *, forbidden: str) -> str:
    if not isinstance(value, str):
        raise ConfigurationError(f"{what} must be a str, not {value!r}")
    if not 1 <= len(value) <= LONGEST or not value.isprintable() or any(char in value for char in forbidden):
        without = f" without {' and '.join(repr(char) for char in forbidden)}" if forbidden else ""
        raise ConfigurationError(f"{what} must be 1 to {LONGEST} printable characters{without}, not {value[:300]!r}")
    return value


def _whole(value: object, what: str, lowest: int, highest: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise ConfigurationError(f"{what} must be a whole number from {lowest} to {highest}, not {value!r}")
    return value


def _duration(value: Duration, what: str) -> float:
    result = seconds(value, what)
    if result > _LONGEST_SECONDS:
        raise ConfigurationError(f"{what} must be less than 3,000 years, not {value!r}")
    return result


def _instant_us(moment: datetime) -> int:
    if not isinstance(moment, datetime):
        raise ConfigurationError(f"run_at= must be a timezone-aware datetime, not {moment!r}")
    if moment.utcoffset() is None:
        raise ConfigurationError(
            f"run_at= needs a timezone: {moment!r} is naive; use datetime.now(timezone.utc) or .astimezone()"
        )
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _tags(tags: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    if not isinstance(tags, Mapping):
        raise ConfigurationError(f"tags= takes a mapping of str to str, not {tags!r}")
    for name, value in tags.items():
        if not (isinstance(name, str) and isinstance(value, str) and name):
            raise ConfigurationError(f"tags= takes str names and str values, not {name!r}: {value!r}")
    return tuple(sorted(tags.items()))

"""`@workflow`, `@step` and `call`: they wrap functions and do nothing else.

No registry, no I/O and no thread at import; type hints are looked up later, so they may name what is defined further down.
Options never mix with arguments: those of a definition are the decorator's, those of a start go through `using(...)`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar, overload

from onward._engine.specs import StepSpec, WorkflowSpec
from onward._options import (
    backoff_policy,
    check_function,
    check_max_attempts,
    check_name,
    former_names,
    function_name,
    is_coroutine_function,
    retry_policy,
)
from onward._wrappers import BoundWorkflow, Step, Workflow
from onward.codec import ArgumentsCodec, ValueCodec
from onward.errors import DefinitionError
from onward.retry import Duration, Retry, exception_classes, seconds

__all__ = ["BoundWorkflow", "Step", "Workflow", "call", "step", "workflow"]

P = ParamSpec("P")
R = TypeVar("R")

Raises = type[Exception] | Sequence[type[Exception]]
"""What `raises=` takes: one exception class or several."""


class StepDecorator(Protocol):
    """What `step(...)` with options returns."""

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Step[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Step[P, R]: ...


class TransactionalStepDecorator(Protocol):
    """What `step(transactional=True)` returns: the function's first parameter is the connection."""

    @overload
    def __call__(self, fn: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /) -> Step[P, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[Any, P], R], /) -> Step[P, R]: ...


class WorkflowDecorator(Protocol):
    """What `workflow(...)` with options returns."""

    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Workflow[P, R]: ...


@overload
def step(fn: Callable[P, Coroutine[Any, Any, R]], /) -> Step[P, R]: ...
@overload
def step(fn: Callable[P, R], /) -> Step[P, R]: ...
@overload
def step(
    *,
    transactional: Literal[True],
    name: str | None = None,
    retry: Retry | int | None = None,
    raises: Raises = (),
    timeout: Duration | None = None,
    check_args: bool = True,
    on_cancel: Literal["wait", "abandon"] = "abandon",
) -> TransactionalStepDecorator: ...
@overload
def step(
    *,
    name: str | None = None,
    retry: Retry | int | None = None,
    raises: Raises = (),
    timeout: Duration | None = None,
    check_args: bool = True,
    on_cancel: Literal["wait", "abandon"] = "abandon",
    transactional: Literal[False] = False,
) -> StepDecorator: ...
def step(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    retry: Retry | int | None = None,
    raises: Raises = (),
    timeout: Duration | None = None,
    check_args: bool = True,
    on_cancel: Literal["wait", "abandon"] = "abandon",
    transactional: bool = False,
) -> Any:
    """Make a function a step: within a workflow its result is recorded once, and replayed ever after.

    Args:
        name: the name in the journal (default: the function's `__name__`). Keep it when the function is renamed.
        retry: a `Retry`, or the number of tries (default: one try).
        raises: exception classes that reach the workflow as themselves; every other error arrives as `StepFailed`.
        timeout: seconds or timedelta that one try may take.
        check_args: on replay compare the arguments with the recorded ones, not the name alone.
        on_cancel: whether a cancelled or timed-out await waits for the body's real end ("wait") or not ("abandon").
        transactional: the function's first parameter is a connection to the workflow's database; what it writes there
            commits together with the record of the step, exactly once. The caller does not pass it.

    Raises:
        DefinitionError: not a function, an instance method, or a generator. ConfigurationError: an impossible option.

    >>> @step(retry=3)
    ... def add(a: int, b: int) -> int:
    ...     return a + b
    >>> import asyncio
    >>> asyncio.run(add(1, 2))  # outside a workflow it just runs
    3
    """
    if fn is None:
        return functools.partial(
            _make_step,
            name=name,
            retry=retry,
            raises=raises,
            timeout=timeout,
            check_args=check_args,
            on_cancel=on_cancel,
            transactional=transactional,
        )
    return _make_step(fn)


@overload
def workflow(fn: Callable[P, Coroutine[Any, Any, R]], /) -> Workflow[P, R]: ...
@overload
def workflow(
    *,
    name: str | None = None,
    also: Sequence[str] = (),
    raises: Raises = (),
    queue: str = "default",
    max_attempts: int = 5,
    backoff: Retry | None = None,
) -> WorkflowDecorator: ...
def workflow(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    also: Sequence[str] = (),
    raises: Raises = (),
    queue: str = "default",
    max_attempts: int = 5,
    backoff: Retry | None = None,
) -> Any:
    """Make an `async def` function a workflow: it survives crashes, restarts and deploys.

    Args:
        name: the type name in the database (default: the function's `__name__`).
        also: former names whose workflows this function goes on with.
        raises: exception classes that come back as themselves from `result()` and to a parent; others as `WorkflowFailed`.
        queue: the queue of workflows that are started without one.
        max_attempts: attempts that may end with an error before the workflow is `failed`.
        backoff: the waits between attempts (its `tries` is not used; default: min(30, 2**n) minutes).

    Raises:
        DefinitionError: not an `async def` function, or an instance method. ConfigurationError: an impossible option.

    >>> @workflow
    ... async def hello(name: str) -> str:
    ...     return f"hello {name}"
    >>> hello
    <onward.Workflow 'hello' of onward.definitions.hello>
    """
    if fn is None:
        return functools.partial(
            _make_workflow,
            name=name,
            also=also,
            raises=raises,
            queue=queue,
            max_attempts=max_attempts,
            backoff=backoff,
        )
    return _make_workflow(fn)


@overload
def call(fn: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]: ...
@overload
def call(fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]: ...
def call(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
    """Run any callable as a step, under its own name and without options: `await call(fetch, url)`.

    With options: `step(name=…, retry=…)(fn)(…)`. Outside a workflow it just runs.
    """
    if isinstance(fn, Step):
        return fn(*args, **kwargs)
    if isinstance(fn, Workflow):
        raise DefinitionError(f"workflow {fn.name!r} is no step: await its call directly, `await {fn.name}(…)`")
    return _make_step(fn)(*args, **kwargs)


def _make_step(
    fn: Any,
    /,
    *,
    name: str | None = None,
    retry: Retry | int | None = None,
    raises: Raises = (),
    timeout: Duration | None = None,
    check_args: bool = True,
    on_cancel: Literal["wait", "abandon"] = "abandon",
    transactional: bool = False,
) -> Step[..., Any]:
    is_static = isinstance(fn, staticmethod)
    bare = fn.__func__ if is_static else fn
    check_function(bare, "step", is_static=is_static)
    name = check_name(function_name(bare) if name is None else name, "step")
    if on_cancel not in ("wait", "abandon"):
        raise DefinitionError(f'step {name!r}: on_cancel= must be "wait" or "abandon", not {on_cancel!r}')
    where = f"step {name!r}"
    return Step(
        StepSpec(
            name=name,
            fn=bare,
            is_async=is_coroutine_function(bare),
            arguments=ArgumentsCodec(bare, where, skip_first=transactional),
            result=ValueCodec.of(bare, "return", f"result of {where}"),
            retry=retry_policy(retry, where),
            raises=exception_classes(raises, f"{where}: raises="),
            timeout_s=None if timeout is None else seconds(timeout, f"{where}: timeout="),
            check_args=check_args,
            on_cancel=on_cancel,
            is_transactional=transactional,
        ),
        is_static=is_static,
    )


def _make_workflow(
    fn: Any,
    /,
    *,
    name: str | None = None,
    also: Sequence[str] = (),
    raises: Raises = (),
    queue: str = "default",
    max_attempts: int = 5,
    backoff: Retry | None = None,
) -> Workflow[..., Any]:
    is_static = isinstance(fn, staticmethod)
    bare = fn.__func__ if is_static else fn
    check_function(bare, "workflow", is_static=is_static)
    name = check_name(function_name(bare) if name is None else name, "workflow")
    where = f"workflow {name!r}"
    return Workflow(
        WorkflowSpec(
            name=name,
            fn=bare,
            arguments=ArgumentsCodec(bare, where, is_stored=True),
            result=ValueCodec.of(bare, "return", f"result of {where}"),
            also=former_names(also, where),
            raises=exception_classes(raises, f"{where}: raises="),
            queue=check_name(queue, "queue"),
            max_attempts=check_max_attempts(max_attempts),
            backoff=backoff_policy(backoff, where),
            module=getattr(bare, "__module__", None) or "",
        ),
        is_static=is_static,
    )

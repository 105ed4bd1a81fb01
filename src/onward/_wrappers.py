"""What the decorators make: `Step`, `Workflow` and `BoundWorkflow`.

Public through `onward.definitions`, which makes them. What a call does is decided where it happens: inside a workflow it
becomes a durable call of the running execution (`_engine/replay/calls.py`); elsewhere a step just runs its function, and a
workflow refuses, since it would run without any durability.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Generic, ParamSpec, TypeVar

from onward._engine.replay.calls import StepCall, call_child, current_execution
from onward._engine.specs import StartOptions, StepSpec, WorkflowSpec
from onward._options import check_key, is_coroutine_function, refuse_tx, start_options
from onward._store.within.base import CallerConnection
from onward.errors import DefinitionError, NotInWorkflow
from onward.retry import Duration

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)

_NO_OPTIONS = StartOptions()


class Step(Generic[P, R_co]):
    """A function whose result is recorded once per call in a workflow; made by `@step`.

    Calling it gives an awaitable, for `def` and `async def` functions alike. Outside a workflow it just runs its function
    (`def` in a thread); `.fn` is the function itself.
    """

    def __init__(self, spec: StepSpec, *, is_static: bool = False) -> None:
        self._spec = spec
        self._is_static = is_static
        _dress(self, spec.fn)

    @property
    def fn(self) -> Callable[..., Any]:
        """The bare function."""
        return self._spec.fn

    @property
    def name(self) -> str:
        """The name under which its calls are recorded."""
        return self._spec.name

    @property
    def spec(self) -> StepSpec:
        """What the engine knows of it."""
        return self._spec

    def using(self, *, key: str) -> Step[P, R_co]:
        """A copy whose next call is recorded under `key` instead of the name and its number.

        Args:
            key: 1 to 200 printable characters without "/" and "#"; unique within one workflow.

        Raises:
            ConfigurationError: the key has another form.
        """
        return Step(replace(self._spec, key=check_key(key)), is_static=self._is_static)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]:
        """In a workflow: run the step durably. Elsewhere: run the function."""
        spec = self._spec
        execution = current_execution()
        if execution is None:
            spec.arguments.bind(args, kwargs)
            if spec.is_transactional:
                raise NotInWorkflow(
                    f"transactional step {spec.name!r} was called outside a workflow, where it has no transaction; "
                    "call .fn with a connection"
                )
            return _named(_run_plainly(spec.fn, args, kwargs), spec.fn)
        spec.result.resolve()
        result: Coroutine[Any, Any, R_co] = StepCall(execution, spec, args, kwargs)
        return result

    def __get__(self, instance: object, owner: type | None = None) -> Step[P, R_co]:
        _refuse_method(self, "step", instance, self._is_static)
        return self

    def __repr__(self) -> str:
        key = f" using(key={self._spec.key!r})" if self._spec.key is not None else ""
        return f"<onward.Step {self._spec.name!r} of {_place(self._spec.fn)}{key}>"


class Workflow(Generic[P, R_co]):
    """An `async def` function that runs durably; made by `@workflow`.

    Start it with a client (`client.start(workflow, …)`) or, inside another workflow, by awaiting its call. `.fn` is the
    function itself.
    """

    def __init__(self, spec: WorkflowSpec, options: StartOptions = _NO_OPTIONS, *, is_static: bool = False) -> None:
        self._spec = spec
        self._options = options
        self._is_static = is_static
        _dress(self, spec.fn)

    @property
    def fn(self) -> Callable[P, Coroutine[Any, Any, R_co]]:
        """The bare function."""
        return self._spec.fn

    @property
    def name(self) -> str:
        """The registered type name."""
        return self._spec.name

    @property
    def spec(self) -> WorkflowSpec:
        """What the engine knows of it."""
        return self._spec

    @property
    def options(self) -> StartOptions:
        """What `using` has set."""
        return self._options

    def using(
        self,
        *,
        id: str | None = None,
        queue: str | None = None,
        priority: int | None = None,
        partition: str | None = None,
        delay: Duration | None = None,
        run_at: datetime | None = None,
        timeout: Duration | None = None,
        tags: Mapping[str, str] | None = None,
        max_attempts: int | None = None,
        tx: CallerConnection | None = None,
    ) -> Workflow[P, R_co]:
        """A copy that is started with these options; those not given stay as they were.

        Args:
            id: the workflow's id: 1 to 200 printable characters without "/". Starting an id again gives the workflow that
                has it (default: a new UUIDv7).
            queue: the queue it waits in (default: the definition's).
            priority: lower runs first (default 0).
            partition: a key within the queue.
            delay: start no sooner than so many seconds (or this timedelta) after the start is written.
            run_at: start no sooner than this moment; a timezone-aware datetime. Not together with `delay`.
            timeout: seconds or timedelta from its first start until it is ended with `WorkflowTimedOut`.
            tags: str to str, for finding it again.
            max_attempts: attempts that may end with an error before it is `failed` (default: the definition's).
            tx: your own open connection to the client's database, whose transaction the start becomes part of: there once you
                commit, gone if you roll back. With `Client` a `sqlite3.Connection`, SQLAlchemy `Connection` or `Session`, or
                Django's connection; with `AsyncClient` an `aiosqlite.Connection`, `AsyncConnection` or `AsyncSession`.

        Raises:
            ConfigurationError: an option that cannot be, and what it should be.
        """
        options = start_options(
            self._options,
            id=id,
            queue=queue,
            priority=priority,
            partition=partition,
            delay=delay,
            run_at=run_at,
            timeout=timeout,
            tags=tags,
            max_attempts=max_attempts,
            tx=tx,
        )
        copy: Workflow[P, R_co] = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy._options = options
        return copy

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> BoundWorkflow[R_co]:
        """The workflow with its arguments, for `client.start_many`. Raises TypeError where a call would."""
        self._spec.arguments.bind(args, kwargs)
        return BoundWorkflow(self._spec, self._options, args, kwargs)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]:
        """Inside a workflow: start it as a child and wait for its result. Elsewhere: raises NotInWorkflow."""
        execution = current_execution()
        if execution is None:
            raise NotInWorkflow(
                f"workflow {self._spec.name!r} was called outside a workflow, where it would not be durable: start it with "
                f"a client (`client.start({_short_name(self._spec.fn)}, …)`), or call .fn to run the bare function"
            )
        self._spec.arguments.bind(args, kwargs)
        refuse_tx(self._options, self._spec.name)
        result: Coroutine[Any, Any, R_co] = call_child(execution, self._spec, self._options, args, kwargs)
        return result

    def __get__(self, instance: object, owner: type | None = None) -> Workflow[P, R_co]:
        _refuse_method(self, "workflow", instance, self._is_static)
        return self

    def __repr__(self) -> str:
        changed = [
            f"{name}={getattr(self._options, name)!r}"
            for name in StartOptions.__struct_fields__
            if getattr(self._options, name) != getattr(_NO_OPTIONS, name)
        ]
        using = f" using({', '.join(changed)})" if changed else ""
        return f"<onward.Workflow {self._spec.name!r} of {_place(self._spec.fn)}{using}>"


class BoundWorkflow(Generic[R_co]):
    """A workflow with its options and arguments; made by `Workflow.bind`, taken by `client.start` and `start_many`."""

    __slots__ = ("args", "kwargs", "options", "spec")

    def __init__(
        self, spec: WorkflowSpec, options: StartOptions, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        self.spec = spec
        self.options = options
        self.args = args
        self.kwargs = dict(kwargs) if kwargs else {}

    def __repr__(self) -> str:
        return f"<onward.BoundWorkflow {self.spec.name!r} of {_place(self.spec.fn)}>"


def _named(call: Coroutine[Any, Any, Any], fn: Callable[..., Any]) -> Coroutine[Any, Any, Any]:
    """The call under the function's name: Python says of a call that is forgotten, `coroutine 'charge' was never awaited`."""
    call.__qualname__ = getattr(fn, "__qualname__", "step")  # type: ignore[attr-defined]  # the protocol lacks it
    return call


async def _run_plainly(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a step does outside a workflow. A `def` function may block, so it gets a thread."""
    if is_coroutine_function(fn):
        return await fn(*args, **kwargs)
    result = await asyncio.to_thread(fn, *args, **kwargs)
    return await result if inspect.isawaitable(result) else result


def _dress(wrapper: object, fn: Callable[..., Any]) -> None:
    """Name, docstring, signature and module of the function, for people, `inspect` and documentation tools."""
    functools.update_wrapper(wrapper, fn, updated=())  # type: ignore[arg-type]  # it takes any object


def _refuse_method(
    definition: Step[..., Any] | Workflow[..., Any], kind: str, instance: object, is_static: bool
) -> None:
    if instance is not None and not is_static:
        raise DefinitionError(
            f"{kind} {definition.name!r} was looked up on an instance of {type(instance).__qualname__}: a {kind} is a function "
            "or a static method; add @staticmethod and pass what it needs as arguments"
        )


def _place(fn: Any) -> str:
    return f"{getattr(fn, '__module__', '?')}.{getattr(fn, '__qualname__', None) or type(fn).__qualname__}"


def _short_name(fn: Any) -> str:
    return getattr(fn, "__name__", None) or "workflow"

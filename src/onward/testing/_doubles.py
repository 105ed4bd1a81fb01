"""What runs in place of steps and workflows: every call of a step is noted, stubs take the place of bodies.

The engine asks `Doubles.step` each time that a step begins. It gets a spec whose function notes the call, passes the crash
points around the body, and runs the body or its stub. Results of stubs are encoded, checked and recorded like any other.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from onward._engine.failures import StepTimeout
from onward._engine.specs import StepSpec, WorkflowSpec
from onward._engine.stepinfo import current_step_info
from onward._wrappers import Step, Workflow
from onward.context import current
from onward.errors import ConfigurationError, Fail
from onward.info import moment
from onward.testing._clock import Alarms, LeapingClock
from onward.testing._faults import Crashed, Passing
from onward.testing._stubs import Stub

if TYPE_CHECKING:
    from onward.testing._life import Life


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCall:
    """One try of a step whose body (or stub) has begun.

    Attributes:
        step: the step's name. key: its key in the journal, for instance ``charge#2``.
        arguments: by parameter name, defaults not filled in.
        workflow_id: the workflow that called it.
        idempotency_key: the same on every try of this call.
        try_number: 1 at first.
        at: the environment's time.
    """

    step: str
    key: str
    arguments: dict[str, Any]
    workflow_id: str
    idempotency_key: str
    try_number: int
    at: datetime


class Doubles:
    """The stubs of an environment, and the calls of its steps.

    Args:
        clock: the environment's time.
        alarms: where stubs sleep that take a while.
    """

    def __init__(self, clock: LeapingClock, alarms: Alarms) -> None:
        self._clock = clock
        self.alarms = alarms
        self._stubs: list[Stub] = []
        self._lock = threading.Lock()
        self._calls: list[tuple[Callable[..., Any], StepCall]] = []

    # ------------------------------------------------------------------ what tests do

    def add(self, stub: Stub) -> Stub:
        """Let this stub take the place of what it is for; the newest one of a step counts."""
        self._stubs.append(stub)
        return stub

    def remove(self, stub: Stub) -> None:
        """Let it do so no longer."""
        if stub in self._stubs:
            self._stubs.remove(stub)

    def copy_to(self, other: Doubles) -> None:
        """Give another environment the same stubs, each as it was made."""
        for stub in self._stubs:
            other.add(stub.afresh(other.remove))

    def calls(self, target: Callable[..., Any] | None) -> list[StepCall]:
        """The calls of one step, or of all of them, in the order in which their bodies began."""
        with self._lock:
            return [call for fn, call in self._calls if target is None or fn is target]

    def ran(self, workflow_id: str, key: str) -> Callable[..., Any] | None:
        """The function of the step that was called under this key."""
        with self._lock:
            found = (fn for fn, call in reversed(self._calls) if (call.workflow_id, call.key) == (workflow_id, key))
            return next(found, None)

    # ------------------------------------------------------------------ what the engine asks

    def step(self, spec: StepSpec, life: Life) -> StepSpec:
        """What runs in place of this step now."""
        fn: Any = spec.fn
        original: StepSpec = fn.original if isinstance(fn, (_Body, _BodyInThread)) else spec
        stub = self._stub_of(original.fn)
        if stub is None and (namesake := self._namesake(original)) is not None:
            return replace(original, fn=_refuses(original, namesake), is_async=True, is_transactional=False)
        if stub is None and original.is_async:
            return replace(original, fn=_Body(original, None, self, life))
        if stub is None:
            return replace(original, fn=_BodyInThread(original, self, life))
        # A stub runs on the loop, in no transaction, and what time it takes is not that of the machine.
        body = _Body(original, stub, self, life)
        return replace(original, fn=body, is_async=True, is_transactional=False, timeout_s=None)

    def workflow(self, spec: WorkflowSpec) -> WorkflowSpec:
        """What runs in place of this workflow."""
        stub = self._stub_of(spec.fn)
        return spec if stub is None else replace(spec, fn=_stubbed_workflow(stub, spec))

    def _stub_of(self, fn: Callable[..., Any]) -> Stub | None:
        return next((stub for stub in reversed(self._stubs) if stub.target is fn), None)

    def _namesake(self, spec: StepSpec) -> Stub | None:
        """A stub of another step of the same name: surely this one was meant."""
        return next((stub for stub in self._stubs if stub.is_of_step and stub.name == spec.name), None)

    # ------------------------------------------------------------------ what bodies say

    def begin(self, spec: StepSpec, life: Life, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StepCall:
        """A body begins: pass the point before it, and note the call."""
        info = current_step_info()
        assert info is not None
        life.pass_by(Passing("body:before", info.workflow_id, info.key, spec))
        call = StepCall(
            step=spec.name,
            key=info.key,
            arguments=_by_name(spec, args, kwargs),
            workflow_id=info.workflow_id,
            idempotency_key=info.idempotency_key,
            try_number=info.try_number,
            at=moment(self._clock.now_us()),
        )
        with self._lock:
            self._calls.append((spec.fn, call))
        return call

    @staticmethod
    def end(spec: StepSpec, life: Life, call: StepCall) -> None:
        """A body has ended, and nothing is recorded yet: pass the point after it."""
        if not spec.is_transactional:  # its end is the commit, which has points of its own
            life.pass_by(Passing("body:after", call.workflow_id, call.key, spec))


class _Body:
    """The function of an `async def` step, or of any step that has a stub."""

    __slots__ = ("_doubles", "_life", "_stub", "original")

    def __init__(self, original: StepSpec, stub: Stub | None, doubles: Doubles, life: Life) -> None:
        self.original = original
        self._stub = stub
        self._doubles = doubles
        self._life = life

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        spec, life, doubles = self.original, self._life, self._doubles
        has_connection = spec.is_transactional and self._stub is None
        call = doubles.begin(spec, life, args[1:] if has_connection else args, kwargs)
        try:
            if self._stub is None:
                result = await life.run_mortally(spec.fn(*args, **kwargs))
            else:
                self._stub.calls.append(call)
                result = await life.run_mortally(self._stand_in(self._stub, call, args, kwargs))
        except BaseException as error:
            _die_of(error, life)
            doubles.end(spec, life, call)
            raise
        doubles.end(spec, life, call)
        return result

    async def _stand_in(self, stub: Stub, call: StepCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        limit_s, who = self.original.timeout_s, (call.workflow_id, call.key)
        if limit_s is not None and stub.takes_s > limit_s:
            await self._doubles.alarms.sleep(limit_s, who)
            raise StepTimeout(f"ran longer than its timeout of {limit_s:g} s")
        await self._doubles.alarms.sleep(stub.takes_s, who)
        result = stub.answer(args, kwargs)
        return await result if inspect.isawaitable(result) else result


class _BodyInThread:
    """The function of a `def` step."""

    __slots__ = ("_doubles", "_life", "original")

    def __init__(self, original: StepSpec, doubles: Doubles, life: Life) -> None:
        self.original = original
        self._doubles = doubles
        self._life = life

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        spec, life, doubles = self.original, self._life, self._doubles
        call = doubles.begin(spec, life, args[1:] if spec.is_transactional else args, kwargs)
        try:
            result = spec.fn(*args, **kwargs)
        except BaseException as error:
            _die_of(error, life)
            doubles.end(spec, life, call)
            raise
        doubles.end(spec, life, call)
        return result


def _die_of(error: BaseException, life: Life) -> None:
    """A body that raises `Crashed` is the death of its worker, there and then."""
    if isinstance(error, Crashed) and not life.is_dead:
        life.die(error.point)
    life.check()


def _refuses(spec: StepSpec, stub: Stub) -> Callable[..., Any]:
    """The function of a step that has a stub by its name only."""
    text = (
        f"step {spec.name!r} of {_place(spec.fn)} has no stub; there is one for another step of that name, that of "
        f"{_place(stub.target)}: stub the one that the workflow calls"
    )

    async def refuse(*args: Any, **kwargs: Any) -> Any:
        raise Fail(text)

    return refuse


def _place(fn: Callable[..., Any]) -> str:
    code = getattr(inspect.unwrap(fn), "__code__", None)
    return repr(fn) if code is None else f"{code.co_filename}:{code.co_firstlineno}"


def _stubbed_workflow(stub: Stub, spec: WorkflowSpec) -> Callable[..., Any]:
    async def stand_in(*args: Any, **kwargs: Any) -> Any:
        if not current().replaying:
            stub.runs.append(dict(inspect.signature(spec.fn).bind(*args, **kwargs).arguments))
        result = stub.answer(args, kwargs)
        return await result if inspect.isawaitable(result) else result

    return stand_in


def _by_name(spec: StepSpec, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    signature = inspect.signature(spec.fn)
    if spec.is_transactional:
        signature = signature.replace(parameters=list(signature.parameters.values())[1:])
    return dict(signature.bind(*args, **kwargs).arguments)


def bare(target: object) -> Callable[..., Any]:
    """The function of a step or workflow, or the function itself, as `onward.call` takes it."""
    if isinstance(target, (Step, Workflow)):
        return target.fn
    if callable(target) and not isinstance(target, type):
        return target
    raise ConfigurationError(f"takes a step, a workflow, or a function that is given to onward.call(), not {target!r}")

"""The part of `Environment` with which a test arranges what is to happen: stubs, crashes, lost replies."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeAlias

from onward._wrappers import Step, Workflow
from onward.definitions import step
from onward.errors import ConfigurationError
from onward.retry import Duration
from onward.testing._doubles import Doubles, StepCall, bare
from onward.testing._faults import CLIENT_POINTS, POINTS, RECORDED, Faults, Passing, PlannedFault, at_point
from onward.testing._stubs import NOTHING, Stub

StepOrKey: TypeAlias = Step[..., Any] | Callable[..., Any] | str
"""A step, a function given to `onward.call`, or a key of the journal such as ``"charge#2"``."""
REPLIES = ("adopt", "bury", "claim", "reconcile", "register", "renew", "retire", "step", "write")


class Arranging:
    """What an environment offers to decide beforehand what happens in it."""

    _faults: Faults
    _client_faults: Faults
    _doubles: Doubles

    def stub(
        self,
        target: Step[..., Any] | Workflow[..., Any] | Callable[..., Any],
        /,
        *,
        returns: Any = NOTHING,
        raises: BaseException | type[BaseException] | None = None,
        side_effect: Callable[..., Any] | Iterable[Any] | None = None,
        takes: Duration = 0.0,
    ) -> Stub:
        """Let something stand in for the body of a step, until the environment ends, or ``with env.stub(…):`` does.

        Args:
            target: the step, a function that is given to `onward.call`, or a child workflow.
            returns: the result of every call (default None); it is checked and recorded like a real one.
            raises: an exception, or its class, of every call.
            side_effect: a function (also async) called with the step's arguments, whose result counts; or several answers,
                one for each call: results, and exceptions that are raised.
            takes: how long the body runs in the environment's time, so that time-outs around it can pass.

        Returns the stub, with its ``calls``. A stub runs on the event loop; one of a transactional step in no transaction.

        Raises:
            CodecError: the step could not return this. ConfigurationError: the target is none, or two answers were given.
        """
        fn = bare(target)
        if isinstance(target, (Step, Workflow)):
            name, result = target.name, target.spec.result
        else:
            name, result = step(fn).name, step(fn).spec.result
        result.resolve()
        stub = Stub(
            name, fn, result, self._doubles.remove,
            is_of_step=not isinstance(target, Workflow), returns=returns, raises=raises, side_effect=side_effect, takes=takes,
        )  # fmt: skip
        return self._doubles.add(stub)

    def calls(self, target: Step[..., Any] | Callable[..., Any] | None = None, /) -> list[StepCall]:
        """Every try of a step (or of all steps), stubbed or real, in the order in which the bodies began."""
        return self._doubles.calls(None if target is None else bare(target))

    # ------------------------------------------------------------------ faults

    def crash_before(self, step: StepOrKey, /, *, number: int = 1, times: int = 1) -> PlannedFault:
        """Let the worker die right before the body of this step begins. Another worker takes over and runs it.

        Args:
            step: the step, or one call of it by its key: ``"charge#2"``.
            number: at which of its beginnings, 1 for the first.
            times: how often in a row; each death begins to count anew.

        The environment complains at its end about a crash that never happened.
        """
        return self._at_step("before", step, "body:before", number, times)

    def crash_during(self, step: StepOrKey, /, *, number: int = 1, times: int = 1) -> PlannedFault:
        """Let the worker die when the body of this step has run and before its result is recorded: it runs again. This is
        the window in which an effect happens twice, unless the receiver knows the idempotency key. See `crash_before`."""
        if isinstance(step, Step) and step.spec.is_transactional:
            raise ConfigurationError(
                f"step {step.name!r} is transactional: its body and its record are one commit, and nothing lies between; "
                'use crash_at("step:before-commit") or crash_after(step)'
            )
        return self._at_step("during", step, "body:after", number, times)

    def crash_after(self, step: StepOrKey, /, *, number: int = 1, times: int = 1) -> PlannedFault:
        """Let the worker die right after the result of this step is recorded: it never runs again. See `crash_before`; the
        key may be that of any journal entry, for instance ``"sleep"`` or ``"signal:approved"``."""
        return self._at_step("after", step, RECORDED, number, times)

    def crash_at(self, point: str, /, *, number: int | None = None, times: int = 1) -> PlannedFault:
        """Let the worker die at a crash point of the engine.

        Args:
            point: one of `onward.testing.POINTS`, for instance ``"flush:before"``; ``"*"`` for any of them, ``"write:*"``
                for both of that write. ``"flush:before@3"`` is the third passing.
            number: at which passing, 1 (the default) for the first.
            times: how often in a row; each death begins to count anew.

        Raises:
            ConfigurationError: there is no such point.
        """
        name, count, wants = at_point(point, number, POINTS)
        return self._faults.add(PlannedFault(f"at {name}@{count}", "crash", wants, number=count, times=times))

    def crash_client_at(self, point: str, /, *, number: int | None = None, times: int = 1) -> PlannedFault:
        """Let the environment's client die in the middle of a call (`start`, `signal`, …), which then raises `Crashed`: as
        the process of a web server that is killed before or after the commit.

        Args:
            point: ``"flush:before"``, ``"write:before-commit"`` (nothing is written), ``"write:after-commit"`` or
                ``"flush:after"`` (all is written). number, times: as for `crash_at`.
        """
        name, count, wants = at_point(point, number, CLIENT_POINTS)
        plan = PlannedFault(f"of the client at {name}@{count}", "crash", wants, number=count, times=times)
        return self._client_faults.add(plan)

    def lose_reply(self, write: str, /, *, number: int = 1, times: int = 1) -> PlannedFault:
        """Let the worker's connection break right after a commit: it lives, and does not know whether the write is there.

        Args:
            write: ``"write"`` (entries and ends), ``"claim"``, ``"step"`` (a transactional one), ``"reconcile"``, ….
            number: which of these commits. times: how often.
        """
        if write not in REPLIES:
            raise ConfigurationError(
                f"there is no write {write!r} whose reply could be lost; there are {', '.join(REPLIES)}"
            )
        point = f"{write}:after-commit"
        plan = PlannedFault(
            f"of {write}@{number}", "lost reply", lambda passing: passing.point == point, number=number, times=times
        )
        return self._faults.add(plan)

    def _at_step(
        self, when: Literal["before", "during", "after"], step: StepOrKey, point: str, number: int, times: int
    ) -> PlannedFault:
        if isinstance(step, Workflow):
            raise ConfigurationError(f"{step.name!r} is a workflow; name one of its steps, or a key of its journal")
        doubles = self._doubles
        fn = None if isinstance(step, str) else bare(step)

        def wants(passing: Passing) -> bool:
            if passing.point != point:
                return False
            if fn is None:
                return passing.key == step
            return (
                passing.step.fn if passing.step is not None else doubles.ran(passing.workflow_id, passing.key)
            ) is fn

        name = step if isinstance(step, str) else getattr(step, "name", None) or getattr(step, "__name__", repr(step))
        return self._faults.add(PlannedFault(f"{when} {name}", "crash", wants, number=number, times=times))

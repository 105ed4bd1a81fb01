"""`replay`: run the code of today on an exported history, and say where they part. For CI, before changed code is deployed.

Nothing is executed but workflow code: results of steps come from the history, as in a worker that takes the workflow over.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from onward._engine.replay.commands import Cancelled, Raised, Returned
from onward._engine.replay.matching import Execution
from onward._store.records import FINAL
from onward._wrappers import Workflow
from onward.errors import CodecError, ConfigurationError, WorkflowStuck
from onward.history import History, read_history


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """A history that fits the code.

    Attributes:
        id: the workflow's id. type: its type.
        state: where the code stands at the end of the history: ``waiting`` (in flight), ``completed``, ``cancelled``, or
            ``raised`` (an error leaves the workflow function).
        result: what the function returned.
        error: what it raised.
        waiting: keys of the steps, timers, signals and children that it waits for.
    """

    id: str
    type: str
    state: Literal["waiting", "completed", "cancelled", "raised"]
    result: Any = None
    error: BaseException | None = None
    waiting: tuple[str, ...] = ()


def replay(workflow: Workflow[..., Any] | Iterable[Workflow[..., Any]], history: Path | str | bytes, /) -> Replayed:
    """Replay an exported history with the present code, as a worker does that takes the workflow over.

    Args:
        workflow: the workflow, or several of which the one with the history's type is taken.
        history: a file of `onward export ID`, or the text of `await handle.export()`.

    Raises:
        NonDeterminismError: the code does not fit the history: with the key, what was recorded and what the code did.
        CodecError: the history's arguments do not fit the function any more, and the workflow is still in flight.
        ConfigurationError: no history, or one of another workflow.

    Example::

        @pytest.mark.parametrize("path", sorted(Path("histories").glob("*.json")), ids=str)
        def test_workflows_in_flight_go_on_with_this_code(path):
            onward.testing.replay([onboarding, invoice], path)
    """
    where = str(history) if isinstance(history, Path) else "the text"
    found = read_history(history.read_bytes() if isinstance(history, Path) else history, where)
    spec = _chosen(workflow, found, where).spec
    spec.arguments.resolve()
    spec.result.resolve()
    notes: list[str] = []
    core = Execution(
        spec,
        found.payload,
        workflow_id=found.id,
        seed=found.seed,
        started_at=found.started_at,
        run=found.run,
        attempt=found.attempts + 1,
        tags=found.tags,
        recorded_code_version=found.code_version,
        recorded_version=found.version,
        seq_floor=found.last_seq,
        note=notes.append,
    )
    try:
        core.replay(found.accepted(), is_check=True)
        return _told(core, found)
    finally:
        core.close()


def _told(core: Execution, history: History) -> Replayed:
    match core.ending:
        case None:
            keys = tuple(wait.key for wait in core.waiting())
            return Replayed(id=history.id, type=history.type, state="waiting", waiting=keys)
        case Returned(result):
            value = core.spec.result.decode(result)
            return Replayed(id=history.id, type=history.type, state="completed", result=value)
        case Cancelled():
            return Replayed(id=history.id, type=history.type, state="cancelled")
        case Raised(error):
            if isinstance(error, (CodecError, WorkflowStuck)) and history.status not in FINAL:
                raise error
            return Replayed(id=history.id, type=history.type, state="raised", error=error)


def _chosen(workflow: object, history: History, where: str) -> Workflow[..., Any]:
    workflows: list[Any] = list(workflow) if isinstance(workflow, Iterable) else [workflow]
    for one in workflows:
        if not isinstance(one, Workflow):
            raise ConfigurationError(f"replay takes functions decorated with @workflow, not {one!r}")
        if history.type in (one.spec.name, *one.spec.also):
            chosen: Workflow[..., Any] = one
            return chosen
    names = ", ".join(repr(one.spec.name) for one in workflows)
    raise ConfigurationError(
        f"{where} is the history of a {history.type!r}, and this is {names}; give the workflow of that type, or name the "
        f'former type where it was renamed: @workflow(also=["{history.type}"])'
    )

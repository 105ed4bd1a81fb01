"""Onward: durable workflows in the database that the application already has.

Everything public is here. Names load their modules at first use, so that `import onward`, and with it `onward --version`,
costs a few milliseconds; type checkers read the imports below. tests/unit/test_public.py holds the three lists equal.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from onward._version import __version__

if TYPE_CHECKING:
    from onward._engine.replay.calls import ChildHandle
    from onward._engine.stepinfo import StepInfo
    from onward.client import AsyncClient, Client, run
    from onward.codec import Codec, PlainCodec
    from onward.context import (
        CurrentWorkflow,
        Signal,
        current,
        current_step,
        log,
        now,
        patched,
        progress,
        random,
        sleep,
        sleep_until,
        start,
        uuid4,
    )
    from onward.definitions import BoundWorkflow, Step, Workflow, call, step, workflow
    from onward.errors import (
        CodecError,
        ConfigurationError,
        DefinitionError,
        Fail,
        FatalStoreError,
        InTransactionalStep,
        LeaseLost,
        NonDeterminismError,
        NotAllowedInWorkflow,
        NotCommitted,
        NotInWorkflow,
        OnwardError,
        OutcomeUnknown,
        ResultTimeout,
        SchemaError,
        StepFailed,
        StepTimedOut,
        StoreConflict,
        StoreError,
        StoreImporting,
        StoreMoved,
        TransientStoreError,
        UsageError,
        WorkflowAlreadyEnded,
        WorkflowCancelled,
        WorkflowFailed,
        WorkflowIdConflict,
        WorkflowNotFound,
        WorkflowStuck,
        WorkflowTimedOut,
        WrongConnection,
        WrongEventLoop,
    )
    from onward.handle import AsyncHandle, Handle
    from onward.health import WorkerHealth
    from onward.info import ErrorInfo, JournalEntry, Wait, WorkflowInfo
    from onward.repair import AsyncRepair, Pruned, Repair
    from onward.retry import Duration, Retry, RetryLater
    from onward.worker import Worker

__all__ = [
    "AsyncClient",
    "AsyncHandle",
    "AsyncRepair",
    "BoundWorkflow",
    "ChildHandle",
    "Client",
    "Codec",
    "CodecError",
    "ConfigurationError",
    "CurrentWorkflow",
    "DefinitionError",
    "Duration",
    "ErrorInfo",
    "Fail",
    "FatalStoreError",
    "Handle",
    "InTransactionalStep",
    "JournalEntry",
    "LeaseLost",
    "NonDeterminismError",
    "NotAllowedInWorkflow",
    "NotCommitted",
    "NotInWorkflow",
    "OnwardError",
    "OutcomeUnknown",
    "PlainCodec",
    "Pruned",
    "Repair",
    "ResultTimeout",
    "Retry",
    "RetryLater",
    "SchemaError",
    "Signal",
    "Step",
    "StepFailed",
    "StepInfo",
    "StepTimedOut",
    "StoreConflict",
    "StoreError",
    "StoreImporting",
    "StoreMoved",
    "TransientStoreError",
    "UsageError",
    "Wait",
    "Worker",
    "WorkerHealth",
    "Workflow",
    "WorkflowAlreadyEnded",
    "WorkflowCancelled",
    "WorkflowFailed",
    "WorkflowIdConflict",
    "WorkflowInfo",
    "WorkflowNotFound",
    "WorkflowStuck",
    "WorkflowTimedOut",
    "WrongConnection",
    "WrongEventLoop",
    "__version__",
    "call",
    "current",
    "current_step",
    "log",
    "now",
    "patched",
    "progress",
    "random",
    "run",
    "sleep",
    "sleep_until",
    "start",
    "step",
    "uuid4",
    "workflow",
]

_HOMES = {
    "onward._engine.replay.calls": "ChildHandle",
    "onward._engine.stepinfo": "StepInfo",
    "onward.client": "AsyncClient Client run",
    "onward.codec": "Codec PlainCodec",
    "onward.context": (
        "CurrentWorkflow Signal current current_step log now patched progress random sleep sleep_until start uuid4"
    ),
    "onward.definitions": "BoundWorkflow Step Workflow call step workflow",
    "onward.errors": (
        "CodecError ConfigurationError DefinitionError Fail FatalStoreError InTransactionalStep LeaseLost "
        "NonDeterminismError NotAllowedInWorkflow NotCommitted NotInWorkflow OnwardError OutcomeUnknown ResultTimeout "
        "SchemaError StepFailed StepTimedOut StoreConflict StoreError StoreImporting StoreMoved TransientStoreError "
        "UsageError "
        "WorkflowAlreadyEnded WorkflowCancelled WorkflowFailed WorkflowIdConflict WorkflowNotFound WorkflowStuck "
        "WorkflowTimedOut WrongConnection WrongEventLoop"
    ),
    "onward.handle": "AsyncHandle Handle",
    "onward.health": "WorkerHealth",
    "onward.info": "ErrorInfo JournalEntry Wait WorkflowInfo",
    "onward.repair": "AsyncRepair Pruned Repair",
    "onward.retry": "Duration Retry RetryLater",
    "onward.worker": "Worker",
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Load the module of a public name at the name's first use."""
    module = _HOME_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'onward' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return __all__

"""Every exception that Onward raises on purpose, in one tree.

    OnwardError
    ├── ConfigurationError            a wrong URL, option, definition or environment; nothing was started
    │   ├── DefinitionError           a @workflow or @step that cannot work, found before it runs   (also a TypeError)
    │   └── SchemaError               the database has no schema, an unfinished one, or one this library cannot use
    ├── UsageError                    a call in a place or order in which it cannot work
    │   ├── NotInWorkflow             a durable call outside a workflow
    │   ├── NotAllowedInWorkflow      I/O, threads or executors inside a workflow: "do this in a step"
    │   ├── WrongEventLoop            an AsyncClient used on another loop, or a Client on a worker's loop
    │   ├── InTransactionalStep       a client write to the database whose only writer the running body holds
    │   ├── WrongConnection           a tx= that cannot carry the call: another database or kind, no transaction
    │   └── NotCommitted              asked about a start whose transaction is not committed, or was rolled back
    ├── CodecError                    a value that JSON cannot carry there and back
    ├── WorkflowNotFound              no workflow has this id
    ├── WorkflowAlreadyEnded          it has ended and cannot receive a signal any more
    ├── WorkflowIdConflict            the id belongs to another workflow type or to other arguments
    ├── WorkflowFailed                the outcome of a failed workflow, as its caller or parent sees it
    │   ├── WorkflowCancelled         … that was cancelled
    │   └── WorkflowTimedOut          … whose deadline passed
    ├── ResultTimeout                 result(timeout=) ended first; the workflow goes on   (also a TimeoutError)
    ├── StepFailed                    a step's error, as the workflow sees it, live exactly as on replay
    │   └── StepTimedOut              … because its time limit passed                      (also a TimeoutError)
    ├── NonDeterminismError           the code and the recorded history disagree
    ├── WorkflowStuck                 workflow code never came to rest
    ├── LeaseLost                     this worker no longer owns the workflow; the execution was dropped
    ├── StoreMoved                    the workflows of this database were moved to another one
    ├── StoreImporting                this database is the target of a copy that is not complete
    └── StoreError                    the database said no; one of four kinds only
        ├── TransientStoreError       nothing was written; trying again may succeed
        ├── OutcomeUnknown            a commit was sent and no answer came; look before writing again
        ├── StoreConflict             the data refuse this write (a constraint); trying again cannot help
        └── FatalStoreError           the database cannot be used as it is: read-only, full, corrupt, wrong file

    Fail, RetryLater                  raised BY user code, to end a workflow or to put a step off (see retry.py)

Data are on attributes; messages say what happened, the value, and what to do. This file imports nothing of Onward.
"""

from __future__ import annotations


class OnwardError(Exception):
    """Base of every error that Onward raises on purpose."""


class ConfigurationError(OnwardError):
    """A wrong URL, option, definition or environment; nothing was started."""


class DefinitionError(ConfigurationError, TypeError):
    """A workflow or step definition that cannot work, found before it runs."""


class SchemaError(ConfigurationError):
    """The database has no Onward schema, or one that this version of the library cannot use."""


class UsageError(OnwardError):
    """A call in a place or order in which it cannot work."""


class NotInWorkflow(UsageError):
    """A durable call was made outside a running workflow."""


class NotAllowedInWorkflow(UsageError):
    """Workflow code tried I/O, a thread or an executor; such work belongs into a step."""


class WrongEventLoop(UsageError):
    """A client was used on an event loop that it does not belong to."""


class InTransactionalStep(UsageError):
    """A client write to the very database whose only writer the running transactional step holds."""


class WrongConnection(UsageError):
    """A connection given as ``tx=`` that cannot carry the call: it is of another database, of a kind that this client cannot
    use, or has no open transaction that could be written in. Nothing was written."""


class NotCommitted(UsageError):
    """A handle was asked about a workflow whose start, in a caller's transaction, cannot be seen: that transaction is not
    committed yet, or it was rolled back.

    Attributes:
        workflow_id: its id.
    """

    def __init__(self, workflow_id: str) -> None:
        super().__init__(
            f"the start of workflow {workflow_id!r} is not committed: commit the transaction that was given as tx= first "
            "(if it was rolled back, there is no such workflow)"
        )
        self.workflow_id = workflow_id


class CodecError(OnwardError):
    """A value cannot be carried to JSON and back without loss.

    Attributes:
        where: what was being encoded or decoded, for instance ``result of step 'charge'``.
    """

    def __init__(self, message: str, *, where: str = "") -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.where = where


class WorkflowNotFound(OnwardError):
    """No workflow has this id in this database."""

    def __init__(self, workflow_id: str, database: str = "") -> None:
        place = f" in {database}" if database else ""
        super().__init__(f"no workflow has the id {workflow_id!r}{place}; check the id and the database URL")
        self.workflow_id = workflow_id


class WorkflowAlreadyEnded(OnwardError):
    """A signal was sent to a workflow that has ended.

    Attributes:
        workflow_id: its id. status: completed, failed or cancelled.
    """

    def __init__(self, workflow_id: str, status: str) -> None:
        super().__init__(f"workflow {workflow_id!r} is {status}; nothing can be sent to it any more")
        self.workflow_id = workflow_id
        self.status = status


class WorkflowIdConflict(OnwardError):
    """The id exists already with another workflow type or with other arguments.

    Attributes:
        workflow_id: the id.
        existing_type: the type of the workflow that has it.
        requested_type: the type of the refused start.
    """

    def __init__(self, workflow_id: str, existing_type: str, requested_type: str) -> None:
        if existing_type != requested_type:
            why = f"it is a {existing_type!r}, not a {requested_type!r}"
        else:
            why = f"that {existing_type!r} was started with other arguments"
        super().__init__(
            f"workflow id {workflow_id!r} is taken: {why}; use another id, or the same arguments to get that workflow"
        )
        self.workflow_id = workflow_id
        self.existing_type = existing_type
        self.requested_type = requested_type


class _RemoteError(OnwardError):
    """An error that happened elsewhere, rebuilt from what was recorded of it."""

    def __init__(self, subject: str, type_name: str, message: str, traceback: str = "") -> None:
        super().__init__(f"{subject} failed: {type_name}: {message}" if type_name else f"{subject} failed: {message}")
        self.type_name = type_name
        self.message = message
        self.traceback = traceback


class WorkflowFailed(_RemoteError):
    """The outcome of a workflow that failed.

    Attributes:
        workflow_id: its id.
        type_name: class name of the error that ended it.
        message: that error's text.
        traceback: that error's traceback as text, for people.
    """

    def __init__(self, workflow_id: str, type_name: str, message: str, traceback: str = "") -> None:
        super().__init__(f"workflow {workflow_id!r}", type_name, message, traceback)
        self.workflow_id = workflow_id


class WorkflowCancelled(WorkflowFailed):
    """The outcome of a workflow that was cancelled."""


class WorkflowTimedOut(WorkflowFailed):
    """The outcome of a workflow whose own deadline (``using(timeout=)``) passed."""


class ResultTimeout(OnwardError, TimeoutError):
    """``result(timeout=)`` ended before the workflow did; the workflow goes on."""

    def __init__(self, workflow_id: str, timeout_s: float) -> None:
        super().__init__(f"workflow {workflow_id!r} has no result after {timeout_s:g} s; it goes on running")
        self.workflow_id = workflow_id
        self.timeout_s = timeout_s


class StepFailed(_RemoteError):
    """A step's error as the workflow sees it, live exactly as on replay.

    Attributes:
        key: the step's key in the journal, for instance ``charge#2``.
        type_name: class name of the original error.
        message: its text.
        traceback: its traceback as text, for people; empty where it was not kept.
    """

    def __init__(self, key: str, type_name: str, message: str, traceback: str = "") -> None:
        super().__init__(f"step {key!r}", type_name, message, traceback)
        self.key = key


class StepTimedOut(StepFailed, TimeoutError):
    """A try of a step ran longer than its ``timeout`` and no further try was left."""


class NonDeterminismError(OnwardError):
    """The workflow's code and its recorded history disagree; the workflow waits for code that fits.

    Attributes:
        key: the journal key at which they part.
        recorded: what the history says there.
        called: what the code did there.
        location: ``file:line`` of the call, where known.
        seq: the journal entry's number.
    """

    def __init__(
        self, message: str, *, key: str = "", recorded: str = "", called: str = "", location: str = "", seq: int = 0
    ) -> None:
        super().__init__(message)
        self.key = key
        self.recorded = recorded
        self.called = called
        self.location = location
        self.seq = seq


class WorkflowStuck(OnwardError):
    """Workflow code never came to rest: a loop without a durable wait.

    Attributes:
        location: ``file:line`` that was running when the limit was reached.
    """

    def __init__(self, message: str, *, location: str = "") -> None:
        super().__init__(message)
        self.location = location


class LeaseLost(OnwardError):
    """This worker no longer owns the workflow: another took it over; the execution here was dropped."""


class StoreMoved(OnwardError):
    """The workflows of this database were moved to another one (``onward copy``); nothing is written here any more.

    Attributes:
        url: the database that was asked. moved_to: where its workflows are now; without a password.
    """

    def __init__(self, url: str, moved_to: str) -> None:
        super().__init__(f"the workflows of {url} were moved to {moved_to}: use that URL")
        self.url = url
        self.moved_to = moved_to


class StoreImporting(OnwardError):
    """This database is the target of a copy (``onward copy``) that is not complete; until then nothing can be done in it.

    Attributes:
        url: the database that was asked. copied_from: where its workflows come from; without a password.
    """

    def __init__(self, url: str, copied_from: str) -> None:
        super().__init__(
            f"the workflows of {copied_from} are being copied to {url}; try again once `onward copy` has ended "
            "(if it was interrupted, run it again)"
        )
        self.url = url
        self.copied_from = copied_from


class StoreError(OnwardError):
    """The database refused or failed; see the four subclasses, there are no others."""

    is_passing = False
    """Whether waiting may help."""


class TransientStoreError(StoreError):
    """Nothing was written; trying again may succeed (busy, connection lost before the commit, deadlock)."""

    is_passing = True


class OutcomeUnknown(StoreError):
    """A commit was sent and no answer came; the writer must look before it writes again."""

    is_passing = True


class StoreConflict(StoreError):
    """The data refuse this write; trying again cannot help."""


class FatalStoreError(StoreError):
    """The database cannot be used as it is (read-only, disk full, corrupt, not a database)."""


class Fail(OnwardError):
    """Raise this in a workflow or step to say that no further try or attempt can help.

    In a step it ends the step's tries; where it then leaves the workflow, the workflow is ``failed`` at once.
    """


__all__ = sorted(
    name
    for name, value in list(globals().items())
    if isinstance(value, type) and issubclass(value, OnwardError) and name[0] != "_"
)

"""Decorators wrap and do nothing else; calls mean what their place says; wrong definitions and options are typed errors."""

from __future__ import annotations

import asyncio
import functools
import inspect
import subprocess
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, cast

import msgspec
import pytest

from onward._engine.replay.commands import Raised, Returned, RunStep, StartChild
from onward._engine.replay.matching import Execution
from onward._engine.specs import StartOptions
from onward._store.records import Entry
from onward.definitions import BoundWorkflow, Step, Workflow, call, step, workflow
from onward.errors import ConfigurationError, DefinitionError, NotInWorkflow, OnwardError
from onward.retry import NO_RETRY, Retry


@step
def double(number: int) -> int:
    """Twice as much."""
    return 2 * number


@step
async def greet(name: str, *, greeting: str = "hello") -> str:
    return f"{greeting} {name}"


@step(transactional=True)
def load(connection: object, row: int) -> int:
    return row


@workflow
async def child(item: str, times: int = 1) -> str:
    return item * times


@workflow(name="parent", also=["old_parent"], queue="q", max_attempts=3, raises=KeyError, backoff=Retry(delay=2))
async def parent(number: int) -> int:
    return await double(number)


@workflow
async def declared(user_id: int) -> str: ...  # type: ignore[empty-body]  # a bare declaration


class Namespace:
    @staticmethod
    @step
    def outer_static(number: int) -> int:
        return number + 1

    @step
    @staticmethod
    def inner_static(number: int) -> int:
        return number + 2

    @workflow
    @staticmethod
    async def flow(number: int) -> int:
        return number + 3


def executed(body: Callable[[], Coroutine[Any, Any, Any]]) -> Execution:
    """An execution of a workflow with this body, run until it rests."""
    execution = Execution(workflow(body).spec, "{}", workflow_id="w", seed="0" * 32, started_at=0)
    execution.replay([])
    return execution


# ------------------------------------------------------------------ what the decorators make


def test_a_step_wraps_its_function() -> None:
    """The function is there as .fn, and its name, docstring and signature show."""
    assert isinstance(double, Step)
    assert double.fn(4) == 8
    assert (double.name, double.spec.name, double.spec.is_async) == ("double", "double", False)
    assert (double.__name__, double.__doc__) == ("double", "Twice as much.")  # type: ignore[attr-defined]  # as functools does
    assert list(inspect.signature(double).parameters) == ["number"]
    assert repr(double) == "<onward.Step 'double' of tests.unit.test_definitions.double>"
    assert greet.spec.is_async
    assert double.spec.retry is NO_RETRY


def test_a_workflow_wraps_its_function() -> None:
    """The spec holds what the decorator was told; options are those of using()."""
    assert isinstance(parent, Workflow)
    spec = parent.spec
    assert (parent.name, spec.also, spec.queue, spec.max_attempts) == ("parent", ("old_parent",), "q", 3)
    assert (spec.raises, spec.backoff, spec.module) == ((KeyError,), Retry(delay=2), __name__)
    assert parent.options == StartOptions()
    assert asyncio.run(child.fn("a", 2)) == "aa"
    assert asyncio.run(declared.fn(1)) is None
    assert repr(child.using(id="c", priority=2)) == (
        "<onward.Workflow 'child' of tests.unit.test_definitions.child using(id='c', priority=2)>"
    )
    assert repr(child.bind("a")) == "<onward.BoundWorkflow 'child' of tests.unit.test_definitions.child>"


def test_step_options_reach_the_spec() -> None:
    """Every option of @step is in the spec, durations in seconds."""

    @step(
        name="charge",
        retry=3,
        raises=(KeyError, ValueError),
        timeout=timedelta(minutes=1),
        check_args=False,
        on_cancel="wait",
    )
    def charging(amount: int) -> None: ...

    spec = charging.spec
    assert (spec.name, spec.retry, spec.raises, spec.timeout_s) == (
        "charge",
        Retry(tries=3),
        (KeyError, ValueError),
        60.0,
    )
    assert (spec.check_args, spec.on_cancel, spec.is_transactional, spec.key) == (False, "wait", False, None)


def test_definitions_start_nothing() -> None:
    """Importing definitions opens no file, starts no thread and resolves no hint."""
    script = (
        "import threading, sys\n"
        "from onward.definitions import step, workflow\n"
        "opened = []\n"
        "sys.addaudithook(lambda event, args: opened.append(args[0]) if event in ('open', 'socket.connect', 'sqlite3.connect')"
        " else None)\n"
        "@step\ndef f(a: 'Unknown') -> 'Unknown': ...\n"
        "@workflow\nasync def w(a: 'Unknown') -> 'Unknown': ...\n"
        "w.using(id='x').bind(1)\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "assert not opened, opened"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_using_gives_a_copy() -> None:
    """using() changes nothing but its copy, and adds up."""
    first = child.using(id="a", tags={"b": "1", "a": "2"}, timeout=timedelta(hours=1))
    second = first.using(queue="q", delay=5, partition="p/1", max_attempts=7)
    assert child.options == StartOptions()
    assert first.options == StartOptions(id="a", tags=(("a", "2"), ("b", "1")), timeout_s=3600.0)
    assert second.options == msgspec.structs.replace(
        first.options, queue="q", delay_s=5.0, partition="p/1", max_attempts=7
    )
    assert second.spec is child.spec


def test_run_at_is_an_instant() -> None:
    """run_at= is kept in microseconds, exactly, whatever its zone; it replaces a delay and the other way round."""
    moment = datetime(2026, 5, 1, 14, 0, 0, 123457, tzinfo=timezone(timedelta(hours=2)))
    options = child.using(delay=1).using(run_at=moment).options
    assert (options.run_at_us, options.delay_s) == (int(moment.timestamp()) * 1_000_000 + 123457, None)
    again = child.using(run_at=moment).using(delay=2).options
    assert (again.run_at_us, again.delay_s) == (None, 2.0)
    assert child.using(run_at=datetime(1969, 12, 31, tzinfo=UTC)).options.run_at_us == -86_400_000_000


def test_bind_keeps_options_and_arguments() -> None:
    """bind() is what start_many takes; wrong arguments are a TypeError there and then."""
    bound = child.using(id="a").bind("x", times=2)
    assert isinstance(bound, BoundWorkflow)
    assert (bound.spec, bound.options.id, bound.args, bound.kwargs) == (child.spec, "a", ("x",), {"times": 2})
    with pytest.raises(TypeError, match="workflow 'child': missing a required argument: 'item'"):
        child.bind()  # type: ignore[call-arg]  # the point


# ------------------------------------------------------------------ outside of workflows


def test_outside_a_step_runs_its_function() -> None:
    """Both kinds are awaitable; a `def` runs in a thread, since it may block."""

    @step
    def where() -> str:
        return threading.current_thread().name

    async def main() -> None:
        assert await double(2) == 4
        assert await greet("you", greeting="hi") == "hi you"
        assert await where() != threading.current_thread().name
        assert await call(len, "abc") == 3
        assert await call(greet, "you") == "hello you"
        assert await call(functools.partial(greet.fn, greeting="oh"), "you") == "oh you"
        assert await call(lambda: greet.fn("you")) == "hello you"
        assert await Namespace.outer_static(1) == 2
        assert await Namespace.inner_static(1) == 3

    asyncio.run(main())


def test_outside_a_step_raises_what_its_function_raises() -> None:
    """No StepFailed where nothing is recorded."""

    @step(retry=3)
    def broken() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        asyncio.run(broken())


def test_wrong_arguments_are_an_error_at_the_call() -> None:
    """A step's call refuses wrong arguments before anything is awaited."""
    with pytest.raises(TypeError, match="step 'double': missing a required argument: 'number'"):
        _ = double()  # type: ignore[call-arg]  # the point


def test_a_forgotten_await_is_reported() -> None:
    """A step that is called and not awaited warns, as any coroutine does."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _ = double(1)
        del _
    assert "coroutine 'double' was never awaited" in str(caught[0].message)


def test_a_workflow_called_outside_raises_at_the_call() -> None:
    """It would run without durability: the error says how to start it."""
    calls: list[Callable[[], Any]] = [lambda: child("a"), lambda: child.using(id="x")("a"), cast("Any", child)]
    for call_it in calls:
        with pytest.raises(NotInWorkflow, match=r"start it with a client \(`client.start\(child, …\)`\), or call .fn"):
            call_it()


def test_a_transactional_step_outside_names_the_cure() -> None:
    """Without a workflow there is no transaction to hand it."""
    with pytest.raises(NotInWorkflow, match=r"call \.fn with a connection"):
        _ = load(1)
    assert load.fn(None, 1) == 1


def test_a_step_inside_a_step_runs_inline() -> None:
    """An async step that awaits another just runs it."""

    @step
    async def outer() -> int:
        return await double(4)

    assert asyncio.run(outer()) == 8


# ------------------------------------------------------------------ inside workflows


def test_inside_a_step_call_is_a_command() -> None:
    """The call becomes a command under the step's key, with a digest of its arguments."""
    reached: list[int] = []

    async def body() -> int:
        result = await double(3)
        reached.append(result)
        return result

    execution = executed(body)
    (command,) = execution.take_commands()
    assert isinstance(command, RunStep)
    assert (command.key, command.spec, command.args, command.arguments) == ("double", double.spec, (3,), '{"number":3}')
    execution.deliver(Entry(1, "double", "step", 5, result="6", digest=command.digest))
    assert reached == [6]
    assert execution.ending == Returned("6")


def test_inside_a_key_can_be_chosen() -> None:
    """using(key=) names the journal entry."""

    async def body() -> None:
        await double.using(key="chosen")(3)

    (command,) = executed(body).take_commands()
    assert isinstance(command, RunStep)
    assert command.key == "chosen"
    assert repr(double.using(key="chosen")).endswith("using(key='chosen')>")


def test_inside_any_callable_can_be_recorded() -> None:
    """call() records what is called under its own name; with options through step()."""

    async def body() -> None:
        await asyncio.gather(
            call(len, "abc"), call(double, 1), step(name="renamed", retry=2)(max)(1, 2), call(Counter(), 5)
        )

    commands = executed(body).take_commands()
    assert [command.key for command in commands if isinstance(command, RunStep)] == [
        "len",
        "double",
        "renamed",
        "Counter",
    ]


class Counter:
    def __call__(self, number: int) -> int:
        return number


def test_inside_a_workflow_call_starts_a_child() -> None:
    """The call becomes a start command; the child's id comes from the parent's."""

    async def body() -> None:
        await child.using(queue="q")("a", times=2)

    (command,) = executed(body).take_commands()
    assert isinstance(command, StartChild)
    assert (command.child_id, command.payload, command.options.queue) == ("w/child", '{"item":"a","times":2}', "q")


def test_inside_a_useless_result_hint_is_found_before_the_step_runs() -> None:
    """A hint that cannot be resolved is an error at the call: no effect has happened yet."""

    async def body() -> None:
        await step(unresolvable)()

    execution = executed(body)
    assert isinstance(execution.ending, Raised)
    assert isinstance(execution.ending.error, DefinitionError)
    assert execution.take_commands() == []


def unresolvable() -> Missing:  # type: ignore[name-defined]  # noqa: F821  # the point
    raise NotImplementedError


def test_inside_a_workflow_is_no_step() -> None:
    """call(workflow) says what to write instead."""

    async def body() -> None:
        await call(child, "a")

    ending = executed(body).ending
    assert isinstance(ending, Raised)
    assert "await its call directly" in str(ending.error)


# ------------------------------------------------------------------ wrong definitions

untyped_step: Any = step
untyped_workflow: Any = workflow
untyped_double: Any = double
untyped_child: Any = child


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


class Service:
    def method(self, number: int) -> int:
        return number

    async def async_method(self, number: int) -> int:
        return number

    @classmethod
    def class_method(cls) -> None: ...


@pytest.mark.parametrize(
    ("decorate", "says"),
    [
        (lambda: untyped_step(Service.method), "instance method 'Service.method'.*add @staticmethod"),
        (lambda: untyped_workflow(Service.async_method), "instance method"),
        (lambda: untyped_step(vars(Service)["class_method"]), "use @staticmethod"),
        (lambda: untyped_step(generator), "generator 'generator'.*return a list"),
        (lambda: untyped_step(async_generator), "generator"),
        (lambda: untyped_workflow(async_generator), "generator"),
        (lambda: untyped_workflow(double.fn), "not async: write `async def double"),
        (lambda: untyped_workflow(double), "decorated already"),
        (lambda: untyped_step(child), "decorated already"),
        (lambda: untyped_step("name"), "takes a function, not 'name'"),
        (lambda: untyped_workflow(3), "takes a function, not 3"),
        (lambda: untyped_step(on_cancel="ignore")(len), "on_cancel="),
        (lambda: untyped_workflow(also="old")(child.fn), r"also=\['old'\]"),
    ],
)
def test_what_cannot_be_a_definition_is_refused(decorate: Callable[[], Any], says: str) -> None:
    """A DefinitionError, which is a TypeError too, with the cure."""
    with pytest.raises(DefinitionError, match=says) as caught:
        decorate()
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, OnwardError)


def test_a_definition_is_no_method() -> None:
    """A step in a class body that is looked up on an instance is refused; on the class it works."""

    class Late:
        @untyped_step  # type: ignore[untyped-decorator]  # past the type checker, which refuses it too
        def run(number: int) -> int:  # noqa: N805  # a function in a class body
            return number

    assert asyncio.run(Late.run(3)) == 3
    with pytest.raises(DefinitionError, match=r"looked up on an instance of .*Late.*@staticmethod"):
        _ = Late().run
    assert asyncio.run(Namespace().inner_static(1)) == 3
    assert asyncio.run(Namespace().outer_static(1)) == 2
    assert Namespace().flow is Namespace.flow


def test_a_bound_method_of_a_real_object_is_fine_in_a_call() -> None:
    """call(client.fetch, …) records a method of an object that the workflow has at hand."""
    assert asyncio.run(call(Service().method, 3)) == 3


@pytest.mark.parametrize(
    "decorate",
    [
        lambda: untyped_step(name="")(len),
        lambda: untyped_step(name="a/b")(len),
        lambda: untyped_step(name="a#2")(len),
        lambda: untyped_step(name=5)(len),
        lambda: untyped_step(retry=0)(len),
        lambda: untyped_step(retry=True)(len),
        lambda: untyped_step(retry="3")(len),
        lambda: untyped_step(timeout=-1)(len),
        lambda: untyped_step(timeout=float("nan"))(len),
        lambda: untyped_step(raises=(ValueError("x"),))(len),
        lambda: untyped_step(raises=KeyboardInterrupt)(len),
        lambda: untyped_workflow(queue="a\nb")(child.fn),
        lambda: untyped_workflow(max_attempts=0)(child.fn),
        lambda: untyped_workflow(max_attempts=True)(child.fn),
        lambda: untyped_workflow(backoff=3)(child.fn),
        lambda: untyped_workflow(also=[""])(child.fn),
        lambda: untyped_double.using(key="a/b"),
        lambda: untyped_double.using(key="a#2"),
        lambda: untyped_double.using(key=""),
        lambda: untyped_child.using(id=""),
        lambda: untyped_child.using(id="a/b"),
        lambda: untyped_child.using(id="x" * 201),
        lambda: untyped_child.using(id="a\x00"),
        lambda: untyped_child.using(id="\ud800"),
        lambda: untyped_child.using(id=7),
        lambda: untyped_child.using(queue=""),
        lambda: untyped_child.using(priority=1.5),
        lambda: untyped_child.using(priority=2**31),
        lambda: untyped_child.using(partition=""),
        lambda: untyped_child.using(delay=-1),
        lambda: untyped_child.using(delay="1h"),
        lambda: untyped_child.using(delay=float("inf")),
        lambda: untyped_child.using(delay=timedelta.max),
        lambda: untyped_child.using(delay=1, run_at=datetime.now(UTC)),
        lambda: untyped_child.using(run_at=datetime(2026, 1, 1)),  # noqa: DTZ001
        lambda: untyped_child.using(run_at=5),
        lambda: untyped_child.using(timeout=timedelta(seconds=-1)),
        lambda: untyped_child.using(tags={"a": 1}),
        lambda: untyped_child.using(tags={"": "a"}),
        lambda: untyped_child.using(tags=["a"]),
        lambda: untyped_child.using(max_attempts=0),
    ],
)
def test_impossible_options_are_refused_at_the_call(decorate: Callable[[], Any]) -> None:
    """Every wrong option is a ConfigurationError when it is written, not when it is used."""
    with pytest.raises(ConfigurationError) as caught:
        decorate()
    assert len(str(caught.value)) > 20


def test_ids_may_hold_any_printable_text() -> None:
    """1 to 200 printable characters, any script."""
    for text in ("a", "x" * 200, "order:42#7 ü 中"):
        assert child.using(id=text).options.id == text

"""Arguments are bound as a call binds them, digested alike in every process, and stored as JSON by name."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from onward.codec import ArgumentsCodec, digest_text
from onward.errors import CodecError, DefinitionError
from tests.unit.codec_values import (
    Colour,
    Item,
    Model,
    Opaque,
    Point,
    everything,
    hint_refused,
    no_hints,
    plain,
    with_pool,
)

WHEN = datetime(2026, 3, 1, 12, 30, 15, 123456, tzinfo=UTC)


def arguments(fn: Callable[..., Any], **options: Any) -> ArgumentsCodec:
    return ArgumentsCodec(fn, f"step {getattr(fn, '__name__', 'f')!r}", **options)


def test_position_and_keyword_give_one_digest() -> None:
    """The digest is over parameter names, however the values were passed."""
    codec = arguments(plain)
    first = codec.digest((1, "b"), {})
    assert first == codec.digest((1,), {"template": "b"}) == codec.digest((), {"template": "b", "user_id": 1})
    assert first[1] == '{"template":"b","user_id":1}'
    assert first[0] is not None
    assert len(first[0]) == 16


def test_defaults_are_not_part_of_the_digest() -> None:
    """A parameter added with a default leaves recorded digests as they are."""

    def before(user_id: int) -> None: ...

    assert arguments(plain).digest((1,), {}) == arguments(before).digest((1,), {})
    assert arguments(plain).digest((1,), {}) != arguments(plain).digest((1, "x"), {})


def test_other_values_give_another_digest() -> None:
    """Digests tell values, names and places apart."""
    codec = arguments(everything)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((1, Item("a"), (1,)), {}),
        ((1, Item("b"), (1,)), {}),
        ((1, Item("a"), (1, 2)), {}),
        ((1, Item("a"), (1,), Colour.RED), {}),
        ((1, Item("a"), (1,)), {"d": Point(1, 1.0)}),
        ((1, Item("a"), (1,)), {"e": WHEN}),
        ((1, Item("a"), (1,)), {"a": WHEN}),
    ]
    digests = [codec.digest(args, kwargs)[0] for args, kwargs in calls]
    assert None not in digests
    assert len(set(digests)) == len(calls)


def test_digests_are_the_same_in_every_process() -> None:
    """Sets, mixed sets, dicts with int keys and their order do not depend on the hash seed."""
    script = (
        "from onward.codec import ArgumentsCodec\n"
        "def f(a, b, c, d): ...\n"
        "strings = {chr(97 + i) * 3 for i in range(20)}\n"
        "value = ({'x': strings}, {1, 'a', None, (2, 'b')}, {1: strings, 'z': 1}, frozenset(strings))\n"
        "print(ArgumentsCodec(f, 'f').digest(value, {})[0])"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", script],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(seen) == 1
    assert len(seen.pop()) == 17


def test_dict_order_does_not_change_the_digest() -> None:
    """Dicts that are equal have one digest."""
    assert arguments(no_hints).digest(({"a": 1, "b": 2},), {}) == arguments(no_hints).digest(({"b": 2, "a": 1},), {})


def test_models_have_digests_and_other_objects_have_none() -> None:
    """Pydantic models are data; clients, locks, cycles and surrogates give no digest."""
    cycle: list[Any] = []
    cycle.append(cycle)
    codec = arguments(no_hints)
    assert codec.digest((Model(number=1, when=WHEN),), {})[0] is not None
    others: tuple[Any, ...] = (Opaque(), threading.Lock(), "\ud800", cycle, [Opaque()], iter([]))
    for value in others:
        assert codec.digest((value,), {}) == (None, None)


def test_the_text_of_arguments_is_cut_to_a_kilobyte() -> None:
    """The journal keeps the beginning of the text, cut between characters; the digest covers all."""
    codec = arguments(no_hints)
    digest, text = codec.digest(("ä" * 2000,), {})
    assert text is not None
    assert 1020 <= len(text.encode()) <= 1024
    assert digest != codec.digest(("ä" * 2001,), {})[0]


@pytest.mark.parametrize(
    ("fn", "args", "kwargs"),
    [
        (plain, (), {}),
        (plain, (1, 2, 3, 4), {}),
        (plain, (1,), {"user_id": 1}),
        (plain, (1,), {"unknown": 1}),
        (everything, (1,), {}),
        (lambda *, key: key, (), {}),
        (lambda *, key: key, (1,), {}),
    ],
)
def test_wrong_arguments_are_the_type_error_of_a_call(fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """What a call would refuse, bind(), digest() and encode() refuse, naming whose arguments they are."""
    with pytest.raises(TypeError):
        fn(*args, **kwargs)
    codec = arguments(fn)
    for use in (codec.bind, codec.digest, codec.encode):
        with pytest.raises(TypeError, match=r"^step '"):
            use(args, kwargs)


def test_the_connection_is_no_part_of_the_call() -> None:
    """skip_first= leaves the first parameter out."""
    codec = arguments(with_pool, skip_first=True)
    codec.bind((1,), {})
    assert codec.digest((1,), {})[1] == '{"number":1}'
    with pytest.raises(TypeError):
        codec.bind((1, 2), {})


def test_builtins_without_a_signature_are_accepted() -> None:
    """Where Python knows no signature, nothing is checked and the digest takes places and names."""
    codec = arguments(dict)
    codec.bind((1, 2, 3), {"x": 1})
    assert codec.digest(([(1, 2)],), {"b": 1})[1] == '{"args":[[[1,2]]],"kwargs":{"b":1}}'


@pytest.mark.parametrize(
    ("fn", "args", "kwargs", "text"),
    [
        (plain, (1,), {}, '{"user_id":1}'),
        (plain, (1, "b"), {}, '{"user_id":1,"template":"b"}'),
        (plain, (), {"template": "b", "user_id": 1}, '{"user_id":1,"template":"b"}'),
        (
            everything,
            (1, Item("a"), (1, 2), Colour.RED, Colour.BLUE),
            {"d": Point(1, 2.0), "e": WHEN, "a": WHEN},
            None,
        ),
        (everything, (1, Item("a"), (1, 2)), {}, None),
        (everything, (1, Item("a")), {"c": (1, 2)}, None),
        (no_hints, ([1, {"a": None}],), {"b": 3}, '{"a":[1,{"a":null}],"b":3}'),
    ],
)
def test_workflow_arguments_come_back(fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], text: str | None) -> None:
    """Arguments go to a JSON object by name and come back as a call that binds alike."""
    codec = arguments(fn, is_stored=True)
    payload = codec.encode(args, kwargs)
    assert isinstance(json.loads(payload), dict)
    assert text is None or payload == text
    back_args, back_kwargs = codec.decode(payload)
    signature = inspect.signature(fn)
    assert signature.bind(*back_args, **back_kwargs).arguments == signature.bind(*args, **kwargs).arguments


def test_arguments_of_a_command_line_may_be_an_array() -> None:
    """A JSON array is arguments by position, decoded with the hints."""
    codec = arguments(everything)
    args, kwargs = codec.decode(json.dumps([1, {"name": "a"}, [1, 2], "red", "blue"]))
    assert (args, kwargs) == ((1, Item("a"), (1, 2), Colour.RED, Colour.BLUE), {})
    args, _ = arguments(plain).decode('[1, "b", null, "surplus"]')
    with pytest.raises(TypeError):
        plain(*args)
    with pytest.raises(CodecError, match="argument 'user_id' of step 'plain'"):
        arguments(plain).decode('["x"]')


def test_what_the_function_does_not_know_reaches_the_call() -> None:
    """A payload with other names makes the call raise its own TypeError."""
    args, kwargs = arguments(plain).decode('{"removed":[1],"user_id":1}')
    with pytest.raises(TypeError, match="removed"):
        plain(*args, **kwargs)
    args, kwargs = arguments(plain).decode("{}")
    with pytest.raises(TypeError, match="user_id"):
        plain(*args, **kwargs)


@pytest.mark.parametrize("text", ["", "7", "null", "{", '["a"', "\ud800"])
def test_arguments_that_are_no_object_are_refused(text: str) -> None:
    """Anything but a JSON object or array is a CodecError."""
    with pytest.raises(CodecError, match="must be a JSON object or array"):
        arguments(plain).decode(text)


def test_arguments_that_do_not_fit_name_the_parameter() -> None:
    """The error says which argument of which function."""
    with pytest.raises(CodecError, match="argument 'user_id' of step 'plain': 'x' does not fit the annotation int"):
        arguments(plain).encode(("x",), {})
    with pytest.raises(CodecError, match="argument 'a' of step 'no_hints'"):
        arguments(no_hints).encode(((1, 2),), {})
    with pytest.raises(CodecError, match="more than the 2,000,000 allowed"):
        arguments(no_hints).encode(("x" * 1_500_000, "x" * 1_500_000), {})


def test_a_start_always_has_a_digest() -> None:
    """Where the arguments have no digest of their own, the payload's stands in."""

    def takes(number: complex) -> None: ...

    takes.__annotations__ = {"number": complex}
    payload, digest = arguments(takes).encode_with_digest((2 + 3j,), {})
    assert digest == digest_text(payload)
    assert arguments(plain).encode_with_digest((1,), {})[1] == arguments(plain).digest((1,), {})[0]


def test_only_stored_arguments_are_resolved() -> None:
    """A step may take what JSON cannot carry; a workflow may not."""
    arguments(with_pool).resolve()
    arguments(hint_refused).resolve()
    with pytest.raises(DefinitionError, match="parameter 'pool'"):
        arguments(with_pool, is_stored=True).resolve()
    with pytest.raises(DefinitionError, match="Opaque"):
        arguments(hint_refused, is_stored=True).resolve()
    arguments(everything, is_stored=True).resolve()

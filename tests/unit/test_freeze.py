"""A step sees its arguments as they were at the call: data are copied, everything else is passed on."""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onward.codec import ArgumentsCodec
from onward.errors import CodecError
from tests.unit.codec_values import (
    Holder,
    Item,
    Model,
    Opaque,
    Person,
    Point,
    no_hints,
)

WHEN = datetime(2026, 3, 1, 12, 30, 15, 123456, tzinfo=UTC)


def arguments(fn: Callable[..., Any], **options: Any) -> ArgumentsCodec:
    return ArgumentsCodec(fn, f"step {getattr(fn, '__name__', 'f')!r}", **options)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_data_are_copied_at_the_call() -> None:
    """What the workflow changes afterwards does not reach the body."""
    shared = ["s"]
    values: list[Any] = [
        [1, [2]],
        {"a": {"b": [1]}},
        {1, 2},
        ([1],),
        bytearray(b"x"),
        Item("a", tags={"x"}),
        Point(1, 2.0, "a"),
        Person("a", UUID(int=1)),
        Model(number=1, when=WHEN, nested=[(1, "a")]),
        deque([[1]], maxlen=3),
        defaultdict(list, a=[1]),
        OrderedDict(a=[1]),
        Holder([1, {"deep": Holder([2])}]),
        [shared, shared],
    ]
    before = repr(values)
    copies, _ = arguments(no_hints).freeze((values,), {})
    values[0][1].append(3)
    values[1]["a"]["b"].clear()
    values[2].add(3)
    values[3][0].append(2)
    values[4].append(1)
    values[5].tags.add("y")
    values[6].label = "b"
    values[7].name = "b"
    values[8].nested.append((2, "b"))
    values[9][0].append(2)
    values[10]["a"].append(2)
    values[11]["a"].append(2)
    values[12].anything[1]["deep"].anything.append(3)
    shared.append("t")
    assert repr(copies[0]) == before
    assert copies[0][13][0] is copies[0][13][1]
    assert copies[0][9].maxlen == 3


def test_other_objects_are_passed_on_as_they_are() -> None:
    """Clients, pools and what holds them reach the step themselves, also inside containers."""
    client = Opaque()
    holder = Holder([threading.Lock()])
    args, kwargs = arguments(no_hints).freeze(([client], {"c": (client, 1)}, holder), {"b": client})
    assert args[0][0] is client
    assert args[1]["c"][0] is client
    assert args[2] is holder
    assert kwargs["b"] is client


def test_scalars_cost_no_copy() -> None:
    """Arguments that cannot change are passed on in the same tuple."""
    args = (1, "a", None, WHEN, UUID(int=1))
    assert arguments(no_hints).freeze(args, {})[0] is args
    inner = (1, ("a", b"b"))
    assert arguments(no_hints).freeze((inner,), {"b": 1})[0][0] is inner


def test_cycles_are_copied_and_endless_depth_is_refused() -> None:
    """A list that holds itself is copied once; what is too deep to copy is a CodecError."""
    cycle: list[Any] = [1]
    cycle.append(cycle)
    (copied,), _ = arguments(no_hints).freeze((cycle,), {})
    assert copied is not cycle
    assert copied[1] is copied
    with pytest.raises(CodecError, match="nested too deep"):
        arguments(no_hints).freeze((nested(100_000),), {})


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(JSON_VALUES, JSON_VALUES)
def test_frozen_copies_are_equal(first: Any, second: Any) -> None:
    """A copy equals its original and has its digest."""
    codec = arguments(no_hints)
    args, kwargs = codec.freeze((first,), {"b": second})
    assert (args, kwargs) == ((first,), {"b": second})
    assert codec.digest(args, kwargs) == codec.digest((first,), {"b": second})

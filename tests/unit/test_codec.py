"""Values survive JSON equal, or are refused with the cure before any I/O."""

from __future__ import annotations

import asyncio
import builtins
import functools
import json
import math
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, NoReturn
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onward.codec import MAX_DEPTH, PlainCodec, ValueCodec
from onward.errors import CodecError, DefinitionError
from tests.unit.codec_values import (
    ByIdentity,
    Colour,
    Holder,
    Item,
    Model,
    Opaque,
    Options,
    Pair,
    Person,
    Point,
    Renamed,
    hint_refused,
    no_hints,
    plain,
    result_unresolvable,
    with_pool,
)

WHEN = datetime(2026, 3, 1, 12, 30, 15, 123456, tzinfo=UTC)
NAN = float("nan")


def carried(value: object, hint: object = Any) -> Any:
    """The value that a workflow would receive."""
    codec = ValueCodec(hint, "result of step 'f'")
    text = codec.encode(value)
    json.loads(text)
    return codec.decode(text)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (None, Any),
        (None, None),
        (True, Any),
        (7, int),
        (2**70, int),
        (-(2**63) - 1, Any),
        (1.5, float),
        (5, float),
        ("säge \U0001f600 \x00", str),
        ("plain", str | None),
        ({"a": [1, 2.5, None, {"b": True}]}, Any),
        ({1: "a"}, dict[int, str]),
        ((1, "a"), tuple[int, str]),
        ([(1, 2)], list[tuple[int, ...]]),
        ({3, 1}, set[int]),
        (frozenset({"a"}), frozenset[str]),
        (b"\x00\xff", bytes),
        (WHEN, datetime),
        (date(2026, 3, 1), date),
        (timedelta(days=2, microseconds=5), timedelta),
        (Decimal("1.10"), Decimal),
        (UUID(int=5), UUID),
        (Colour.RED, Colour),
        (Item("a", Decimal("1.5"), {"x"}, WHEN), Item),
        (Point(1, 2.0), Point),
        (Person("a", UUID(int=1)), Person),
        (Model(number=1, when=WHEN, nested=[(1, "a")]), Model),
        (Renamed(outerName=3), Renamed),
        ([Model(number=1, when=WHEN)], list[Model]),
        (2 + 3j, complex),
        (Pair(1, "a"), Pair),
        ({"deep": {1: [b"x"]}}, Options),
        ([Item("a")], list[Item] | None),
        ([1, 2], list[int] | set[str]),
    ],
    ids=repr,
)
def test_values_come_back_equal(value: object, hint: object) -> None:
    """A value under a fitting hint comes back equal and of its class."""
    back = carried(value, hint)
    assert back == value
    assert type(back) is type(value) or hint is float


@pytest.mark.parametrize(
    ("value", "hint", "says"),
    [
        ((1, 2), Any, "annotate it as a tuple"),
        ({"a": [(1, 2)]}, Any, "at ['a'][0] (1, 2) would come back as [1, 2]"),
        (WHEN, Any, "annotate it with its class, `datetime`"),
        ([Decimal("1.0")], Any, "`Decimal`"),
        ({3}, Any, "annotate it as `set[…]`"),
        (b"x", Any, "`bytes`"),
        (UUID(int=1), Any, "`UUID`"),
        (Item("a"), Any, "`Item`"),
        (Point(1, 2.0), dict, "`Point`"),
        ({1: "a"}, Any, "`dict[int, …]`"),
        ({1: "a"}, dict[str, str], "`dict[int, …]`"),
        (Holder((1,)), Holder, "at .anything (1,) would come back as [1]"),
        (Holder(NAN), Holder, "at .anything nan"),
        (NAN, Any, "JSON has no NaN or infinity"),
        (NAN, float, "nan cannot be JSON, which has no NaN or infinity: use None"),
        ([[1.0, NAN]], list[list[float]], "nan cannot be JSON, which has no NaN or infinity: use None"),
        (math.inf, float, "inf cannot be JSON, which has no NaN or infinity"),
        (-math.inf, float | None, "JSON has no NaN or infinity"),
        ([NAN], list[Any], "at [0] nan"),
        (["\ud800"], Any, "lone surrogate"),
        ("\ud800", str, "lone surrogate"),
        (Opaque(), Any, "cannot be JSON"),
        (5, None, "does not fit the annotation None"),
        ("5", int, "does not fit the annotation int"),
        (True, int, "does not fit the annotation int"),
        (None, str, "does not fit the annotation str"),
        (ByIdentity(1, (2,)), ByIdentity, "at .inner (2,)"),
        (Model.model_construct(number=1, when="x"), Model, "cannot be JSON"),
        (nested(MAX_DEPTH + 1), Any, f"deeper than {MAX_DEPTH}"),
        (nested(100_000), Any, f"deeper than {MAX_DEPTH}"),
        ("x" * 2_000_000, str, "2,000,002 bytes"),
    ],
    ids=lambda value: repr(value)[:40] if not isinstance(value, list) else "list",
)
def test_lossy_values_are_refused_with_the_cure(value: object, hint: object, says: str) -> None:
    """What would not come back equal is a CodecError that names the place and the cure."""
    with pytest.raises(CodecError) as caught:
        ValueCodec(hint, "result of step 'f'").encode(value)
    assert says in str(caught.value)
    assert caught.value.where == "result of step 'f'"


def test_huge_integers_are_refused() -> None:
    """An integer that Python itself would not print is a CodecError."""
    with pytest.raises(CodecError, match=r"cannot be JSON|does not fit"):
        ValueCodec(int, "x").encode(10**5000)


def test_the_deepest_allowed_value_is_readable_from_a_deep_stack() -> None:
    """What may be written can be read with little stack left."""
    codec = ValueCodec(Any, "x")
    text = codec.encode(nested(MAX_DEPTH))

    def below(frames: int) -> Any:
        return codec.decode(text) if frames == 0 else below(frames - 1)

    assert below(500) == nested(MAX_DEPTH)


def test_brackets_in_strings_and_many_small_lists_are_not_deep() -> None:
    """Depth is counted outside of strings, and length is not depth."""
    values: tuple[Any, ...] = (
        "[" * 5000,
        ['\\"[' * 300],
        [{"a": []} for _ in range(2000)],
        {'"[{' * 100 + "\\": ["\\", '"' * 300]},
    )
    for value in values:
        assert carried(value) == value


def test_a_smaller_limit_can_be_set() -> None:
    """max_bytes= is the largest text of one value."""
    codec = ValueCodec(Any, "x", max_bytes=1000)
    assert len(codec.encode("x" * 998)) == 1000
    with pytest.raises(CodecError, match="1,001 bytes"):
        codec.encode("x" * 999)


def test_the_repeated_hour_of_a_time_zone_is_carried() -> None:
    """In autumn's repeated hour `==` between zones is false, but the instant is the same."""
    when = datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin"))
    assert carried(when, datetime).timestamp() == when.timestamp()
    assert carried([when], list[datetime])[0].timestamp() == when.timestamp()


def test_classes_that_compare_by_identity_are_compared_by_their_fields() -> None:
    """A dataclass without `==` is no reason to refuse it."""
    back = carried([ByIdentity(1, {"a": ByIdentity(2).number})], list[ByIdentity])
    assert (back[0].number, back[0].inner) == (1, {"a": 2})


class Unequal(Point):
    """Its `==` fails, as an array's does."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("the truth value is ambiguous")

    __hash__ = None  # type: ignore[assignment]  # as Python itself writes it


def test_a_comparison_that_raises_does_not_escape() -> None:
    """An `==` that raises has no say; the fields decide."""
    assert carried(Unequal(1, 2.0), Unequal).x == 1
    with pytest.raises(CodecError, match="`Unequal`"):
        ValueCodec(Any, "x").encode(Unequal(1, 2.0))


class BadRepr:
    def __repr__(self) -> str:
        raise ValueError


def test_a_broken_repr_does_not_hide_the_error() -> None:
    """The message is made even where repr() raises."""
    with pytest.raises(CodecError, match=r"<BadRepr, whose repr\(\) raises ValueError> cannot be JSON"):
        ValueCodec(Any, "x").encode(BadRepr())


def test_what_was_recorded_must_fit_the_hint() -> None:
    """Stored JSON that no longer fits the annotation is a CodecError that says so."""
    with pytest.raises(CodecError, match="the annotation must accept what earlier code recorded"):
        ValueCodec(int, "result of step 'f'").decode('"seven"')
    with pytest.raises(CodecError, match="does not fit"):
        ValueCodec(Any, "x").decode('{"a":')


# ------------------------------------------------------------------ hints


def test_hints_are_looked_up_at_first_use() -> None:
    """A codec is made without resolving anything; the first encode does it."""
    codec = ValueCodec.of(result_unresolvable, "return", "result of step 'g'")
    assert not codec.is_resolved
    for use in (codec.resolve, lambda: codec.encode(1), lambda: codec.decode("1")):
        with pytest.raises(DefinitionError) as caught:
            use()
        assert "result of step 'g': the type hint 'Server' of the result cannot be resolved" in str(caught.value)
        assert "TYPE_CHECKING" in str(caught.value)


def test_one_bad_hint_does_not_spoil_the_others() -> None:
    """A parameter that only the type checker knows leaves the result usable."""
    codec = ValueCodec.of(with_pool, "return", "x")
    codec.resolve()
    assert codec.is_resolved
    assert codec.encode([1]) == "[1]"


def test_a_hint_that_nobody_knows_names_the_cure() -> None:
    """Neither msgspec nor pydantic: a DefinitionError that says what to annotate instead."""
    with pytest.raises(
        DefinitionError, match=r"annotated Opaque cannot be stored as JSON .* annotate plain data, a dataclass"
    ):
        ValueCodec.of(hint_refused, "return", "x").resolve()


def test_without_pydantic_the_cure_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pydantic is missing, the error says how to get it."""
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "pydantic":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(DefinitionError, match="pip install pydantic"):
        ValueCodec(Model, "x").resolve()


def test_pydantic_is_not_imported_for_plain_hints() -> None:
    """The codec costs no import of pydantic where msgspec knows the hint."""
    script = (
        "import sys; from typing import Any; from onward.codec import ValueCodec\n"
        "[ValueCodec(hint, 'x').resolve() for hint in (Any, int, dict[str, list[int]], object)]\n"
        "assert 'pydantic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


async def returns_text() -> str:
    return ""


def returns_awaitable() -> asyncio.Future[str] | Any:
    return None


def never() -> NoReturn:
    raise NotImplementedError


class Service:
    def __call__(self, number: int) -> tuple[int, int]:
        return number, number

    def method(self, number: int) -> tuple[int, int]:
        return number, number


@pytest.mark.parametrize(
    ("fn", "value"),
    [
        (returns_text, "a"),
        (never, {"a": 1}),
        (no_hints, 1),
        (Service(), (1, 2)),
        (Service().method, (1, 2)),
        (functools.partial(Service().method, 1), (1, 2)),
        (functools.lru_cache(plain), {1: Item("a")}),
        (Item, Item("a")),
        (len, 3),
        (int, 3),
        (lambda: None, "any"),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_results_of_every_kind_of_callable(fn: Callable[..., Any], value: object) -> None:
    """The result's hint is found behind methods, partials, wrappers, classes and builtins."""
    codec = ValueCodec.of(fn, "return", "x")
    assert codec.decode(codec.encode(value)) == value


def test_the_default_payload_codec_changes_nothing() -> None:
    """PlainCodec stores payloads as they are."""
    assert PlainCodec().decode(PlainCodec().encode('{"a":1}')) == '{"a":1}'


# ------------------------------------------------------------------ properties

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
ANY_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.binary()
    | st.datetimes()
    | st.decimals(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
        | st.tuples(inner, inner)
    ),
    max_leaves=12,
)
ITEMS = st.builds(
    Item,
    name=st.text(),
    price=st.decimals(allow_nan=False, allow_infinity=False),
    tags=st.sets(st.text(), max_size=3),
    when=st.none() | st.datetimes(timezones=st.just(UTC)),
)


@given(JSON_VALUES)
def test_json_values_need_no_annotation(value: Any) -> None:
    """Every value of JSON's own kinds comes back equal without a hint."""
    assert carried(value) == value


@given(ANY_VALUES)
def test_a_value_comes_back_equal_or_is_refused(value: Any) -> None:
    """Nothing in between: no value is silently changed."""
    try:
        back = carried(value)
    except CodecError:
        return
    assert back == value


@given(st.dictionaries(st.integers(), st.lists(st.tuples(ITEMS, st.binary()), max_size=3), max_size=3))
def test_annotated_values_come_back_equal(value: dict[int, list[tuple[Item, bytes]]]) -> None:
    """Nested annotated values come back equal and of their classes."""
    assert carried(value, dict[int, list[tuple[Item, bytes]]]) == value

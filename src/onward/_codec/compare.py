"""Finds where a value and what JSON made of it differ, and says which annotation would cure that.

Called by `onward.codec` only after `==` has said no, which it also does for classes that compare by identity: those are
compared field by field here. Never called on the fast path; it may take its time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple


class Difference(NamedTuple):
    """The first place at which two values differ; `path` is what is written after the value's name, like ``[0].when``."""

    path: str
    before: Any
    after: Any


def difference(before: Any, after: Any, path: str = "") -> Difference | None:
    """The first difference that matters, or None where the values are as good as equal."""
    if before is after or _equal(before, after):
        return None
    if type(before) is not type(after):
        return Difference(path, before, after)
    if isinstance(before, datetime):
        return None if _same_instant(before, after) else Difference(path, before, after)
    if isinstance(before, Mapping):
        return _mapping_difference(before, after, path)
    if isinstance(before, (list, tuple)):
        if len(before) != len(after):
            return Difference(path, before, after)
        return _first(
            difference(one, other, f"{path}[{i}]") for i, (one, other) in enumerate(zip(before, after, strict=True))
        )
    names = field_names(before)
    if names is None or not (compares_by_identity(type(before)) or _has_generated_eq(before)):
        return Difference(path, before, after)
    return _first(
        difference(getattr(before, name, None), getattr(after, name, None), f"{path}.{name}") for name in names
    )


def field_names(value: Any) -> list[str] | None:
    """The names of what an object holds; None where nothing tells."""
    cls = type(value)
    if hasattr(cls, "__struct_fields__"):
        return list(cls.__struct_fields__)
    if dataclasses.is_dataclass(cls):
        return [field.name for field in dataclasses.fields(cls)]
    if hasattr(cls, "__attrs_attrs__"):
        return [attribute.name for attribute in cls.__attrs_attrs__]
    return list(vars(value)) if hasattr(value, "__dict__") else None


def cure(found: Difference) -> str:
    """What to do about it, as the end of a sentence."""
    value = found.before
    match value:
        case float() if not math.isfinite(value):
            return "JSON has no NaN or infinity: use None or a string in its place"
        case tuple():
            return "annotate it as a tuple (`tuple[int, str]`, `tuple[int, ...]`), or use a list"
        case Mapping() if any(not isinstance(key, str) for key in value):
            kind = type(next(key for key in value if not isinstance(key, str))).__qualname__
            return f"annotate the type of its keys (`dict[{kind}, …]`), or use str keys"
        case set() | frozenset():
            return f"annotate it as `{type(value).__name__}[…]`, or use a list"
        case list() | Mapping() | str() | int() | float() | None:
            return "annotate it with its type, or change the annotation"
    return f"annotate it with its class, `{type(value).__qualname__}`"


def compares_by_identity(cls: type) -> bool:
    """Whether `==` between two instances is merely `is`."""
    return getattr(cls, "__eq__", None) is object.__eq__


def shown(value: Any) -> str:
    """A value's repr, cut, for an error message."""
    try:
        text = repr(value)
    except Exception as error:  # a broken __repr__ must not hide the error that is being reported
        text = f"<{type(value).__qualname__}, whose repr() raises {type(error).__name__}>"
    return text if len(text) <= 100 else f"{text[:99]}…"


def _equal(before: Any, after: Any) -> bool:
    try:
        return bool(before == after)
    except Exception:  # arrays and the like have no one truth; what they hold is compared by field
        return False


def _has_generated_eq(value: Any) -> bool:
    """Whether `==` compares field by field, so that the fields show where it said no."""
    cls = type(value)
    return (
        hasattr(cls, "__struct_fields__")
        or dataclasses.is_dataclass(cls)
        or hasattr(cls, "__attrs_attrs__")
        or hasattr(cls, "__pydantic_fields__")
    )


def _same_instant(one: datetime, other: datetime) -> bool:
    """`==` is false across time zones for the repeated hour in autumn, though the instants are equal."""
    if one.tzinfo is None or other.tzinfo is None:
        return False
    return one.astimezone(UTC) == other.astimezone(UTC)


def _mapping_difference(before: Mapping[Any, Any], after: Mapping[Any, Any], path: str) -> Difference | None:
    if before.keys() != after.keys():
        return Difference(path, before, after)
    return _first(difference(value, after[key], f"{path}[{key!r}]") for key, value in before.items())


def _first(found: Any) -> Difference | None:
    return next((item for item in found if item is not None), None)

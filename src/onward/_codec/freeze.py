"""Frozen copies of step arguments, and the one JSON form of them from which digests are made.

A step's body must see its arguments as they were at the call, however the workflow changes them afterwards: data are
copied, everything else (clients, pools, connections) is passed on as it is. Called for every step; scalars cost one lookup.
"""

from __future__ import annotations

import copy
import dataclasses
import types
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec

from onward._codec.compare import field_names

ATOMS: frozenset[type] = frozenset(
    {
        str,
        int,
        float,
        bool,
        type(None),
        bytes,
        complex,
        datetime,
        date,
        time,
        timedelta,
        Decimal,
        UUID,
        range,
        types.FunctionType,
    }
)
"""Classes whose instances cannot change."""


def frozen(value: Any, memo: dict[int, Any]) -> Any:
    """A copy of data, the object itself where it is no data; `memo` keeps what is shared shared."""
    cls = type(value)
    if cls in ATOMS or isinstance(value, type):
        return value
    known = memo.get(id(value))
    if known is not None:
        return known
    if cls is list:
        items: list[Any] = []
        memo[id(value)] = items
        items.extend(frozen(item, memo) for item in value)
        return items
    if cls is dict:
        mapping: dict[Any, Any] = {}
        memo[id(value)] = mapping
        mapping.update((key, frozen(item, memo)) for key, item in value.items())
        return mapping
    if cls is tuple:
        return _frozen_tuple(value, memo)
    if cls is set or cls is bytearray:
        return memo.setdefault(id(value), cls(value))
    return _frozen_other(value, memo)


def is_data_class(cls: type) -> bool:
    """Whether instances are records of fields: dataclass, Struct, attrs class or pydantic model."""
    return (
        hasattr(cls, "__struct_fields__")
        or dataclasses.is_dataclass(cls)
        or hasattr(cls, "__attrs_attrs__")
        or hasattr(cls, "__pydantic_fields__")
    )


def canonical_json(value: Any) -> bytes:
    """JSON that is the same in every process: sets and dicts in order. Raises TypeError or ValueError for what is no data."""
    try:
        return DETERMINISTIC.encode(value)
    except TypeError:
        return DETERMINISTIC.encode(_plain(value))


def _frozen_tuple(value: tuple[Any, ...], memo: dict[int, Any]) -> tuple[Any, ...]:
    items = tuple([frozen(item, memo) for item in value])
    if all(one is other for one, other in zip(items, value, strict=True)):
        return value
    return items


def _frozen_other(value: Any, memo: dict[int, Any]) -> Any:
    cls = type(value)
    if is_data_class(cls):
        return _frozen_record(value, memo)
    if cls is deque:
        return memo.setdefault(id(value), deque([frozen(item, memo) for item in value], value.maxlen))
    if cls in (OrderedDict, defaultdict, Counter):
        twin = memo[id(value)] = copy.copy(value)
        for key, item in value.items():
            twin[key] = frozen(item, memo)
        return twin
    if isinstance(value, tuple) and hasattr(cls, "_make"):
        items = _frozen_tuple(tuple(value), memo)
        return value if all(one is other for one, other in zip(items, value, strict=True)) else cls._make(items)
    if isinstance(value, (list, dict, set)):
        try:
            return copy.deepcopy(value, memo)
        except RecursionError:
            raise
        except Exception:  # a container of what cannot be copied is passed on as it is, like any other object
            return value
    return value


def _frozen_record(value: Any, memo: dict[int, Any]) -> Any:
    """A copy of a record of data. What cannot be copied (it holds a lock, a socket, a client) is no data: passed on as it is."""
    names = field_names(value) or ()
    try:
        if all(type(getattr(value, name, None)) in ATOMS for name in names):
            return memo.setdefault(id(value), copy.copy(value))
        return copy.deepcopy(value, memo)
    except RecursionError:
        raise
    except Exception:  # see above
        return value


def _model_data(value: Any) -> Any:
    """What msgspec does not know by itself: a pydantic model as the data it dumps."""
    if hasattr(type(value), "__pydantic_serializer__"):
        return value.model_dump(mode="json", by_alias=True)
    raise TypeError(f"{type(value).__qualname__} is no data")


DETERMINISTIC = msgspec.json.Encoder(enc_hook=_model_data, order="deterministic")


def _plain(value: Any) -> Any:
    """The same data in dicts with str keys and lists, sets in the order of their members' JSON."""
    if type(value) in ATOMS:
        return value
    if isinstance(value, dict):
        return {_key(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((_plain(item) for item in value), key=DETERMINISTIC.encode)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if is_data_class(type(value)) and not hasattr(type(value), "__pydantic_fields__"):
        return {name: _plain(getattr(value, name)) for name in field_names(value) or () if hasattr(value, name)}
    return value


def _key(key: Any) -> str:
    return key if isinstance(key, str) else DETERMINISTIC.encode(_plain(key)).decode()

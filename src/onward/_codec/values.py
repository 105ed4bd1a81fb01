"""JSON for the values of one type hint, checked to come back equal.

Part of `onward.codec`. The hint is resolved at first use or by `resolve()`; from then on encoding a small value takes about
a microsecond, its check included.
"""

from __future__ import annotations

import math
import os
from collections.abc import Awaitable, Callable
from typing import Any

from onward._codec.compare import compares_by_identity, cure, difference, shown
from onward._codec.hints import Backend, backend_for, hint_name, resolve_hint
from onward.errors import CodecError

MAX_BYTES = int(os.environ.get("ONWARD_MAX_VALUE_BYTES") or 2_000_000)
"""The largest JSON text of one value, in bytes; the environment variable ONWARD_MAX_VALUE_BYTES overrides it."""
MAX_DEPTH = 200
"""The deepest nesting; far below Python's recursion limit, so that what could be written can be read from any stack."""


MAX_SEARCHED = 10_000
"""How many parts of a value may be waiting to be searched for what an error message names."""


class ValueCodec:
    """JSON for the values of one type hint.

    Args:
        hint: an evaluated type hint; `Any` for none.
        where: what the values are, for messages: ``result of step 'charge'``.

    >>> ValueCodec(tuple[int, str], "result of step 'f'").encode((1, "a"))
    '[1,"a"]'
    >>> ValueCodec(Any, "result of step 'f'").encode((1, "a"))
    Traceback (most recent call last):
    onward.errors.CodecError: result of step 'f': (1, 'a') would come back as [1, 'a']; annotate it as a tuple \
(`tuple[int, str]`, `tuple[int, ...]`), or use a list
    """

    _encode: Callable[[Any], bytes]
    _decode: Callable[[str | bytes], Any]
    _exact: frozenset[type]
    __slots__ = ("_backend", "_decode", "_encode", "_exact", "_hint", "_source", "max_bytes", "where")

    def __init__(self, hint: object, where: str, *, max_bytes: int = MAX_BYTES) -> None:
        self.where = where
        self.max_bytes = max_bytes
        self._hint = hint
        self._source: Callable[[], object] | None = None
        self._backend: Backend | None = None

    @classmethod
    def of(cls, fn: Callable[..., Any], name: str, where: str) -> ValueCodec:
        """The codec of a function's result (`name` "return") or parameter; the hint is looked up at first use."""
        codec = cls(None, where)
        codec._source = lambda: resolve_hint(fn, name, where)
        return codec

    @property
    def is_resolved(self) -> bool:
        """Whether the hint has been found usable."""
        return self._backend is not None

    def resolve(self) -> None:
        """Resolve the hint now. Raises DefinitionError, with the cure, where it cannot be used."""
        if self._backend is not None:
            return
        if self._source is not None:
            self._hint = self._source()
        backend = backend_for(self._hint, self.where)
        self._encode, self._decode, self._exact = backend.encode, backend.decode, backend.exact
        self._backend = backend

    def encode(self, value: object) -> str:
        """The value as JSON text. Raises CodecError where it cannot be, or would not come back equal."""
        if self._backend is None:
            self.resolve()
        try:
            data = self._encode(value)
        except Exception as error:  # whatever goes wrong in here, the value is one that JSON cannot carry
            raise self._refusal(value, error) from error
        if len(data) > 2 * MAX_DEPTH:
            self._check_size(data)
        kind = type(value)
        if kind not in self._exact or (data == b"null" and value is not None) or (kind is int and len(data) > 18):
            self._check(value, data)
        return data.decode()

    def decode(self, text: str | bytes) -> Any:
        """The value of a JSON text. Raises CodecError where the text does not fit the hint."""
        if self._backend is None:
            self.resolve()
        try:
            return self._decode(text)
        except Exception as error:  # validators are user code: any error means that the text does not fit
            raise CodecError(
                f"the stored JSON {shown(text if isinstance(text, str) else text.decode(errors='replace'))} does not fit the "
                f"annotation {hint_name(self._hint)}: {error}; the annotation must accept what earlier code recorded",
                where=self.where,
            ) from error

    def _check(self, value: object, data: bytes) -> None:
        try:
            back = self._decode(data)
        except Exception as error:  # see decode()
            if number := _first(value, lambda part: isinstance(part, float) and not math.isfinite(part)):
                raise CodecError(
                    f"{shown(number[0])} cannot be JSON, which has no NaN or infinity: use None (annotated `float | None`) or "
                    "a string in its place",
                    where=self.where,
                ) from error
            raise CodecError(
                f"{shown(value)} does not fit the annotation {hint_name(self._hint)}: {error}; correct the annotation or "
                "the value",
                where=self.where,
            ) from error
        found = difference(value, back)
        if found is not None and not (found.before is value and self._same_text(value, back, data)):
            place = f"at {found.path} " if found.path else ""
            raise CodecError(
                f"{place}{shown(found.before)} would come back as {shown(found.after)}; {cure(found)}", where=self.where
            )

    def _same_text(self, value: object, back: object, data: bytes) -> bool:
        """For opaque objects that compare by identity: equal if they are written alike."""
        if type(back) is not type(value) or not compares_by_identity(type(value)):
            return False
        return self._encode(back) == data

    def _check_size(self, data: bytes) -> None:
        if len(data) > self.max_bytes:
            raise CodecError(
                f"the value takes {len(data):,} bytes as JSON, more than the {self.max_bytes:,} allowed; store it elsewhere "
                "and pass a reference (or set ONWARD_MAX_VALUE_BYTES)",
                where=self.where,
            )
        if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _depth(data) > MAX_DEPTH:
            raise self._refusal(data, RecursionError())

    def _refusal(self, value: object, error: Exception) -> CodecError:
        if isinstance(error, RecursionError):
            message = f"the value is nested deeper than {MAX_DEPTH} levels; flatten it"
        elif isinstance(error, UnicodeEncodeError):
            message = f"{shown(value)} has a lone surrogate, which is no text; decode it rightly or pass bytes"
        elif call := _first(value, lambda part: isinstance(part, Awaitable)):
            message = f"{shown(call[0])} was not awaited; write `await` before the call"
        else:
            message = f"{shown(value)} cannot be JSON: {error}; return plain data, a dataclass, or a model of that data"
        return CodecError(message, where=self.where)


def _first(value: object, is_sought: Callable[[object], bool]) -> tuple[object] | None:
    """The first part of plain nested data that is sought, in a tuple; for messages only."""
    left = [value]
    while left and len(left) < MAX_SEARCHED:
        part = left.pop()
        if is_sought(part):
            return (part,)
        if isinstance(part, dict):
            left += reversed(part.values())
        elif isinstance(part, (list, tuple, set, frozenset)):
            left += reversed(tuple(part))
    return None


def _depth(data: bytes) -> int:
    """How deep a JSON text is nested, strings left aside."""
    depth = deepest = 0
    for part in data.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2]:
        for char in part.translate(None, _NOT_BRACKETS):
            depth += 1 if char in b"[{" else -1
            deepest = max(deepest, depth)
    return deepest


_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))

"""From a function's type hint to a pair of JSON functions: msgspec where it can, else pydantic.

`onward.codec` asks for one `Backend` per hint, at its first use. Hints are resolved one at a time, because the argument of
a step may be annotated with something that exists for the type checker only. This file encodes nothing by itself.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
import typing
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from onward.errors import DefinitionError

if sys.version_info >= (3, 14):
    import annotationlib

NoneType = type(None)
SCALARS: frozenset[type] = frozenset({str, int, float, bool, NoneType})
"""What a JSON scalar comes back as by itself."""


@dataclass(frozen=True, slots=True)
class Backend:
    """How values under one hint become JSON and return.

    `exact` are the classes whose instances need no second look: under this hint they come back equal whenever the JSON
    text could be made (apart from floats that became null and integers beyond 64 bits, which the caller looks at).
    """

    encode: Callable[[Any], bytes]
    decode: Callable[[str | bytes], Any]
    exact: frozenset[type]


_encode = msgspec.json.Encoder().encode
ANY = Backend(_encode, msgspec.json.Decoder().decode, SCALARS)


def signature_of(fn: Callable[..., Any]) -> inspect.Signature | None:
    """The signature, its annotations unevaluated where Python allows; None for a builtin that has none."""
    try:
        if sys.version_info >= (3, 14):
            return inspect.signature(fn, annotation_format=annotationlib.Format.FORWARDREF)
        return inspect.signature(fn)
    except ValueError:
        return None


def resolve_hint(fn: Callable[..., Any], name: str, where: str) -> object:
    """The evaluated hint of one parameter (or "return"); `Any` where there is none. Raises DefinitionError."""
    if isinstance(fn, type) and name == "return":
        return fn
    target = _annotated_function(fn)
    annotations = _annotations(target)
    if name not in annotations:
        return Any

    def holder() -> None: ...

    holder.__annotations__ = {name: annotations[name]}
    try:
        hints = typing.get_type_hints(
            holder, getattr(target, "__globals__", {}), _enclosing_names(target), include_extras=True
        )
    except Exception as error:
        raise DefinitionError(
            f"{where}: the type hint {annotations[name]!r} of {_subject(name)} cannot be resolved ({error}); define or "
            "import what it names at module level, not inside a function or under `if TYPE_CHECKING:`"
        ) from error
    hint: object = hints[name]
    return _awaited(hint) if name == "return" else hint


def backend_for(hint: object, where: str) -> Backend:
    """The JSON functions for a hint. Raises DefinitionError where neither msgspec nor pydantic can handle it."""
    if hint is None:
        hint = NoneType
    if hint in (Any, object, inspect.Parameter.empty, typing.NoReturn, typing.Never) or isinstance(
        hint, typing.TypeVar
    ):
        return ANY
    if isinstance(hint, type) and hint in SCALARS:
        return Backend(_encode, msgspec.json.Decoder(hint).decode, frozenset({hint}))
    try:
        info = msgspec.inspect.type_info(hint)
        foreign = _foreign_class(info)
        decoder = msgspec.json.Decoder(hint)
    except Exception as error:
        return _pydantic_backend(hint, where, error)
    if foreign is not None:
        return _pydantic_backend(hint, where, TypeError(f"{foreign.__qualname__} has no JSON form"))
    return Backend(_encode, decoder.decode, _exact_classes(hint))


def hint_name(hint: object) -> str:
    """The hint as a person would write it."""
    return (
        hint.__qualname__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")
    )


def _annotated_function(fn: Callable[..., Any]) -> Any:
    while isinstance(fn, functools.partial):
        fn = fn.func
    if isinstance(fn, type):
        return vars(fn).get("__init__")
    if isinstance(fn, types.MethodType):
        fn = fn.__func__
    fn = inspect.unwrap(fn)
    if isinstance(fn, types.FunctionType):
        return fn
    return next((vars(cls)["__call__"] for cls in type(fn).__mro__ if "__call__" in vars(cls)), None)


def _annotations(target: Any) -> dict[str, Any]:
    if sys.version_info >= (3, 14):
        try:
            return annotationlib.get_annotations(target, format=annotationlib.Format.FORWARDREF)
        except TypeError:
            return {}
    return getattr(target, "__annotations__", None) or {}


def _enclosing_names(target: Any) -> dict[str, Any]:
    """What the function captured, and its type parameters: a little of what a local class needs to be found."""
    names = {parameter.__name__: parameter for parameter in getattr(target, "__type_params__", ())}
    code = getattr(target, "__code__", None)
    for name, cell in zip(code.co_freevars if code else (), getattr(target, "__closure__", None) or (), strict=False):
        try:
            names[name] = cell.cell_contents
        except ValueError:  # the variable is not assigned yet
            continue
    return names


def _subject(name: str) -> str:
    return "the result" if name == "return" else f"parameter {name!r}"


def _awaited(hint: object) -> object:
    """What remains of a result once it is awaited: a `def` may return an awaitable."""
    if typing.get_origin(hint) in (Awaitable, Coroutine):
        return typing.get_args(hint)[-1]
    return hint


def _exact_classes(hint: object) -> frozenset[type]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = frozenset(typing.get_args(hint))
        if members <= SCALARS:
            return members
    return frozenset()


def _foreign_class(info: Any) -> type | None:
    """The first class in msgspec's view of a hint that it would leave to a hook."""
    seen: set[int] = set()
    pending: list[Any] = [info]
    while pending:
        node = pending.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, msgspec.inspect.CustomType):
            if node.cls is not object:
                return node.cls
        elif isinstance(node, (msgspec.inspect.Type, msgspec.inspect.Field)):
            pending.extend(
                getattr(node, name) for name in node.__struct_fields__ if name not in ("default", "default_factory")
            )
        elif isinstance(node, (tuple, list)):
            pending.extend(_nodes(node))
    return None


def _nodes(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, (msgspec.inspect.Type, msgspec.inspect.Field))]


def _pydantic_backend(hint: object, where: str, refusal: Exception) -> Backend:
    name = hint_name(hint)
    try:
        from pydantic import TypeAdapter
    except ImportError:
        raise DefinitionError(
            f"{where}: values annotated {name} cannot be stored as JSON ({refusal}); annotate plain data, a dataclass, "
            "attrs class or msgspec.Struct, or install pydantic (`pip install pydantic`) where it knows this type"
        ) from refusal
    try:
        adapter = TypeAdapter[Any](hint)  # type: ignore[arg-type]  # a hint known at run time only
    except Exception as error:
        raise DefinitionError(
            f"{where}: values annotated {name} cannot be stored as JSON (msgspec: {refusal}; pydantic: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}); annotate plain data, a dataclass, "
            "attrs class, msgspec.Struct or pydantic model"
        ) from error
    check = msgspec.json.Decoder(msgspec.Raw).decode

    def encode(value: Any) -> bytes:
        text = adapter.dump_json(value, by_alias=True, round_trip=True, warnings="error")
        check(text)  # a model may be configured to write NaN, which is no JSON
        return text

    return Backend(encode, adapter.validate_json, frozenset())

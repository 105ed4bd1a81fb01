"""The arguments of one function: bound, copied, digested, and for workflows written as JSON and read.

Part of `onward.codec`. A step's arguments need not be JSON: they get a digest where they are. A workflow's are stored.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any

import msgspec

from onward._codec.compare import shown
from onward._codec.freeze import ATOMS, DETERMINISTIC, canonical_json, frozen
from onward._codec.hints import signature_of
from onward._codec.values import MAX_BYTES, ValueCodec
from onward.errors import CodecError

ARGUMENTS_SHOWN = 1024
"""Bytes of the arguments' text kept beside their digest."""


_EMPTY = blake2b(digest_size=8)
"""Copied for each digest: that takes half the time of making one anew."""


def digest_text(text: str | bytes) -> str:
    """16 hex digits that stand for a text."""
    digest = _EMPTY.copy()
    digest.update(text.encode() if isinstance(text, str) else text)
    return digest.hexdigest()


class ArgumentsCodec:
    """The arguments of one function: copies, digests, and for workflows their JSON.

    Args:
        fn: the function.
        where: whose arguments they are, for messages: ``step 'charge'``.
        skip_first: leave the first parameter out (the connection of a transactional step).
        is_stored: they are stored as JSON (a workflow's), so every hint must be one that JSON can carry.
    """

    _signature: inspect.Signature | None
    _is_plain: bool  # every parameter can be given by keyword
    _kinds: dict[str, Any]
    _names: tuple[str, ...]
    _quoted: dict[str, str]
    _required: int
    __slots__ = (
        "_codecs",
        "_fn",
        "_is_inspected",
        "_is_plain",
        "_is_stored",
        "_kinds",
        "_names",
        "_quoted",
        "_required",
        "_signature",
        "_skip_first",
        "where",
    )

    def __init__(
        self, fn: Callable[..., Any], where: str, skip_first: bool = False, *, is_stored: bool = False
    ) -> None:
        self.where = where
        self._fn = fn
        self._skip_first = skip_first
        self._is_stored = is_stored
        self._is_inspected = False
        self._codecs: dict[str, ValueCodec] = {}

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise the TypeError that a call with these arguments would raise, if it would."""
        if not self._is_inspected:
            self._inspect()
        if kwargs or not self._required <= len(args) <= len(self._names):
            self._bound(args, kwargs)

    def freeze(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments as they are now: data are copied (containers, dataclasses, Structs, attrs and pydantic objects),
        other objects passed on."""
        for value in args:
            if type(value) not in ATOMS:
                break
        else:
            if not kwargs:
                return args, kwargs
        memo: dict[int, Any] = {}
        try:
            return tuple([frozen(value, memo) for value in args]), {
                name: frozen(value, memo) for name, value in kwargs.items()
            }
        except RecursionError as error:
            raise CodecError(
                "the arguments are nested too deep to be copied; flatten them", where=self.where
            ) from error

    def digest(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str | None, str | None]:
        """The digest of the arguments and the beginning of their text; (None, None) where they are not data.

        The same values give the same digest in every process, by position or by keyword; defaults are not filled in.
        """
        bound = self._bound(args, kwargs)
        try:
            data = canonical_json(bound)
        except Exception:  # clients, pools, surrogates, cycles: nothing that a digest could be made of
            return None, None
        digest = digest_text(data)
        return digest, data.decode() if len(data) <= ARGUMENTS_SHOWN else data[:ARGUMENTS_SHOWN].decode(errors="ignore")

    def take(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any], str | None, str | None]:
        """What a durable call keeps of its arguments: what `freeze` and then `digest` give. Raises as `bind` does."""
        if not self._is_inspected:
            self._inspect()
        names = self._names
        if kwargs or not self._required <= len(args) <= len(names):
            self._bound(args, kwargs)
        for value in args:
            if type(value) not in ATOMS:
                break
        else:
            if not kwargs and len(args) <= len(names):  # the plain case, without a further call
                try:
                    bound = {names[0]: args[0]} if len(args) == 1 else dict(zip(names, args, strict=False))
                    data = _canonical(bound)
                except (TypeError, ValueError):
                    return args, kwargs, *self.digest(args, kwargs)
                if len(data) <= ARGUMENTS_SHOWN:
                    return args, kwargs, digest_text(data), data.decode()
        return *self.freeze(args, kwargs), *self.digest(args, kwargs)

    def encode(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """A JSON object of the arguments by parameter name, defaults not filled in. Raises TypeError for wrong arguments
        and CodecError for values that the hints cannot carry."""
        return self._encode(self._bound(args, kwargs))

    def encode_with_digest(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str, str]:
        """What a start stores: the arguments as JSON, and a digest (of the JSON itself where `digest` has none)."""
        bound = self._bound(args, kwargs)
        payload = self._encode(bound)
        try:
            data = canonical_json(bound)
        except Exception:  # as in `digest`
            data = payload.encode()
        return payload, digest_text(data)

    def _encode(self, bound: Mapping[str, Any]) -> str:
        if self._is_plain and self._signature is not None:
            texts = [f"{self._quoted[name]}:{self._codec(name).encode(value)}" for name, value in bound.items()]
        else:
            texts = [f"{_quoted(name)}:{self._encode_group(name, value)}" for name, value in bound.items()]
        payload = f"{{{','.join(texts)}}}"
        if len(payload) > MAX_BYTES:
            raise CodecError(
                f"the arguments take {len(payload):,} characters as JSON, more than the {MAX_BYTES:,} allowed; store them "
                "elsewhere and pass a reference (or set ONWARD_MAX_VALUE_BYTES)",
                where=self.where,
            )
        return payload

    def _encode_group(self, name: str, value: Any) -> str:
        """One parameter, which may be `*args` or `**kwargs`."""
        codec = self._codec(name)
        match self._kinds.get(name):
            case inspect.Parameter.VAR_POSITIONAL:
                return f"[{','.join([codec.encode(item) for item in value])}]"
            case inspect.Parameter.VAR_KEYWORD:
                return f"{{{','.join([f'{_quoted(key)}:{codec.encode(item)}' for key, item in value.items()])}}}"
            case _:
                return codec.encode(value)

    def decode(self, text: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a JSON object (by name) or array (by position). What is missing is left to the call's defaults;
        what the function does not know is left in the keywords, so that the call raises its TypeError."""
        if not self._is_inspected:
            self._inspect()
        raw = _decode_raw(text, self.where)
        if isinstance(raw, list):
            return self._decode_positions(raw), {}
        if self._is_plain:
            kwargs = {name: self._codec(name).decode(bytes(raw.pop(name))) for name in self._kinds if name in raw}
            kwargs.update((name, msgspec.json.decode(item)) for name, item in raw.items())
            return (), kwargs
        args: list[Any] = []
        kwargs = {}
        var_positional = next((n for n, kind in self._kinds.items() if kind is inspect.Parameter.VAR_POSITIONAL), None)
        surplus = _decode_list(raw[var_positional]) if var_positional in raw else []
        for name, kind in self._kinds.items():
            match kind:
                case inspect.Parameter.VAR_POSITIONAL:
                    codec = self._codec(name)
                    args.extend(codec.decode(bytes(item)) for item in surplus)
                case inspect.Parameter.VAR_KEYWORD:
                    codec = self._codec(name)
                    items = _decode_object(raw[name]) if name in raw else {}
                    kwargs.update((key, codec.decode(bytes(item))) for key, item in items.items())
                case inspect.Parameter.POSITIONAL_ONLY | inspect.Parameter.POSITIONAL_OR_KEYWORD if (
                    surplus or kind is inspect.Parameter.POSITIONAL_ONLY
                ):
                    if name in raw:
                        args.append(self._codec(name).decode(bytes(raw[name])))
                    elif self._has_default(name):
                        args.append(self._default(name))
                case _:
                    if name in raw:
                        kwargs[name] = self._codec(name).decode(bytes(raw[name]))
        kwargs.update((name, msgspec.json.decode(item)) for name, item in raw.items() if name not in self._kinds)
        return tuple(args), kwargs

    def resolve(self) -> None:
        """Resolve the hints of all parameters now, where they are stored: a step's arguments need not be JSON."""
        if not self._is_inspected:
            self._inspect()
        for name in self._kinds if self._is_stored else ():
            self._codec(name).resolve()

    def _inspect(self) -> None:
        signature = signature_of(self._fn)
        if signature is not None and self._skip_first:
            signature = signature.replace(parameters=list(signature.parameters.values())[1:])
        parameters = signature.parameters if signature is not None else {}
        positional = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self._signature = signature
        self._kinds = {name: parameter.kind for name, parameter in parameters.items()}
        self._quoted = {name: _quoted(name) for name in parameters}
        by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        self._is_plain = all(kind in by_name for kind in self._kinds.values())
        self._names = tuple(parameter.name for parameter in positional)
        self._required = sum(parameter.default is parameter.empty for parameter in positional)
        if signature is None or any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters.values()):
            self._required = len(self._names) + 1  # no call is so plain that counting settles it
        self._is_inspected = True

    def _bound(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments by parameter name, in the order of the signature."""
        if not self._is_inspected:
            self._inspect()
        names = self._names
        if not kwargs and self._required <= len(args) <= len(names):
            return dict(zip(names, args, strict=False))
        if self._signature is None:
            return {"args": args, "kwargs": kwargs}
        try:
            return self._signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{self.where}: {error}") from None

    def _codec(self, name: str) -> ValueCodec:
        codec = self._codecs.get(name)
        if codec is None:
            codec = self._codecs[name] = ValueCodec.of(self._fn, name, f"argument {name!r} of {self.where}")
        return codec

    def _decode_positions(self, items: list[msgspec.Raw]) -> tuple[Any, ...]:
        var_positional = next((n for n, kind in self._kinds.items() if kind is inspect.Parameter.VAR_POSITIONAL), None)
        names = [*self._names[: len(items)], *[var_positional] * (len(items) - len(self._names))]
        return tuple(
            [
                msgspec.json.decode(item) if name is None else self._codec(name).decode(bytes(item))
                for name, item in zip(names, items, strict=True)
            ]
        )

    def _has_default(self, name: str) -> bool:
        return self._signature is not None and self._signature.parameters[name].default is not inspect.Parameter.empty

    def _default(self, name: str) -> Any:
        assert self._signature is not None
        return self._signature.parameters[name].default


_canonical = DETERMINISTIC.encode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()


def _decode_raw(text: str, where: str) -> list[msgspec.Raw] | dict[str, msgspec.Raw]:
    try:
        return _decode_list(text) if text.lstrip()[:1] == "[" else _decode_object(text)
    except (msgspec.MsgspecError, UnicodeEncodeError) as error:
        hint = "; if a codec stored it, give the worker that codec" if text.lstrip()[:1] == '"' else ""
        raise CodecError(
            f"the arguments must be a JSON object or array: {error}; got {shown(text)}{hint}", where=where
        ) from error

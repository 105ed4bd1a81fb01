"""Shows the signature of a function as one writes it in a manual; used by reference.py."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable
from typing import Any

WIDEST = 88
"""A signature that is longer gets a line for each parameter."""


def signature(name: str, function: Callable[..., Any], *, is_method: bool = False) -> str:
    """As one writes it: the first overload where the implementation only says Any; private parameters left out."""
    overloads = typing.get_overloads(function) if isinstance(function, types.FunctionType) else []
    shown = inspect.signature(overloads[0] if overloads and "Any" in annotation(function) and is_method else function)
    if name in {"onward.run", "onward.start"} and overloads:
        shown = inspect.signature(overloads[0])
    is_decorator = name in {"onward.step", "onward.workflow"}
    name = f"@{name}" if is_decorator else name
    shown_parameters = [
        parameter
        for number, parameter in enumerate(shown.parameters.values())
        if not parameter.name.startswith("_") and not ((is_method or is_decorator) and number == 0)
    ]
    words: list[str] = []
    kinds = inspect.Parameter
    previous: Any = None
    for parameter in shown_parameters:
        if previous is kinds.POSITIONAL_ONLY and parameter.kind is not kinds.POSITIONAL_ONLY:
            words.append("/")
        is_first_keyword = parameter.kind is kinds.KEYWORD_ONLY and previous not in (
            kinds.KEYWORD_ONLY,
            kinds.VAR_POSITIONAL,
        )
        if is_first_keyword:
            words.append("*")
        words.append(_parameter(parameter))
        previous = parameter.kind
    if previous is kinds.POSITIONAL_ONLY:
        words.append("/")
    returns = shown.return_annotation
    arrow = "" if returns in (inspect.Signature.empty, "None", "Any", None) else f" -> {_clean(returns)}"
    line = f"{name}({', '.join(words)}){arrow}"
    if len(line) <= WIDEST:
        return line
    inner = "".join(f"    {word},\n" for word in words)
    return f"{name}(\n{inner}){arrow}"


def _parameter(parameter: inspect.Parameter) -> str:
    stars = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}.get(parameter.kind.name, "")
    kind = "" if parameter.annotation is inspect.Parameter.empty else f": {_clean(parameter.annotation)}"
    if parameter.default is inspect.Parameter.empty:
        return f"{stars}{parameter.name}{kind}"
    default = repr(parameter.default)
    if isinstance(parameter.default, tuple) and all(isinstance(item, type) for item in parameter.default):
        default = (
            f"({', '.join(item.__name__ for item in parameter.default)}{',' if len(parameter.default) == 1 else ''})"
        )
    return f"{stars}{parameter.name}{kind} = {default}" if kind else f"{stars}{parameter.name}={default}"


def annotation(function: Callable[..., Any]) -> str:
    """What it returns."""
    return _clean(inspect.signature(function).return_annotation)


def _clean(hint: Any) -> str:
    text = hint if isinstance(hint, str) else inspect.formatannotation(hint)
    text = re.sub(r"\b(builtins|typing|datetime|_uuid|onward\.\w+)\.(?=\w)", "", text)
    return re.sub(r"Coroutine\[Any, Any, (.+)\]$", r"Awaitable[\1]", text)


def parameters(function: Callable[..., Any]) -> set[str]:
    """The names of its parameters."""
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return set()

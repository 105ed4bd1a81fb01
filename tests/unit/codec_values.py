"""Classes that the codec tests carry there and back; at module level, where type hints can find them."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict
from uuid import UUID

import attrs
import msgspec
import pydantic

if TYPE_CHECKING:
    from asyncio import Server


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Item:
    name: str
    price: Decimal = Decimal(0)
    tags: set[str] = field(default_factory=set)
    when: datetime | None = None


@dataclass(eq=False)
class ByIdentity:
    number: int
    inner: Any = None


@dataclass
class Holder:
    anything: Any


class Point(msgspec.Struct):
    x: int
    y: float
    label: str | None = None


@attrs.define
class Person:
    name: str
    id: UUID


class Model(pydantic.BaseModel):
    number: int
    when: datetime
    nested: list[tuple[int, str]] = []


class Renamed(pydantic.BaseModel):
    inner_name: int = pydantic.Field(alias="outerName")


class Pair(NamedTuple):
    left: int
    right: str


class Options(TypedDict, total=False):
    deep: dict[int, list[bytes]]


class Opaque:
    """No data, and nothing that JSON or pydantic knows."""


def everything(
    a: int, b: Item, /, c: tuple[int, ...], *more: Colour, d: Point | None = None, **rest: datetime
) -> None: ...


def plain(user_id: int, template: str = "x", items: list[Item] | None = None) -> dict[int, Item]:
    return {}


def with_pool(pool: Server, number: int) -> list[int]:
    return []


def result_unresolvable() -> Server:
    raise NotImplementedError


def hint_refused(client: Opaque) -> Opaque:
    return client


def no_hints(a, b=2):  # type: ignore[no-untyped-def]  # functions without hints are the point
    return a

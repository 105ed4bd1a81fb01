"""A connection of an application as the tests of `tx=` use it, and Django's, which is alike on each database."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import django
from django.conf import settings
from django.db import connections, transaction
from django.db.utils import ConnectionHandler
from django.utils.connection import ConnectionProxy


@dataclass
class Driver:
    """A connection of the application; its calls return something to await if the driver is async."""

    tx: Any
    execute: Callable[[str], Any]
    commit: Callable[[], Any]
    rollback: Callable[[], Any]
    begin: Callable[[], Any] = lambda: None
    """Nothing to do where the driver opens a transaction by itself."""


_aliases = (f"onward_test_{number}" for number in itertools.count())


@contextmanager
def django_alias(**database: object) -> Iterator[str]:
    """A database of Django's under an alias of its own, beside whatever else is configured in this process."""
    if not settings.configured:
        settings.configure(LOGGING_CONFIG=None)
        django.setup()
    alias = next(_aliases)
    handler = ConnectionHandler({"default": database})
    connections[alias] = handler["default"]
    try:
        yield alias
    finally:
        connections[alias].close()
        del connections[alias]


def django_driver(alias: str) -> Driver:
    """`django.db.connection`, with transactions by `transaction.atomic`."""
    tx = ConnectionProxy(connections, alias)
    block = contextlib.ExitStack()

    def roll_back() -> None:
        transaction.set_rollback(True, using=alias)
        block.close()

    def execute(sql: str) -> None:
        with tx.cursor() as cursor:
            cursor.execute(sql)

    return Driver(tx, execute, block.close, roll_back, lambda: block.enter_context(transaction.atomic(using=alias)))

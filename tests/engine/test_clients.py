"""Clients: starting by id, listing, and every place from which one may, or may not, be used."""

from __future__ import annotations

import asyncio
import os
import threading
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from onward import (
    AsyncClient,
    Client,
    CodecError,
    ConfigurationError,
    DefinitionError,
    NotAllowedInWorkflow,
    NotInWorkflow,
    ResultTimeout,
    SchemaError,
    WorkflowIdConflict,
    WorkflowNotFound,
    WrongEventLoop,
    step,
    workflow,
)
from tests.engine.flows import echo
from tests.engine.support import MODES, Lab


@workflow
async def flow(n: int) -> int:
    """The plainest one."""
    return n


@workflow
async def other(n: int) -> int:
    """Another type."""
    return n


async def test_an_id_is_a_new_uuid_unless_one_is_given(plain_lab: Lab) -> None:
    async with plain_lab.client() as client:
        first, second = await client.start(flow, 1), await client.start(flow, 1)
        assert UUID(first.id).version == 7
        assert UUID(first.id) != UUID(second.id)
        assert first.created
        assert (await client.start(flow.using(id="mine"), 1)).id == "mine"


async def test_starting_an_id_again_gives_the_same_workflow_and_anything_else_is_a_conflict(plain_lab: Lab) -> None:
    async with plain_lab.running(flow, other) as client:
        first = await client.start(flow.using(id="x"), 1)
        again = await client.start(flow.using(id="x"), n=1)
        assert (first.created, again.created, again.id) == (True, False, "x")
        assert await again.result(timeout=10) == 1
        assert not (await client.start(flow.using(id="x"), 1)).created
        with pytest.raises(WorkflowIdConflict, match="other arguments"):
            await client.start(flow.using(id="x"), 2)
        with pytest.raises(WorkflowIdConflict, match="not a 'other'"):
            await client.start(other.using(id="x"), 1)


async def test_start_many_starts_all_in_order_and_refuses_only_what_conflicts(plain_lab: Lab) -> None:
    async with plain_lab.running(flow) as client:
        handles = await client.start_many(flow.using(id=f"w-{n}").bind(n) for n in range(30))
        assert [handle.id for handle in handles] == [f"w-{n}" for n in range(30)]
        assert [await handle.result(timeout=10) for handle in handles] == list(range(30))
        with pytest.raises(WorkflowIdConflict, match="w-3"):
            await client.start_many(flow.using(id=f"w-{n}").bind(100) for n in (30, 3, 31))
        assert await client.handle("w-30", flow).result(timeout=10) == 100
        assert await client.handle("w-31", flow).result(timeout=10) == 100
        with pytest.raises(ConfigurationError, match="bind"):
            await client.start_many([flow])  # type: ignore[arg-type]


async def test_lists_filter_by_status_type_time_and_tags_and_page_newest_first(plain_lab: Lab) -> None:
    lab = plain_lab
    async with lab.client() as client:
        before = lab.clock.now()
        lab.clock.advance(1)
        for n in range(7):
            await client.start(flow.using(id=f"f{n}", tags={"team": "red" if n % 2 else "blue", "n": str(n)}), n)
            lab.clock.advance(1)
        middle = lab.clock.now()
        lab.clock.advance(1)
        await client.start(other.using(id="o"), 1)
        await client.handle("f0").cancel()

        async def ids(**filters: object) -> list[str]:
            return [info.id for info in await client.list(**filters)]  # type: ignore[arg-type]

        assert await ids() == ["o", "f6", "f5", "f4", "f3", "f2", "f1", "f0"]
        assert await ids(status="cancelled") == ["f0"]
        assert await ids(status=["pending", "cancelled"], type=flow, limit=2) == ["f6", "f5"]
        assert await ids(type="other") == ["o"]
        assert await ids(tags={"team": "red"}) == ["f5", "f3", "f1"]
        assert await ids(tags={"team": "red", "n": "3"}) == ["f3"]
        assert await ids(created_after=middle) == ["o"]
        assert await ids(created_before=middle, created_after=before, tags={"n": "1"}) == ["f1"]
        pages: list[str] = []
        page = await client.list(limit=3)
        while page:
            pages += [info.id for info in page]
            if len(pages) == 3:
                await client.start(flow.using(id="newer"), 1)  # pages are stable under inserts
            page = await client.list(limit=3, before=page[-1])
        assert pages == ["o", "f6", "f5", "f4", "f3", "f2", "f1", "f0"]
        assert await client.counts() == {"pending": 8, "cancelled": 1}
        for wrong in ({"status": "asleep"}, {"limit": 0}, {"created_after": datetime(2030, 1, 1)}):  # noqa: DTZ001
            with pytest.raises(ConfigurationError):
                await ids(**wrong)


async def test_a_result_that_does_not_come_in_time_is_an_error_and_leaves_the_workflow_alone(plain_lab: Lab) -> None:
    async with plain_lab.client() as client:
        handle = await client.start(flow, 1)
        with pytest.raises(ResultTimeout) as caught:
            await handle.result(timeout=0.01)
        assert isinstance(caught.value, TimeoutError)
        assert await handle.status() == "pending"
        async with plain_lab.working(flow):
            assert await handle.result(timeout=timedelta(seconds=10)) == 1


async def test_many_wait_for_one_result(plain_lab: Lab) -> None:
    async with plain_lab.client() as client, plain_lab.client() as second:
        handle = await client.start(flow.using(id="x"), 1)
        waiting = [asyncio.create_task(handle.result(timeout=10)) for _ in range(5)]
        waiting.append(asyncio.create_task(second.handle("x", flow).result(timeout=10)))
        await asyncio.sleep(0)
        waiting[0].cancel()
        async with plain_lab.working(flow):
            assert await asyncio.gather(*waiting[1:]) == [1] * 5


async def test_a_handle_of_an_unknown_id_says_so(plain_lab: Lab) -> None:
    async with plain_lab.client() as client:
        handle = client.handle("nobody", flow)
        for call in (handle.info, handle.status, handle.journal, handle.cancel, handle.retry, handle.result):
            with pytest.raises(WorkflowNotFound, match="nobody"):
                await call()


async def test_bad_starts_are_typed_errors_and_leave_nothing_half_written(plain_lab: Lab) -> None:
    async with plain_lab.client() as client:
        with pytest.raises(ConfigurationError, match="decorate it with @onward.workflow"):
            await client.start(lambda: None)  # type: ignore[call-overload]
        with pytest.raises(ConfigurationError, match="not a signal: 'go'; pass an onward.Signal"):
            await client.signal("x", "go", True)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            await client.start(flow)  # type: ignore[call-overload]
        with pytest.raises(CodecError):
            await client.start(ratio, float("nan"))
        with pytest.raises(CodecError):
            await client.start(untyped, object())
        for options in (
            {"id": "a/b"}, {"id": ""}, {"id": "x" * 201}, {"id": "a\nb"}, {"delay": -1}, {"delay": float("nan")},
            {"run_at": datetime(2030, 1, 1)}, {"delay": 1, "run_at": datetime.now(UTC)}, {"priority": "high"},  # noqa: DTZ001
            {"tags": {"a": 1}}, {"max_attempts": 0}, {"timeout": -1},
        ):  # fmt: skip
            with pytest.raises(ConfigurationError):
                await client.start(flow.using(**options), 1)
        with pytest.raises(DefinitionError, match="Missing"):
            await client.start(unresolved, 1)
        assert await client.counts() == {}
    with pytest.raises(NotInWorkflow, match="client"):
        flow(1)  # type: ignore[unused-coroutine]  # it raises


@workflow
async def ratio(value: float) -> None:
    """Takes a float."""


@workflow
async def untyped(value: object) -> None:
    """Takes anything."""


@workflow
async def unresolved(value: Missing) -> None:  # type: ignore[name-defined]  # noqa: F821
    """Its hint does not resolve."""


async def test_bad_urls_and_databases_are_typed_errors(plain_lab: Lab) -> None:
    for url in (
        "onward.db",
        "mysql://host/db",
        "sqlite:///",
        "sqlite://host/x.db",
        "sqlite:///x.db?mode=ro",
        "postgresql://x/y?schema=1st",
        "postgresql://x/y?no_such_option=1",
    ):
        with pytest.raises(ConfigurationError):
            async with AsyncClient(url):
                pass
    missing = plain_lab.path.parent / "missing.db"
    with pytest.raises(SchemaError, match="onward migrate"):
        async with AsyncClient(f"sqlite:///{missing}", _migrate=False):
            pass
    assert not missing.exists()


async def test_a_schema_that_is_too_new_is_refused(sqlite_lab: Lab) -> None:
    sqlite_lab.sql("UPDATE onward_migrations SET oldest_library = '999.0.0', number = 9999 WHERE number = 1")
    with pytest.raises(SchemaError):
        async with sqlite_lab.client():
            pass


async def test_a_closed_client_says_so(plain_lab: Lab) -> None:
    client = plain_lab.client()
    async with client:
        pass
    with pytest.raises(ConfigurationError, match="closed"):
        await client.start(flow, 1)


async def test_a_client_connects_at_its_first_call(plain_lab: Lab) -> None:
    client = plain_lab.client()
    handle = await client.start(flow, 1)
    assert await handle.status() == "pending"
    await client.close()


def test_an_async_client_belongs_to_the_loop_of_its_first_call(sqlite_lab: Lab) -> None:
    client = AsyncClient(sqlite_lab.url)
    with asyncio.Runner() as first:
        first.run(client.start(flow, 1))

        def elsewhere() -> None:
            with pytest.raises(WrongEventLoop, match=r"onward\.Client"):
                asyncio.run(client.start(flow, 2))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        first.run(client.close())


async def test_a_client_inside_workflow_code_is_refused(plain_lab: Lab) -> None:
    blocking = Client(plain_lab.url)

    @workflow
    async def calls(kind: str) -> str:
        try:
            if kind == "async":
                await client.start(flow, 1)
            else:
                blocking.start(flow, 1)
        except NotAllowedInWorkflow as error:
            return str(error)
        return "started"

    async with plain_lab.running(calls, flow) as client:
        for kind in ("async", "blocking"):
            assert "do this in a step" in await (await client.start(calls, kind)).result(timeout=10)
    blocking.close()


# ---------------------------------------------------------------------- the blocking client


def test_a_blocking_client_does_what_the_async_one_does(sqlite_lab: Lab) -> None:
    with Client(sqlite_lab.url) as client:
        handle = client.start(flow.using(id="x", tags={"a": "b"}), 1)
        assert handle.created
        assert handle.status() == "pending"
        assert [info.id for info in client.list(tags={"a": "b"})] == ["x"]
        assert client.counts() == {"pending": 1}
        assert [one.id for one in client.start_many([flow.using(id="y").bind(2)])] == ["y"]
        assert handle.cancel()
        assert client.handle("x", flow).info().status == "cancelled"
        assert handle.retry()
        assert handle.journal() == []
        with pytest.raises(ResultTimeout):
            handle.result(timeout=0.01)


def test_a_blocking_client_works_from_many_threads_and_after_a_close(sqlite_lab: Lab) -> None:
    client = Client(sqlite_lab.url)
    ids: list[str] = []

    def use(n: int) -> None:
        ids.append(client.start(flow.using(id=f"t{n}"), n).id)

    threads = [threading.Thread(target=use, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ids) == [f"t{n}" for n in range(8)]
    client.close()
    assert client.counts() == {"pending": 8}
    client.close()


def test_a_blocking_client_works_in_a_running_loop_as_in_a_notebook(sqlite_lab: Lab) -> None:
    async def cell() -> str:
        return client.start(flow, 1).status()

    with Client(sqlite_lab.url) as client:
        assert asyncio.run(cell()) == "pending"


async def test_a_blocking_client_on_a_workers_loop_is_refused_and_allowed_in_a_plain_step(sqlite_lab: Lab) -> None:
    client = Client(sqlite_lab.url)

    @step
    async def in_loop() -> str:
        try:
            client.start(echo, 1)
        except WrongEventLoop as error:
            return str(error)
        return "started"

    @step
    def in_thread() -> int:
        return client.start(echo, 7).result(timeout=10)

    @workflow
    async def calls() -> tuple[str, int]:
        return await in_loop(), await in_thread()

    async with sqlite_lab.running(calls, echo) as asynchronous:
        text, n = await (await asynchronous.start(calls)).result(timeout=10)
    client.close()
    assert "make the step a plain `def`" in text
    assert n == 7


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("mode", ["sqlite", "postgres"])
def test_a_forked_child_opens_its_own_connection_and_leaves_the_parents_alone(mode: str, tmp_path: Path) -> None:
    lab = Lab(MODES[mode], tmp_path / "onward.db")
    with lab.dropped(), Client(lab.url) as client:
        handle = client.start(flow.using(id="parent"), 1)
        reading, writing = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads at a fork: the very case
            pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.write(writing, f"{client.start(flow.using(id='child'), 2).id} {handle.status()}".encode())
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            assert pipe.read() == b"child pending"
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert handle.status() == "pending"
        assert client.counts() == {"pending": 2}

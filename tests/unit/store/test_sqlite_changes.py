"""The watch on a write-ahead log: told by the kernel, or by looking."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from onward._store.sqlite.changes import Changes, KernelChanges, LookedAtChanges, watch

LONG_S = 30.0
linux = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")


@linux
def test_a_write_to_the_log_is_told_though_the_log_did_not_exist_before(tmp_path: Path) -> None:
    log = tmp_path / "x.db-wal"
    changes = KernelChanges(log)
    log.write_bytes(b"frame")
    assert changes.wait(LONG_S)
    while changes.wait(0):  # the creation and the write may be told one by one
        pass
    with log.open("ab") as file:
        file.write(b"frame")
    assert changes.wait(LONG_S)
    changes.close()


@linux
def test_a_write_to_another_file_of_the_folder_is_not_a_change(tmp_path: Path) -> None:
    changes = KernelChanges(tmp_path / "x.db-wal")
    (tmp_path / "x.db").write_bytes(b"page")
    assert not changes.wait(LONG_S)  # it returns for the event, and finds that it names another file
    changes.close()


@linux
def test_an_interrupt_ends_a_wait_from_another_thread_and_after_the_end_is_harmless(tmp_path: Path) -> None:
    changes = KernelChanges(tmp_path / "x.db-wal")
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(changes.wait(LONG_S)))
    thread.start()
    changes.interrupt()
    thread.join(LONG_S)
    assert answers == [False]
    changes.close()
    changes.interrupt()


def test_looking_sees_a_log_that_grows_and_now_and_then_says_perhaps(tmp_path: Path) -> None:
    log = tmp_path / "x.db-wal"
    log.write_bytes(b"frame")
    changes = LookedAtChanges(log)
    assert changes.wait(0)  # never seen before
    assert not changes.wait(0)
    with log.open("ab") as file:
        file.write(b"frame")
    assert changes.wait(0)
    assert [changes.wait(0) for _ in range(10)].count(True) == 1


def _no_watch_left(log: Path) -> Changes:
    raise OSError(24, "no watch left")


def test_where_the_kernel_gives_no_watch_the_log_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse: Callable[[Path], Changes] = _no_watch_left
    monkeypatch.setattr("onward._store.sqlite.changes.KernelChanges", refuse)
    assert isinstance(watch(tmp_path / "x.db-wal"), LookedAtChanges)

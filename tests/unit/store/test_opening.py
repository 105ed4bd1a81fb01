"""Database URLs: what they mean and what is said of wrong ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from onward._store.opening import open_store
from onward.errors import ConfigurationError


def test_a_relative_path_counts_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_store("sqlite:///app.db").url == f"sqlite:///{tmp_path.resolve()}/app.db"


def test_four_slashes_are_an_absolute_path(tmp_path: Path) -> None:
    assert open_store(f"sqlite:////{str(tmp_path)[1:]}/x.db").url == f"sqlite:///{tmp_path.resolve()}/x.db"


def test_escapes_in_a_path_are_undone(tmp_path: Path) -> None:
    assert open_store(f"sqlite:///{tmp_path}/a%20b%3F.db").url == f"sqlite:///{tmp_path.resolve()}/a b?.db"


def test_opening_a_url_touches_nothing(tmp_path: Path) -> None:
    open_store(f"sqlite:///{tmp_path}/x.db")
    assert list(tmp_path.iterdir()) == []


def test_memory_is_private_unless_it_has_a_name() -> None:
    assert open_store("memory://").url == "memory://"
    assert open_store("memory://shared").url == "memory://shared"


@pytest.mark.parametrize(
    ("url", "cure"),
    [
        ("onward.db", "sqlite:///onward.db"),
        ("", "sqlite:///onward.db"),
        ("sqlite://onward.db", "sqlite:///onward.db"),
        ("sqlite:///", "sqlite:///onward.db"),
        ("sqlite:///:memory:", "memory://"),
        ("sqlite:///data/", "sqlite:///data/onward.db"),
        ("sqlite:///a.db?mode=ro", "takes none"),
        ("mysql://u@h/d", "there is no database 'mysql'"),
        ("postgresql://u:secret@h/d?schema=1", "no schema name"),
        ("postgresql://u:secret@h/d?no_such=1", "postgresql://user:password@host:5432/database"),
    ],
)
def test_a_wrong_url_is_refused_with_what_to_write_instead(url: str, cure: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_store(url)
    assert cure in str(caught.value)


def test_where_a_wrong_url_comes_from_the_environment_the_message_names_the_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ONWARD_DATABASE_URL", "postgres:app")
    with pytest.raises(ConfigurationError, match=r"^ONWARD_DATABASE_URL: 'postgres:app' is not a database URL"):
        open_store("postgres:app")
    with pytest.raises(ConfigurationError, match=r"^'onward\.db' is not a database URL"):
        open_store("onward.db")


def test_a_password_is_never_shown() -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_store("mysql://user:secret@host/db")
    assert "secret" not in str(caught.value)


def test_a_server_is_not_touched_and_its_driver_loaded_only_now() -> None:
    assert open_store("postgresql://u:secret@h/d?schema=jobs").url == "postgresql://u@h/d?schema=jobs"
    assert open_store("postgres://u@h/d").url == "postgres://u@h/d"


def test_without_the_driver_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("onward._store.postgres")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigurationError) as caught:
        open_store("postgresql://u:secret@h/d")
    assert "pip install 'onward[postgres]'" in str(caught.value)
    assert "\n" not in str(caught.value)

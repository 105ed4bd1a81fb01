"""What a PostgreSQL URL may say, and what of it people are shown."""

from __future__ import annotations

import pytest

from onward._store.postgres.address import parse_address
from onward.errors import ConfigurationError


def test_what_is_not_onwards_goes_to_libpq_as_it_is() -> None:
    address = parse_address(
        "postgresql://ann:s%20ecret@db.example:6432/app?sslmode=require&target_session_attrs=read-write"
    )
    wanted = {"user": "ann", "password": "s ecret", "host": "db.example", "port": "6432", "dbname": "app"}
    assert wanted.items() <= address.parameters.items()
    assert address.parameters["sslmode"] == "require"
    assert address.parameters["target_session_attrs"] == "read-write"
    assert (address.schema, address.is_poll_only) == ("onward", False)


def test_onwards_own_options_are_kept_from_libpq() -> None:
    address = parse_address("postgresql://host/app?schema=jobs&poll_only=1&sslmode=disable")
    assert (address.schema, address.is_poll_only) == ("jobs", True)
    assert {"schema", "poll_only"}.isdisjoint(address.parameters)


@pytest.mark.parametrize(
    ("value", "is_poll_only"), [("1", True), ("true", True), ("", True), ("0", False), ("no", False)]
)
def test_poll_only_is_a_flag(value: str, is_poll_only: bool) -> None:
    assert parse_address(f"postgresql://host/app?poll_only={value}").is_poll_only is is_poll_only


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ann:secret@host/app", "postgresql://ann@host/app"),
        ("postgresql://ann:se%40cret@host:5432/app?sslmode=require", "postgresql://ann@host:5432/app?sslmode=require"),
        ("postgresql://host/app?password=secret&schema=jobs", "postgresql://host/app?schema=jobs"),
        ("postgresql://host/app?schema=onward", "postgresql://host/app"),
        ("postgresql:///app?host=/var/run", "postgresql:///app?host=/var/run"),
        ("postgresql://ann:secret@one:1,two:2/app", "postgresql://ann@one:1,two:2/app"),
    ],
)
def test_people_are_shown_the_url_without_its_password(url: str, shown: str) -> None:
    assert parse_address(url).url == shown
    assert parse_address(parse_address(url).url).url == shown


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://host/app?schema=",
        "postgresql://host/app?schema=1st",
        "postgresql://host/app?schema=a;b",
        f"postgresql://host/app?schema={'x' * 49}",
        "postgresql://host/app?poll_only=maybe",
        "postgresql://host/app?no_such_option=1",
    ],
)
def test_what_cannot_be_meant_is_refused_without_showing_a_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_address(url)
    assert "secret" not in str(caught.value)


def test_a_dead_peer_is_noticed_within_a_lease_unless_the_url_says_otherwise() -> None:
    assert int(parse_address("postgresql://host/app").parameters["tcp_user_timeout"]) < 15_000
    assert parse_address("postgresql://host/app?tcp_user_timeout=60000").parameters["tcp_user_timeout"] == "60000"

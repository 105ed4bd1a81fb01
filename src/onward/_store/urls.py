"""Which database is meant: an explicit URL, else ``ONWARD_DATABASE_URL``, else ``sqlite:///onward.db`` (a file here)."""

from __future__ import annotations

import os

DEFAULT_URL = "sqlite:///onward.db"
ENVIRONMENT_VARIABLE = "ONWARD_DATABASE_URL"


def database_url(url: str | None) -> str:
    """The URL to use; an empty string counts as none given."""
    return url or os.environ.get(ENVIRONMENT_VARIABLE) or DEFAULT_URL

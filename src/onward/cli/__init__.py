"""The `onward` command, a file a command. `main` is its entry point (pyproject.toml, `python -m onward`).

Nothing here is imported by the library. A command's module is imported when that command is used, so that
`onward --version` and shell completion answer at once.
"""

from onward.cli.group import main

__all__ = ["main"]

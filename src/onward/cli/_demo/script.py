"""`python -m onward.cli._demo.script FILE`: runs an example as `python FILE` does, but Ctrl-C ends it without a traceback."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

INTERRUPTED = 130
"""The exit code after Ctrl-C."""


def main(file: str) -> None:
    """Run the file as the program of this process."""
    sys.argv = [file]
    sys.path.insert(0, str(Path(file).parent))
    try:
        runpy.run_path(file, run_name="__main__")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main(sys.argv[1])

"""A process of its own that replays stories under another hash seed, heap, collector threshold and perhaps Python version.

Called by test_programs.py as `python -m tests.property.replayer FILE`; prints a JSON list of differences.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from random import Random

import msgspec

from tests.property.simulator import Story, differences


def main() -> None:
    """Replay all stories of the file."""
    gc.set_threshold(1)
    rng = Random(os.urandom(8))
    heap: list[object] = []
    found = []
    for story in msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=list[Story]):
        heap += [bytearray(rng.randrange(2000)) for _ in range(rng.randrange(300))]
        heap += [object() for _ in range(rng.randrange(300))]
        rng.shuffle(heap)
        del heap[rng.randrange(1 + len(heap)) :]
        found += [f"{story.source}: {text}" for text in differences(story)]
    print(json.dumps(found))


if __name__ == "__main__":
    main()

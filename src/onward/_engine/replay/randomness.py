"""Random numbers of a workflow: the same on every replay, and not to be guessed by those who know its id.

All comes from the 128-bit random seed that is stored with the workflow and never shown, from the run and from the position.
"""

from __future__ import annotations

from hashlib import blake2b
from random import Random
from uuid import UUID


class Randomness:
    """The random numbers and UUIDs of one run of one workflow, in the order in which they are asked for."""

    __slots__ = ("_random", "_run", "_seed", "_uuids")

    def __init__(self, seed: str, run: int) -> None:
        self._seed = bytes.fromhex(seed)
        self._run = run
        self._uuids = 0
        self._random: Random | None = None

    def uuid4(self) -> UUID:
        """The next UUID."""
        self._uuids += 1
        return UUID(bytes=self._derive(f"uuid4/{self._uuids}"), version=4)

    def random(self) -> float:
        """The next number in [0, 1)."""
        if self._random is None:
            self._random = Random(int.from_bytes(self._derive("random")))
        return self._random.random()

    def _derive(self, what: str) -> bytes:
        return blake2b(f"{self._run}/{what}".encode(), key=self._seed, digest_size=16).digest()

"""How values become JSON text and return: results, workflow arguments, signals; and digests of step arguments.

Used by everything that stores or reads a value. A value that would not come back equal is refused before any I/O, with
the annotation that would cure it. Type hints are resolved at first use, or by `resolve()` at worker start. Never pickle,
never import-by-name: the classes that appear are those of the hints in the running code.
"""

from __future__ import annotations

from typing import Protocol

from onward._codec.arguments import ArgumentsCodec, digest_text
from onward._codec.values import MAX_BYTES, MAX_DEPTH, ValueCodec

__all__ = ["MAX_BYTES", "MAX_DEPTH", "ArgumentsCodec", "Codec", "PlainCodec", "ValueCodec", "digest_text"]


class Codec(Protocol):
    """Turns every stored JSON payload into another and back: encryption, compression, keeping large values elsewhere.

    Given as `codec=` to every client and worker of a database. What `encode` returns must be JSON text too (a quoted base64
    string, for instance), since the tables hold JSON; it may be another text each time. Both run on the event loop, and for
    transactional steps on a thread: they must be thread-safe, and slow work does not belong here. A payload for which they
    raise fails its own workflow with a `CodecError`. docs/howto-encryption.md says what is encoded and what is not.

    >>> class Quoted:
    ...     def encode(self, text: str) -> str:
    ...         return json.dumps(text)
    ...     def decode(self, text: str) -> str:
    ...         return json.loads(text)
    >>> import json
    >>> Quoted().encode('{"a":1}')
    '"{\\\\"a\\\\":1}"'
    """

    def encode(self, text: str) -> str:
        """The text to store for a payload."""
        ...

    def decode(self, text: str) -> str:
        """The payload of a stored text."""
        ...


class PlainCodec:
    """The default `Codec`: stores payloads as they are."""

    __slots__ = ()

    def encode(self, text: str) -> str:
        """The text itself."""
        return text

    def decode(self, text: str) -> str:
        """The text itself."""
        return text

"""What stands in place of a payload that the `Codec` hook could not decode: text that is no JSON and says why.

Made by the store that applies the hook (_store/coded.py), one payload at a time, so that a row nobody here can read spoils
nothing but itself. Whoever decodes payloads raises its `error`; it is never given to workflow code.
"""

from __future__ import annotations

from typing import Self

from onward.errors import CodecError


class Undecodable(str):
    """A payload that cannot be read here.

    Args:
        where: what it is: ``arguments of workflow 'x'``.
        reason: what the codec said.
        stored: the text as it is stored. Writing the payload again writes this.
    """

    __slots__ = ("reason", "stored", "where")

    reason: str
    stored: str
    where: str

    def __new__(cls, where: str, reason: str, stored: str) -> Self:
        self = super().__new__(cls, f"<cannot be decoded here: {reason}>")
        self.where, self.reason, self.stored = where, reason, stored
        return self

    def error(self) -> CodecError:
        """What to raise where the payload is needed."""
        return CodecError(
            f"the stored text cannot be decoded: {self.reason}; give every client and worker of this database the codec "
            "(and the key) it was stored with",
            where=self.where,
        )

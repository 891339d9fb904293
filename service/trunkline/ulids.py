"""Makes identifiers that sort by the time they were made (ULID)."""

import os
import time
from collections.abc import Callable

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32
_RANDOM_BITS = 80


class Ulids:
    """A source of ULIDs: 48 bits of Unix milliseconds, 80 random ones, 26 characters.

    Those made within a millisecond count up, so that one source's identifiers always rise.
    """

    def __init__(self, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._clock_ns = clock_ns
        self._last = 0

    def new(self) -> str:
        """The next identifier."""
        milliseconds = self._clock_ns() // 1_000_000
        drawn = milliseconds << _RANDOM_BITS | int.from_bytes(os.urandom(_RANDOM_BITS // 8), "big")
        same_or_past = milliseconds <= self._last >> _RANDOM_BITS
        self._last = self._last + 1 if same_or_past else drawn
        return "".join(_ALPHABET[self._last >> shift & 31] for shift in range(125, -1, -5))

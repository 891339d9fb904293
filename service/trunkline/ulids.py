"""Makes identifiers that sort by the time they were made (ULID)."""

import os
import time
from collections.abc import Callable, Iterator

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32
_RANDOM_BITS = 80
_DRAWN_TOGETHER = 64
_PAIRS = [a + b for a in _ALPHABET for b in _ALPHABET]


class Ulids:
    """A source of ULIDs: 48 bits of Unix milliseconds, 80 random ones, 26 characters.

    Those made within a millisecond count up, so that one source's identifiers always rise.
    """

    def __init__(self, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._clock_ns = clock_ns
        self._last = 0
        self._random: Iterator[bytes] = iter(())

    def new(self) -> str:
        """The next identifier."""
        milliseconds = self._clock_ns() // 1_000_000
        drawn = milliseconds << _RANDOM_BITS | int.from_bytes(self._bits(), "big")
        same_or_past = milliseconds <= self._last >> _RANDOM_BITS
        self._last = self._last + 1 if same_or_past else drawn
        last = self._last
        return "".join([_PAIRS[last >> shift & 1023] for shift in range(120, -1, -10)])

    def _bits(self) -> bytes:
        """Random bits of the system's, asked for together: other threads go first each time."""
        found = next(self._random, None)
        if found is None:
            size = _RANDOM_BITS // 8
            drawn = os.urandom(size * _DRAWN_TOGETHER)
            self._random = iter([drawn[i : i + size] for i in range(0, len(drawn), size)])
            found = next(self._random)
        return found

"""Counts of what happened and of how long it took: cheap to add to, read when somebody asks."""

from bisect import bisect_left
from collections.abc import Iterator

BOUNDS_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0
)  # fmt: skip
"""Upper bounds of the buckets; one more takes what is longer."""


class Durations:
    """Durations by bucket.

    Attributes:
        seconds: their sum.
    """

    __slots__ = ("_counts", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self._counts = [0] * (len(BOUNDS_SECONDS) + 1)

    def add(self, seconds: float) -> None:
        """Count one."""
        self.seconds += seconds
        self._counts[bisect_left(BOUNDS_SECONDS, seconds)] += 1

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """For each bound, infinity last, how many took no longer."""
        total = 0
        for bound, count in zip((*BOUNDS_SECONDS, float("inf")), self._counts, strict=True):
            total += count
            yield bound, total


class Tally:
    """What was answered, how, and how long it took.

    Attributes:
        ended: how many answers there were, by what was asked and how it ended.
        durations: how long answers took, by what was asked.
    """

    __slots__ = ("durations", "ended")

    def __init__(self) -> None:
        self.ended: dict[tuple[str, str], int] = {}
        self.durations: dict[str, Durations] = {}

    def add(self, what: str, code: str, seconds: float | None) -> None:
        """Count one; without a duration, one whose length says nothing."""
        key = what, code
        self.ended[key] = self.ended.get(key, 0) + 1
        if seconds is not None:
            found = self.durations.get(what)
            if found is None:
                found = self.durations[what] = Durations()
            found.add(seconds)

"""How much is answered at once. There is no queue: who comes when all is taken may try again."""

from trunkline.errors import ExhaustedError

RETRY_SECONDS = 0.5
TURNED_AWAY = "TOO_MANY_CALLS"


class Gate:
    """Lets so many be inside at once.

    Args:
        size: how many.
        what: what they are, for those who are turned away: `calls`, `streams`.

    Attributes:
        size: how many may be inside.
        inside: how many are.
        turned_away: how many came when it was full.
    """

    __slots__ = ("_what", "inside", "size", "turned_away")

    def __init__(self, size: int, what: str) -> None:
        self.size = size
        self.inside = self.turned_away = 0
        self._what = what

    def enter(self) -> None:
        """Go in.

        Raises:
            ExhaustedError: it is full; nothing was done.
        """
        if self.inside >= self.size:
            self.turned_away += 1
            raise ExhaustedError(
                TURNED_AWAY,
                f"the server has as many {self._what} at once as it may ({self.size}); nothing was"
                " done: try again",
                retry_seconds=RETRY_SECONDS,
            )
        self.inside += 1

    def leave(self) -> None:
        """Go out."""
        self.inside -= 1

"""What tells one call from others, in the log and to who made it: `x-request-id`."""

import random
import re

KEY = "x-request-id"
_FORM = re.compile(r"[!-~]{1,128}", re.ASCII)
_BITS = 128


class RequestIds:
    """Takes the ids that callers send, and makes those that they do not: 32 hexadecimal digits.

    They are told apart by chance alone and open nothing, so what is random in them need not be the
    system's, which costs more than all else in an id.
    """

    def __init__(self) -> None:
        self._random = random.Random()  # noqa: S311 - see above

    def of(self, *sent: str | None) -> str:
        """The first that was sent and may be one, or a new one."""
        for one in sent:
            if one and _FORM.fullmatch(one):
                return one
        return f"{self._random.getrandbits(_BITS):032x}"

"""Codec lists as Asterisk writes them: `ulaw,alaw:20,!g729,all`. Pure.

Asterisk itself ignores most of what `disallow` says when a trunk is read from a database, and one
unknown codec hides the whole trunk from it; so the offer is worked out here and checked here.
"""

import difflib
import re
from collections.abc import Sequence
from functools import lru_cache

ALL = "all"
PACKET_MILLISECONDS = range(10, 301)
TOKENS_MAX = 64
OFFERS_CACHED_MAX = 4096
DEFAULT_CODECS = (
    "ulaw,alaw,g722,opus,g729,gsm,ilbc,g726,g726aal2,g723,speex,speex16,speex32,"
    "slin,slin16,siren7,siren14,g719,codec2,silk8,silk16"
)
_RTP_NAMES = {"pcmu": "ulaw", "pcma": "alaw", "g711": "ulaw", "g711u": "ulaw", "g711a": "alaw"}
_TOKEN = re.compile(r"(!?)([a-z0-9]+)(?::([0-9]{1,4}))?", re.ASCII)


class CodecError(ValueError):
    """A codec list that can't be read; the message says where and why."""


class Catalogue:
    """The codecs that a deployment knows, in the order that `all` stands for."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._known = frozenset(names)
        self.offer = lru_cache(maxsize=OFFERS_CACHED_MAX)(self._offer)

    def normal(self, text: str, *, removal: bool) -> str:
        """The list in normal form: lower case, no blanks, the tokens as given.

        Args:
            text: the list as sent.
            removal: whether it is a `disallow`, where packet lengths mean nothing but are kept.

        Raises:
            CodecError: an unknown codec, a bad packet length, an empty token.
        """
        tokens = [token.strip().lower() for token in text.split(",")]
        if len(tokens) > TOKENS_MAX:
            raise CodecError(f"has {len(tokens)} codecs; at most {TOKENS_MAX}")
        for token in tokens:
            self._check(token)
        if not removal and not self.walk(",".join(tokens)):
            raise CodecError("leaves no codec to offer")
        return ",".join(tokens)

    def walk(self, text: str) -> dict[str, str]:
        """The tokens that a list in normal form leaves, by codec name, in order."""
        left: dict[str, str] = {}
        for token in text.split(","):
            name = token.partition(":")[0]
            if token == ALL:
                left |= {n: n for n in self.names if n not in left}
            elif token.startswith("!"):
                left.pop(token[1:], None)
            else:
                left[name] = token
        return left

    def removed(self, disallow: str) -> tuple[str, ...]:
        """The names that a `disallow` in normal form takes out; none for `all` alone."""
        return () if disallow == ALL else tuple(self.walk(disallow))

    def _offer(self, allow: str, disallow: str) -> tuple[str, ...]:
        removed = frozenset(self.removed(disallow))
        return tuple(token for name, token in self.walk(allow).items() if name not in removed)

    def _check(self, token: str) -> None:
        match = _TOKEN.fullmatch(token)
        if not match:
            raise CodecError(
                f'has "{ascii(token[:32])[1:-1]}" where a codec name, "!name" or "all" is expected'
            )
        removed, name, packet = match.groups()
        if name == ALL and not removed and not packet:
            return
        if name not in self._known:
            raise CodecError(f'names "{name[:32]}", which is not a known codec{self._hint(name)}')
        if packet and (removed or int(packet) not in PACKET_MILLISECONDS):
            raise CodecError(f'has "{token[:32]}"; a packet length is 10 to 300 ms, as in ulaw:20')

    def _hint(self, name: str) -> str:
        near = _RTP_NAMES.get(name) or next(
            iter(difflib.get_close_matches(name, self.names, 1)), ""
        )
        return f'; use "{near}"' if near in self._known else ""

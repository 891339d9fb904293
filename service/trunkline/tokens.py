"""The form of tokens: `tl_<id>_<secret>_<checksum>`. Pure, but for the randomness of new ones."""

import hashlib
import secrets
import string
import zlib
from dataclasses import dataclass

OPERATOR_READ = "operator:read"  # sees all accounts where a call asks for them
SCOPES = ("trunks:read", "trunks:write", "account:admin", OPERATOR_READ)
TOKEN_CHARACTERS_MAX = 256
BOOTSTRAP_CHARACTERS_MIN = 32
_DIGITS = string.digits + string.ascii_letters
_ID_CHARACTERS = 12
_SECRET_CHARACTERS = 43  # 256 bits in base 62
_CHECKSUM_CHARACTERS = 6


@dataclass(frozen=True, slots=True)
class Minted:
    """A new token: the text is shown once, the hash is what is stored."""

    token_id: str
    text: str

    def __repr__(self) -> str:
        return f"Minted({self.token_id})"


def mint() -> Minted:
    """Make a token of 256 random bits."""
    token_id, secret = (
        "".join(secrets.choice(_DIGITS) for _ in range(n))
        for n in (_ID_CHARACTERS, _SECRET_CHARACTERS)
    )
    body = f"tl_{token_id}_{secret}"
    return Minted(token_id, f"{body}_{_checksum(body)}")


def token_id(text: str) -> str | None:
    """The id in a token; None where the checksum says that it is none of ours."""
    body, _, checksum = text.rpartition("_")
    prefix, _, rest = body.partition("_")
    found, _, _ = rest.partition("_")
    whole = prefix == "tl" and len(found) == _ID_CHARACTERS and found.isalnum()
    return found if whole and found.isascii() and checksum == _checksum(body) else None


def digest(text: str) -> bytes:
    """What is stored of a token. Its 256 random bits need no slow hash."""
    return hashlib.sha256(text.encode()).digest()


def _checksum(body: str) -> str:
    value, text = zlib.crc32(body.encode()), ""
    for _ in range(_CHECKSUM_CHARACTERS):
        value, digit = divmod(value, len(_DIGITS))
        text = _DIGITS[digit] + text
    return text

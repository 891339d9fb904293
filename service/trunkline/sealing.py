"""Seals secrets for storage with AES-256-GCM (NIST SP 800-38D) and opens them. Pure.

The same keys make fingerprints (HMAC-SHA-256, RFC 2104), which tell whether two texts are equal to
nobody who lacks the key.
"""

import hashlib
import hmac
import os
from collections.abc import Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
_NONCE_BYTES = 12
_FORMAT = b"\x01"


class SealError(Exception):
    """A sealed value that this ring can't open: the key is missing or is another one."""


class KeyRing:
    """The deployment's secret keys by id, newest first: the newest seals, all open.

    Attributes:
        newest: the id of the key that seals.
    """

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        self._ciphers = {key_id: AESGCM(key) for key_id, key in keys.items()}
        self._printers = {key_id: _derived(key) for key_id, key in keys.items()}
        self.newest = next(iter(self._ciphers))

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The ids of all keys, newest first."""
        return tuple(self._ciphers)

    def seal(self, secret: str, *context: str) -> bytes:
        """Seal under the newest key, bound to a context: account, trunk and field."""
        nonce = os.urandom(_NONCE_BYTES)
        bound = _bound(self.newest, context)
        return _FORMAT + nonce + self._ciphers[self.newest].encrypt(nonce, secret.encode(), bound)

    def open(self, sealed: bytes, key_id: str, *context: str) -> str:
        """Open what `seal` made under a key, in the same context.

        Raises:
            SealError: no such key, another key of that id, or another context.
        """
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise SealError(f"no key {key_id} in the ring")
        if sealed[:1] != _FORMAT or len(sealed) <= 1 + _NONCE_BYTES:
            raise SealError("not in a form that this version seals in")
        nonce, text = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        try:
            return cipher.decrypt(nonce, text, _bound(key_id, context)).decode()
        except InvalidTag:
            raise SealError(f"key {key_id} does not open it") from None

    def fingerprint(self, content: bytes, key_id: str = "") -> bytes | None:
        """The fingerprint of a content under a key, the newest unless named; None without it."""
        key = self._printers.get(key_id or self.newest)
        return hmac.digest(key, content, "sha256") if key else None


def _derived(key: bytes) -> bytes:
    """A key of its own for fingerprints, so that no key serves two purposes."""
    return hmac.digest(key, b"trunkline fingerprint", hashlib.sha256)


def _bound(key_id: str, context: tuple[str, ...]) -> bytes:
    """The associated data: each part with its length, so that no two contexts read the same."""
    return b"".join(
        len(part).to_bytes(2, "big") + part for part in (p.encode() for p in (*context, key_id))
    )

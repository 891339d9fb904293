"""The keys that seal secrets: where they are from, whether they are the database's, new ones."""

import base64
import logging
import os
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from trunkline.config import PREFIX, Settings, SettingsError
from trunkline.sealing import KEY_BYTES, KeyRing, SealError
from trunkline.store.identities import IdentityStore
from trunkline.store.secrets import FIELDS, START, Sealed, SecretStore

log = logging.getLogger(__name__)

BATCH_MAX = 100
UNOPENED_KEPT_MAX = 1000
_CHECK_VALUE = "trunkline"
_CHECK_CONTEXT = ("", "", "secret_checks")
_KEY_ID = re.compile(r"[A-Za-z0-9._-]{1,32}", re.ASCII)


def given(settings: Settings) -> dict[str, bytes]:
    """The keys that seal secrets by id, newest first; empty where none are given.

    Raises:
        SettingsError: a key can't be read; its id is named, its value is not.
    """
    if settings.secret_keys_file:
        return of_file(Path(settings.secret_keys_file))
    return parsed(settings.secret_keys)


def of_file(path: Path) -> dict[str, bytes]:
    """The keys in a file, at least one.

    Raises:
        SettingsError: as `given`.
    """
    try:
        keys = parsed(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError):
        raise SettingsError(f"{path} can't be read as a file of secret keys") from None
    if not keys:
        raise SettingsError(f"{path} has no secret key in it")
    return keys


def parsed(text: str, origin: str = PREFIX + "SECRET_KEYS") -> dict[str, bytes]:
    """Keys in the form of SECRET_KEYS, from somewhere that the messages name.

    Raises:
        SettingsError: as `given`.
    """
    keys: dict[str, bytes] = {}
    for position, entry in enumerate(re.split(r"[,\n]", text), 1):
        if not entry.strip() or entry.strip().startswith("#"):
            continue
        key_id, _, encoded = entry.strip().partition(":")
        if not _KEY_ID.fullmatch(key_id) or not encoded:
            raise SettingsError(f"{origin}: entry {position} is not id:base64")
        try:
            key = base64.b64decode(encoded.strip(), validate=True)
        except ValueError:
            key = b""
        if len(key) != KEY_BYTES:
            raise SettingsError(
                f"{origin}: the key {key_id} is not the base64 of {KEY_BYTES} bytes"
            )
        if key_id in keys:
            raise SettingsError(f"{origin}: the key {key_id} is there twice")
        keys[key_id] = key
    return keys


def of(settings: Settings) -> dict[str, bytes]:
    """The keys that a deployment seals with, by id; made at the first start of an embedded one.

    Raises:
        SettingsError: they are missing, or can't be read.
    """
    found = given(settings)
    if found:
        return found
    if settings.database_url:
        raise SettingsError(
            "TRUNKLINE_SECRET_KEYS or TRUNKLINE_SECRET_KEYS_FILE: with a DATABASE_URL the keys that"
            ' seal secrets must be given; make one with: echo "k1:$(openssl rand -base64 32)"'
        )
    path = Path(settings.data_dir) / "secret-keys"
    if not path.exists():
        if (path.parent / "pg").exists():
            raise SettingsError(
                f"{path} is missing, and the database beside it was made with it: restore it"
            )
        line = f"k1:{base64.b64encode(os.urandom(KEY_BYTES)).decode()}\n"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
        log.warning(
            "secret_keys_made", extra={"path": str(path), "why": "backups are useless without it"}
        )
    return of_file(path)


async def check(identities: IdentityStore, ring: KeyRing) -> None:
    """See that the ring has every key in use, and no other key under the same id.

    Raises:
        SettingsError: it has not; the keys are named, and how many secrets need them.
    """
    await compare(identities, ring)
    missing = [k for k in await identities.keys_in_use() if k not in ring.key_ids]
    if missing:
        counts = [f"{k} ({await identities.sealed_count(k)} secrets)" for k in missing]
        raise SettingsError(
            f"secrets in the database are sealed under keys that are not given: {', '.join(counts)}"
            "; give them too, after the newest, until `trunkline secrets rotate` has found nothing"
            " left under them"
        )
    await introduce(identities, ring)


async def compare(identities: IdentityStore, ring: KeyRing) -> None:
    """See that the ring has no other key than the database under the same id.

    Raises:
        SettingsError: it has; the key is named.
    """
    for key_id in await strangers(identities, ring):
        raise _stranger(key_id)


async def strangers(identities: IdentityStore, ring: KeyRing) -> list[str]:
    """The ids under which the ring has another key than the database."""
    known = await identities.check_values()
    return [k for k in ring.key_ids if k in known and not _opens(ring, k, known[k])]


async def introduce(identities: IdentityStore, ring: KeyRing) -> None:
    """Let the database know the newest key, which is going to seal.

    Raises:
        SettingsError: somebody else has just let it know another one of this id.
    """
    known = await identities.check_values()
    if ring.newest not in known:
        sealed = ring.seal(_CHECK_VALUE, *_CHECK_CONTEXT)
        if not _opens(ring, ring.newest, await identities.add_check_value(ring.newest, sealed)):
            raise _stranger(ring.newest)


def _opens(ring: KeyRing, key_id: str, sealed: bytes) -> bool:
    try:
        ring.open(sealed, key_id, *_CHECK_CONTEXT)
    except SealError:
        return False
    return True


def _stranger(key_id: str) -> SettingsError:
    return SettingsError(
        f"the secret key {key_id} is not the one of that id that this database knows"
    )


class Rotation:
    """Seals every secret anew that is not under the newest key, while servers go on.

    Each batch is one statement, which writes a secret only where it is still the one that was
    opened. So it can be stopped at any time, and done again: it goes on with what is left.

    Attributes:
        resealed: how many were.
        unopened_count: how many can't be opened, as the key is missing or they are damaged.
        unopened: which, at most UNOPENED_KEPT_MAX of them.
    """

    def __init__(self, secrets: SecretStore, ring: KeyRing) -> None:
        self._secrets = secrets
        self._ring = ring
        self.resealed = 0
        self.unopened_count = 0
        self.unopened: list[Sealed] = []

    async def once(self) -> AsyncIterator[None]:
        """Go through all trunks once, a batch for each step."""
        self.unopened_count, self.unopened = 0, []
        for field in FIELDS:
            place: tuple[str, str] | None = START
            while place is not None:
                found, place = await self._secrets.others(field, self._ring.newest, place)
                for first in range(0, len(found), BATCH_MAX):
                    await self._reseal(field, found[first : first + BATCH_MAX])
                    yield

    async def _reseal(self, field: str, batch: Sequence[Sealed]) -> None:
        opened: list[Sealed] = []
        sealed: list[bytes] = []
        for one in batch:
            try:
                secret = self._ring.open(one.sealed, one.key_id, *one.context)
            except SealError:
                self.unopened_count += 1
                if len(self.unopened) < UNOPENED_KEPT_MAX:
                    self.unopened.append(one)
                continue
            opened.append(one)
            sealed.append(self._ring.seal(secret, *one.context))
        if opened:
            newest = self._ring.newest
            self.resealed += await self._secrets.reseal(field, newest, opened, sealed)

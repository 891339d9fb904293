"""The keys that seal secrets: where they are from, and whether they are the database's."""

import base64
import logging
import os
from pathlib import Path

from trunkline import config
from trunkline.config import Settings, SettingsError
from trunkline.sealing import KEY_BYTES, KeyRing, SealError
from trunkline.store.identities import IdentityStore

log = logging.getLogger(__name__)

_CHECK_VALUE = "trunkline"
_CHECK_CONTEXT = ("", "", "secret_checks")


def of(settings: Settings) -> dict[str, bytes]:
    """The keys that a deployment seals with, by id; made at the first start of an embedded one.

    Raises:
        SettingsError: they are missing, or can't be read.
    """
    given = config.secret_keys(settings)
    if given:
        return given
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
    return config.keys_of_file(path)


async def check(identities: IdentityStore, ring: KeyRing) -> None:
    """See that the ring has every key in use, and no other key under the same id.

    Raises:
        SettingsError: it has not; the keys are named, and how many secrets need them.
    """
    known = await identities.check_values()
    for key_id in ring.key_ids:
        if key_id in known:
            try:
                ring.open(known[key_id], key_id, *_CHECK_CONTEXT)
            except SealError:
                raise SettingsError(
                    f"the secret key {key_id} is not the one of that id that this database knows"
                ) from None
    missing = [k for k in await identities.keys_in_use() if k not in ring.key_ids]
    if missing:
        counts = [f"{k} ({await identities.sealed_count(k)} secrets)" for k in missing]
        raise SettingsError(
            f"secrets in the database are sealed under keys that are not given: {', '.join(counts)}"
        )
    if ring.newest not in known:
        sealed = ring.seal(_CHECK_VALUE, *_CHECK_CONTEXT)
        await identities.add_check_value(ring.newest, sealed)

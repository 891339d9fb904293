"""`trunkline secrets`: which keys seal what, and new keys in the place of old ones."""

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from trunkline import keys
from trunkline.cli.admin import on_database
from trunkline.config import Settings
from trunkline.sealing import KeyRing
from trunkline.store.database import Database
from trunkline.store.identities import IdentityStore
from trunkline.store.secrets import SecretStore

INTERRUPTED = 130
PROGRESS_SECONDS = 1.0
PASSES_MAX = 20
PASS_PAUSE_SECONDS = 0.2
ORDER = """\
Seal all secrets under the newest key, while servers run. No value changes: no revision, no etag, no
time, no history and no event comes of it. It can be interrupted at any time and run again: it goes
on with what is left. To put a new key in the place of an old one:

  1. Put the new key first into the keys of every server (SECRET_KEYS, SECRET_KEYS_FILE, or
     secret-keys in DATA_DIR), before the old one, and restart the servers one by one. One that has
     not been restarted goes on, and seals under the old key. (Where a call may be retried at
     another server with the same request_id meanwhile, put the new key last, restart all, then
     first, restart all: a server can't tell whether two requests are the same without the key.)
  2. Run this command, with the same keys, until it ends with 0.
  3. Take the old key out of the keys of every server once no answers are kept under it, which
     `trunkline secrets status` tells. Keep it with the backups from before: they need it.

A key that is taken out too early is missed: servers refuse to start and say how many secrets need
it. Ends with 1 where secrets are left under other keys, or can't be opened; these are listed."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key, in the ring or not, and what needs it.

    Attributes:
        key_id: its id.
        state: `newest`, `older`, `missing` from the ring, or `wrong`: not the database's.
        in_ring: whether the ring has a key of the id.
        newest: whether the ring's key of the id is the one that seals.
        secrets: how many secrets it has sealed.
        answers: how many answers, kept for retries, have fingerprints of it.
    """

    key_id: str
    state: str
    in_ring: bool
    newest: bool
    secrets: int
    answers: int

    def __str__(self) -> str:
        return f"{self.key_id}  {self.state}  secrets={self.secrets}  answers={self.answers}"


def status(settings: Settings, parsed: argparse.Namespace) -> int:
    """Print how much is sealed under which key."""

    async def work(database: Database) -> int:
        ring = KeyRing(keys.of(settings))
        strangers = await keys.strangers(IdentityStore(database), ring)
        found = await _keys(SecretStore(database), ring, strangers)
        if parsed.json:
            print(json.dumps([asdict(key) for key in found], indent=2))
        else:
            _say(found)
        return 0

    return on_database(settings, work)


def rotate(settings: Settings, _: argparse.Namespace) -> int:
    """Seal every secret under the newest key."""

    async def work(database: Database) -> int:
        ring = KeyRing(keys.of(settings))
        identities = IdentityStore(database)
        await keys.compare(identities, ring)
        if ring.newest not in await identities.check_values():
            _warn(f"no server was started with {ring.newest} yet: without it none will start again")
        await keys.introduce(identities, ring)
        return await _Rotating(SecretStore(database), ring, settings.idempotency_hours).run()

    return on_database(settings, work)


class _Rotating:
    """A rotation that tells how far it is, and ends when it is told to."""

    def __init__(self, secrets: SecretStore, ring: KeyRing, hours: int) -> None:
        self._secrets = secrets
        self._ring = ring
        self._hours = hours
        self._rotation = keys.Rotation(secrets, ring)
        self._stopped = False

    async def run(self) -> int:
        """Rotate; the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop)
        left = await self._left()
        _say([f"{left} secrets are to be sealed under {self._ring.newest}"])
        for _ in range(PASSES_MAX):
            await self._pass(left)
            if self._stopped:
                _say([f"re-sealed {self._rotation.resealed} secrets"])
                _warn("interrupted: run it again, and it goes on with what is left")
                return INTERRUPTED
            # What is left was locked just now, or is new from a server that seals under an old key.
            if await self._left() <= self._rotation.unopened_count:
                break
            await asyncio.sleep(PASS_PAUSE_SECONDS)
        return await self._tell()

    async def _pass(self, total: int) -> None:
        told = time.monotonic()
        async for _ in self._rotation.once():
            if self._stopped:
                return
            if time.monotonic() - told >= PROGRESS_SECONDS:
                told = time.monotonic()
                _say([f"re-sealed {self._rotation.resealed} of {total}"])

    async def _tell(self) -> int:
        found = await _keys(self._secrets, self._ring, [])
        _say([f"re-sealed {self._rotation.resealed} secrets", *found])
        for one in self._rotation.unopened:
            place = f"{one.field} of trunk {one.trunk_id} in account {one.account_id}"
            _warn(f"can't be opened with the keys given: {place}, sealed under {one.key_id}")
        more = self._rotation.unopened_count - len(self._rotation.unopened)
        if more:
            _warn(f"can't be opened with the keys given: {more} more")
        left = sum(key.secrets for key in found if not key.newest)
        if left:
            _warn(f"{left} secrets are not under {self._ring.newest}; {_advice(self._rotation)}")
            return 1
        _say(free(found, self._hours))
        return 0

    async def _left(self) -> int:
        counts = await self._secrets.secrets()
        return sum(count for key_id, count in counts.items() if key_id != self._ring.newest)

    def _stop(self) -> None:
        if self._stopped:
            os._exit(INTERRUPTED)
        self._stopped = True


async def _keys(secrets: SecretStore, ring: KeyRing, strangers: Sequence[str]) -> list[Key]:
    return table(ring.key_ids, strangers, await secrets.secrets(), await secrets.answers())


def table(
    ring: Sequence[str],
    strangers: Sequence[str],
    secrets: Mapping[str, int],
    answers: Mapping[str, int],
) -> list[Key]:
    """The keys of the ring, newest first, then those that are missing from it.

    Args:
        ring: the ids of its keys, newest first.
        strangers: those under which the database knows another key.
        secrets: how many secrets are sealed under which key.
        answers: how many answers are kept under which key.
    """
    found = []
    for key_id in [*ring, *sorted({*secrets, *answers} - {*ring})]:
        newest, in_ring = key_id == ring[0], key_id in ring
        state = "newest" if newest else "older" if in_ring else "missing"
        state = "wrong" if key_id in strangers else state
        counts = secrets.get(key_id, 0), answers.get(key_id, 0)
        found.append(Key(key_id, state, in_ring, newest, *counts))
    return found


def free(found: Sequence[Key], hours: int) -> Iterator[str]:
    """Which keys may be taken out of the ring, where all secrets are under the newest."""
    for key in found:
        if key.newest or not key.in_ring:
            continue
        if key.answers:
            yield (
                f"{key.key_id} may be taken out of the keys once no answers are kept under it:"
                f" {key.answers} are, each for {hours} hours (TRUNKLINE_IDEMPOTENCY_HOURS)"
            )
        else:
            yield f"{key.key_id} may be taken out of the keys; backups from before need it still"


def _advice(rotation: keys.Rotation) -> str:
    if rotation.unopened_count:
        return "give the keys that they are sealed under, or set those that are damaged anew"
    return "a server seals under an older key, or has them locked: restart it, then run this again"


def _say(lines: Iterable[object]) -> None:
    for line in lines:
        print(line, flush=True)


def _warn(what: str) -> None:
    print(f"trunkline: {what}", file=sys.stderr, flush=True)

"""What happens between the start of a server and its end, as far as its database goes."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from trunkline import errors, keys, migrate
from trunkline.auth import BOOTSTRAP_ACCOUNT
from trunkline.config import Settings
from trunkline.readiness import Readiness
from trunkline.sealing import KeyRing
from trunkline.store.database import Database
from trunkline.store.identities import IdentityStore

log = logging.getLogger(__name__)

PROBE_SECONDS = 1.0
PROBE_SECONDS_MAX = 5.0
PROBE_FAILURES_MAX = 2
"""How many probes in a row may fail before the server is not ready."""
PROBE_SUCCESSES_MIN = 2
"""How many have to succeed in a row before it is again."""


class Startup:
    """Brings the database up to date, checks the keys, and then keeps readiness true.

    Attributes:
        ready: set once the server has become ready for the first time.
        bootstrap: whether the bootstrap token acted then.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        identities: IdentityStore,
        ring: KeyRing,
        readiness: Readiness,
        background: Callable[[], AbstractAsyncContextManager[None]],
    ) -> None:
        self._settings = settings
        self._database = database
        self._identities = identities
        self._ring = ring
        self._readiness = readiness
        self.ready = asyncio.Event()
        self.bootstrap = False
        self._background = background
        self._said = ""

    async def run(self) -> None:
        """Run until cancelled.

        Raises:
            SettingsError: the keys are not the database's.
        """
        while True:
            if await self._prepared():
                break
            await asyncio.sleep(PROBE_SECONDS)
        async with self._background():
            self._readiness.serve()
            self.ready.set()
            await self._watch_over()

    async def _watch_over(self) -> None:
        failures = successes = 0
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            if await self._probe():
                failures, successes = 0, successes + 1
                away = not self._readiness.ready and not self._readiness.draining
                if away and successes >= PROBE_SUCCESSES_MIN:
                    log.info("ready_again")
                    self._said = ""
                    self._readiness.serve()
                continue
            failures, successes = failures + 1, 0
            if failures == PROBE_FAILURES_MAX and self._readiness.ready:
                # Calls are still tried: they may fare better than the probe, and say why if not.
                log.warning("not_ready")
                self._readiness.suspend(None)

    async def _prepared(self) -> bool:
        try:
            if self._settings.migrate == "auto":
                for step in await migrate.apply(self._database):
                    log.info("migrated", extra={"version": step.version, "step": step.name})
            if not await self._schema_fits():
                return False
            await keys.check(self._identities, self._ring)
            if self._settings.bootstrap_token:
                await self._identities.create_account(BOOTSTRAP_ACCOUNT)
                self.bootstrap = not await self._identities.any_token()
        except migrate.SchemaError as error:
            return self._not_ready("SCHEMA_UNKNOWN", str(error))
        except errors.UnavailableError as error:
            return self._not_ready(error.reason, error.message)
        return True

    async def _schema_fits(self) -> bool:
        missing = await migrate.missing(self._database)
        if missing:
            what = f"the database lacks schema version {missing[0].version:04}"
            return self._not_ready("SCHEMA_BEHIND", f"{what}: run `trunkline migrate`")
        return True

    async def _probe(self) -> bool:
        try:
            async with asyncio.timeout(PROBE_SECONDS_MAX):
                return await self._schema_fits()
        except migrate.SchemaError as error:
            return self._not_ready("SCHEMA_UNKNOWN", str(error))
        except (errors.UnavailableError, TimeoutError):
            return False
        except Exception:  # of a database that fails: no reason to end with it
            log.exception("probe_failed")
            return False

    def _not_ready(self, reason: str, why: str) -> bool:
        if why != self._said:
            log.error("not_ready", extra={"reason": reason, "why": why})
            self._said = why
        self._readiness.suspend(
            errors.UnavailableError(reason, f"the server is not ready: {why}", retry_seconds=1.0)
        )
        return False

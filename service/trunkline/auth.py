"""Who calls: tokens looked up once, kept for seconds, and looked after in the background."""

import asyncio
import contextlib
import hmac
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from trunkline import tokens
from trunkline.errors import DeniedError, TrunklineError, UnauthenticatedError
from trunkline.store.identities import IdentityStore

log = logging.getLogger(__name__)
T = TypeVar("T")

REVOCATION_SECONDS_MAX = 5.0
REFRESH_SECONDS = 1.5
FRESH_SECONDS = 4.0  # less than REVOCATION_SECONDS_MAX by the time a look-up may take
KNOWN_MAX = 10_000
UNKNOWN_MAX = 10_000
IDLE_SECONDS = 300.0
BOOTSTRAP_ACCOUNT = "default"
BOOTSTRAP_ID = "bootstrap"


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose call it is: the account, the token (for the log), and what it may do."""

    account_id: str
    token_id: str
    scopes: frozenset[str]


@dataclass(slots=True)
class _Known:
    identity: Identity
    expires_at: datetime | None
    checked: float
    used: float


_caller: ContextVar[Identity] = ContextVar("caller")
_recheck: ContextVar[Callable[[], Awaitable[None]]] = ContextVar("recheck")


def caller() -> Identity:
    """Whose call the current task answers."""
    return _caller.get()


def set_caller(identity: Identity, recheck: Callable[[], Awaitable[None]]) -> None:
    """Say whose call the current task answers, and how to see that it still may."""
    _caller.set(identity)
    _recheck.set(recheck)


async def still_allowed() -> None:
    """See that the caller of the current task still may call: for a stream, every few seconds.

    Raises:
        UnauthenticatedError: the token has expired or was revoked.
        UnavailableError: the database can't be asked.
    """
    await _recheck.get()()


def require_scope(identity: Identity, scope: str) -> None:
    """See that a caller has a scope.

    Raises:
        DeniedError: it has not.
    """
    if scope not in identity.scopes:
        raise DeniedError("SCOPE_MISSING", f"the token lacks the scope {scope}", scope=scope)


class Verifier:
    """Tells who a token is, without a round trip where it was seen within FRESH_SECONDS.

    A background task looks up all tokens in use with one statement every REFRESH_SECONDS, so that
    a revoked one stops within REVOCATION_SECONDS_MAX while those in use never wait for a look-up.
    When the database can't be asked, a token that is no longer fresh is UNAVAILABLE, not
    UNAUTHENTICATED.

    Args:
        store: where tokens are.
        bootstrap: a token that acts on the account `default` while no token was ever made, or
            empty for none.
    """

    def __init__(self, store: IdentityStore, bootstrap: str) -> None:
        self._store = store
        self._bootstrap = tokens.digest(bootstrap) if bootstrap else None
        self._bootstrap_until = 0.0
        self._bootstrap_over = False
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._unknown: OrderedDict[bytes, float] = OrderedDict()
        self._looking: dict[bytes, asyncio.Task[Identity | None]] = {}

    async def identify(self, authorization: str | None) -> Identity:
        """The identity behind an `authorization` metadata value.

        Raises:
            UnauthenticatedError: there is none, or its token is unknown, expired or revoked.
            UnavailableError: the token has to be looked up and the database can't be asked.
        """
        text = _bearer(authorization)
        digest = tokens.digest(text)
        now = time.monotonic()
        known = self._known.get(digest)
        if known and now - known.checked < FRESH_SECONDS:
            known.used = now
            return _unexpired(known)
        if known is None and now < self._unknown.get(digest, 0.0):
            raise _unknown_token()
        identity = await self._looked_up(text, digest)
        if identity is None:
            raise _unknown_token()
        known = self._known.get(digest)
        return _unexpired(known) if known else identity

    @contextlib.asynccontextmanager
    async def refreshing(self) -> AsyncIterator[None]:
        """Look after the tokens in use while the block runs."""
        task = asyncio.create_task(self._refresh_forever())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, *self._looking.values(), return_exceptions=True)

    async def _looked_up(self, text: str, digest: bytes) -> Identity | None:
        if self._bootstrap and hmac.compare_digest(digest, self._bootstrap):
            return await self._bootstrap_identity()
        token_id = tokens.token_id(text)
        if token_id is None:
            return None
        task = self._looking.get(digest)
        if task is None:
            task = asyncio.create_task(self._look_up(token_id, digest))
            self._looking[digest] = task
            task.add_done_callback(lambda done: self._looked(digest, done))
        # Callers share the look-up: one that is cancelled must not cancel it for the others.
        return await asyncio.shield(task)

    def _looked(self, digest: bytes, task: "asyncio.Task[Identity | None]") -> None:
        self._looking.pop(digest, None)
        if not task.cancelled():
            task.exception()  # taken, in case every caller has gone

    async def _look_up(self, token_id: str, digest: bytes) -> Identity | None:
        asked = time.monotonic()
        row = (await self._store.live_tokens([token_id])).get(token_id)
        if row is None or not hmac.compare_digest(bytes(row["sha256"]), digest):
            self._known.pop(digest, None)
            _keep(self._unknown, digest, asked + FRESH_SECONDS, UNKNOWN_MAX)
            return None
        identity = Identity(row["account_id"], token_id, frozenset(row["scopes"]))
        _keep(self._known, digest, _Known(identity, row["expires_at"], asked, asked), KNOWN_MAX)
        return identity

    async def _bootstrap_identity(self) -> Identity | None:
        now = time.monotonic()
        if not self._bootstrap_over and now >= self._bootstrap_until:
            self._bootstrap_over = await self._store.any_token()
            self._bootstrap_until = now + FRESH_SECONDS
        if self._bootstrap_over:
            return None
        return Identity(BOOTSTRAP_ACCOUNT, BOOTSTRAP_ID, frozenset(tokens.SCOPES))

    async def _refresh_forever(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                await self._refresh()
            except TrunklineError:
                log.debug("tokens_not_refreshed")  # they are looked up one by one when used

    async def _refresh(self) -> None:
        asked = time.monotonic()
        for digest in [d for d, k in self._known.items() if asked - k.used > IDLE_SECONDS]:
            del self._known[digest]
        if not self._known:
            return
        live = await self._store.live_tokens([k.identity.token_id for k in self._known.values()])
        for digest, known in list(self._known.items()):
            row = live.get(known.identity.token_id)
            if row is None:
                del self._known[digest]
            else:
                known.checked, known.expires_at = asked, row["expires_at"]


def _bearer(authorization: str | None) -> str:
    scheme, _, text = (authorization or "").partition(" ")
    text = text.strip()
    if not text or scheme.lower() != "bearer":
        raise UnauthenticatedError(
            "TOKEN_MISSING", "the call needs the metadata authorization: Bearer <token>"
        )
    if len(text) > tokens.TOKEN_CHARACTERS_MAX or not text.isascii():
        raise _unknown_token()
    return text


def _unexpired(known: _Known) -> Identity:
    if known.expires_at and known.expires_at <= datetime.now(UTC):
        raise UnauthenticatedError("TOKEN_EXPIRED", "the token has expired")
    return known.identity


def _unknown_token() -> UnauthenticatedError:
    return UnauthenticatedError("TOKEN_UNKNOWN", "the token is not known or was revoked")


def _keep(kept: OrderedDict[bytes, T], key: bytes, value: T, most: int) -> None:
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)

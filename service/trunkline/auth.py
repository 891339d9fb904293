"""Who calls: tokens looked up together, kept for seconds, and looked after in the background."""

import asyncio
import contextlib
import hmac
import itertools
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from trunkline import tokens
from trunkline.errors import DeniedError, TrunklineError, UnauthenticatedError, UnavailableError
from trunkline.store.identities import IdentityStore

log = logging.getLogger(__name__)
T = TypeVar("T")

REVOCATION_SECONDS_MAX = 5.0
REFRESH_SECONDS = 1.5
FRESH_SECONDS = 4.0  # less than REVOCATION_SECONDS_MAX by the time a look-up may take
KNOWN_MAX = 10_000
UNKNOWN_MAX = 10_000
IDLE_SECONDS = 300.0
LOOKUPS_PER_SECOND_MAX = 50
LOOKED_UP_TOGETHER_MAX = 500
LOOKUPS_AT_ONCE_MAX = 2
LOOKUP_SECONDS_MAX = 6.0  # more than it takes to connect
WAITING_MAX = 10_000
WAITING_RETRY_SECONDS = 0.5
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


@dataclass(slots=True)
class _Waiting:
    """A token that is to be looked up, and what its callers wait for."""

    token_id: str
    answer: "asyncio.Future[_Known | None]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


_caller: ContextVar[Identity] = ContextVar("caller")
_recheck: ContextVar[Callable[[], Awaitable[None]]] = ContextVar("recheck")


def caller() -> Identity:
    """Whose call the current task answers."""
    return _caller.get()


def set_caller(identity: Identity) -> None:
    """Say whose call the current task answers."""
    _caller.set(identity)


def set_recheck(recheck: Callable[[], Awaitable[None]]) -> None:
    """Say how to see that the caller of the current task still may call."""
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

    Tokens that have to be looked up go in rounds, in the order in which they came, so that any
    number of unknown ones costs the database LOOKUPS_PER_SECOND_MAX statements and a good one among
    them waits for a few rounds. Only where more wait than WAITING_MAX is one turned away, to try
    again.

    Args:
        store: where tokens are.
        bootstrap: a token that acts on the account `default` while no token was ever made, or
            empty for none.

    Attributes:
        lookups: how many statements have looked tokens up.
    """

    def __init__(self, store: IdentityStore, bootstrap: str) -> None:
        self.lookups = 0
        self._store = store
        self._bootstrap = tokens.digest(bootstrap) if bootstrap else None
        self._bootstrap_until = 0.0
        self._bootstrap_over = False
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._unknown: OrderedDict[bytes, float] = OrderedDict()
        self._waiting: dict[bytes, _Waiting] = {}
        self._pacer: asyncio.Task[None] | None = None
        self._rounds: set[asyncio.Task[None]] = set()
        self._asking: set[asyncio.Task[Mapping[str, Any]]] = set()
        self._free = asyncio.Semaphore(LOOKUPS_AT_ONCE_MAX)
        self._next_round = 0.0

    async def identify(self, authorization: str | None) -> Identity:
        """The identity behind an `authorization` metadata value.

        Raises:
            UnauthenticatedError: there is none, or its token is unknown, expired or revoked.
            UnavailableError: the token has to be looked up and the database can't be asked, or
                too many are waiting for it.
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
        if self._bootstrap and hmac.compare_digest(digest, self._bootstrap):
            return await self._bootstrap_identity()
        token_id = tokens.token_id(text)
        known = await self._looked_up(token_id, digest) if token_id else None
        if known is None:
            raise _unknown_token()
        return _unexpired(known)

    @contextlib.asynccontextmanager
    async def refreshing(self) -> AsyncIterator[None]:
        """Look after the tokens in use while the block runs."""
        task = asyncio.create_task(self._refresh_forever())
        try:
            yield
        finally:
            tasks = [task, *self._rounds, *([self._pacer] if self._pacer else [])]
            for one in tasks:
                one.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            _let_go(self._waiting)

    async def _looked_up(self, token_id: str, digest: bytes) -> _Known | None:
        waiting = self._waiting.get(digest)
        if waiting is None:
            if len(self._waiting) >= WAITING_MAX:
                raise UnavailableError(
                    "TOKENS_WAITING",
                    "too many tokens wait to be looked up: try again",
                    retry_seconds=WAITING_RETRY_SECONDS,
                )
            waiting = self._waiting[digest] = _Waiting(token_id)
            if self._pacer is None or self._pacer.done():
                self._pacer = asyncio.create_task(self._pace())
        # Callers share the look-up: one that is cancelled must not cancel it for the others.
        return await asyncio.shield(waiting.answer)

    async def _pace(self) -> None:
        """Send rounds until nobody waits."""
        while self._waiting:
            await asyncio.sleep(max(0.0, self._next_round - time.monotonic()))
            await self._free.acquire()
            self._next_round = time.monotonic() + 1 / LOOKUPS_PER_SECOND_MAX
            first = itertools.islice(self._waiting, LOOKED_UP_TOGETHER_MAX)
            # From here on callers wait for the next round: no answer is older than the call.
            together = {digest: self._waiting.pop(digest) for digest in list(first)}
            one = asyncio.create_task(self._round(together))
            self._rounds.add(one)
            one.add_done_callback(self._round_over)

    def _round_over(self, task: asyncio.Task[None]) -> None:
        self._rounds.discard(task)
        self._free.release()

    async def _round(self, together: Mapping[bytes, _Waiting]) -> None:
        asked = time.monotonic()
        try:
            live = await self._live([w.token_id for w in together.values()])
        except asyncio.CancelledError:
            _let_go(together)
            raise
        except Exception as error:
            for waiting in together.values():
                waiting.answer.set_exception(error)
                waiting.answer.exception()  # taken, in case every caller has gone
            return
        for digest, waiting in together.items():
            row = live.get(waiting.token_id)
            if row is None or not hmac.compare_digest(bytes(row["sha256"]), digest):
                self._known.pop(digest, None)
                _keep(self._unknown, digest, asked + FRESH_SECONDS, UNKNOWN_MAX)
                waiting.answer.set_result(None)
                continue
            identity = Identity(row["account_id"], waiting.token_id, frozenset(row["scopes"]))
            known = _Known(identity, row["expires_at"], asked, asked)
            _keep(self._known, digest, known, KNOWN_MAX)
            waiting.answer.set_result(known)

    async def _live(self, token_ids: Sequence[str]) -> Mapping[str, Any]:
        self.lookups += 1
        work = asyncio.create_task(self._store.live_tokens(token_ids))
        self._asking.add(work)
        work.add_done_callback(self._asked)
        try:
            # Not asyncio.timeout: on a dead network a cancelled statement takes minutes to end.
            await asyncio.wait({work}, timeout=LOOKUP_SECONDS_MAX)
            if not work.done():
                raise UnavailableError(
                    "DATABASE_UNAVAILABLE",
                    "the database does not answer now, and the token has to be looked up",
                    retry_seconds=WAITING_RETRY_SECONDS,
                )
            return work.result()
        finally:
            work.cancel()

    def _asked(self, work: asyncio.Task[Mapping[str, Any]]) -> None:
        self._asking.discard(work)
        if not work.cancelled():
            work.exception()  # taken, in case nobody waits any more

    async def _bootstrap_identity(self) -> Identity:
        now = time.monotonic()
        if not self._bootstrap_over and now >= self._bootstrap_until:
            self._bootstrap_over = await self._store.any_token()
            self._bootstrap_until = now + FRESH_SECONDS
        if self._bootstrap_over:
            raise _unknown_token()
        return Identity(BOOTSTRAP_ACCOUNT, BOOTSTRAP_ID, frozenset(tokens.SCOPES))

    async def _refresh_forever(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                await self._refresh()
            except TrunklineError:
                log.debug("tokens_not_refreshed")  # they are looked up when used
            except Exception:  # of a database that fails: the next round may do better
                log.exception("tokens_not_refreshed")

    async def _refresh(self) -> None:
        asked = time.monotonic()
        for digest in [d for d, k in self._known.items() if asked - k.used > IDLE_SECONDS]:
            del self._known[digest]
        if not self._known:
            return
        looked_after = list(self._known.items())
        live = await self._live([k.identity.token_id for _, k in looked_after])
        for digest, known in looked_after:
            row = live.get(known.identity.token_id)
            if row is None:
                self._known.pop(digest, None)
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


def _let_go(waiting: Mapping[bytes, _Waiting]) -> None:
    for one in waiting.values():
        one.answer.cancel()


def _keep(kept: OrderedDict[bytes, T], key: bytes, value: T, most: int) -> None:
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)

"""How sessions with PostgreSQL begin, host by host within a bound, and how they end."""

import asyncio
import contextlib
import logging
import re
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg
from asyncpg.connect_utils import SessionAttribute

log = logging.getLogger(__name__)

CONNECT_SECONDS_MAX = 5
CLOSE_SECONDS_MAX = 5
SILENCE_SECONDS_MAX = 10
"""How long a connection may wait for the other machine to say that it got what was sent."""
WHY_CHARACTERS_MAX = 300
PIDS_MAX = 1 << 22
"""The largest number that Linux gives a process; others give smaller ones."""
_HOST = re.compile(r"(?:\[([^\]]+)\]|(/[^:]*)|([^:]*))(?::([0-9]+))?", re.ASCII)
# What one host of several may answer while another one takes writes.
_NEXT_HOST = (
    OSError,
    asyncpg.CannotConnectNowError,
    asyncpg.PostgresConnectionError,
    asyncpg.InternalClientError,
)
_POOLER = "behind pgbouncer, set TRUNKLINE_DATABASE_STATEMENT_CACHE=0"
_BOUND = "statement_timeout"


class Session(asyncpg.Connection):
    """A session whose end is bounded and quiet: the pool lets go of some with nobody waiting."""

    __slots__ = ()

    async def close(self, *, timeout: float | None = None) -> None:
        """End the session; one that does not end in time is cut."""
        with contextlib.suppress(Exception):
            await super().close(timeout=CLOSE_SECONDS_MAX if timeout is None else timeout)


class NoSessionError(OSError):
    """There is no session to be had; the text says why, for operators."""


class Connector:
    """Makes the sessions of one URL, with the first of its hosts that takes writes.

    Each host has a share of CONNECT_SECONDS_MAX, so that one that is silent does not take the time
    of those that answer. One that was waited for in vain, also by a caller who has left, comes last
    the next time; the one that gave the last session comes first.

    Args:
        url: a libpq URL.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._hosts = hosts_of(url)
        self._said = ""

    async def connect(self, *_: Any, **options: Any) -> Any:
        """One session.

        Raises:
            NoSessionError: there is none to be had, for the last host's reason, which is logged
                once.
        """
        try:
            session = await self._first_of(list(self._hosts), options)
            await _check_settings(session, options.get("server_settings", {}))
        except Exception as error:
            raise NoSessionError(self._say(error)) from None
        self._said = ""
        return session

    async def _first_of(self, hosts: list[dict[str, Any]], options: dict[str, Any]) -> Any:
        now = asyncio.get_running_loop().time
        deadline = now() + CONNECT_SECONDS_MAX
        last: Exception = OSError("there is no host")
        for place, host in enumerate(hosts):
            seconds = max(0.0, deadline - now()) / (len(hosts) - place)
            try:
                session = await asyncpg.connect(
                    self._url,
                    **options,
                    **host,
                    timeout=seconds,
                    target_session_attrs=SessionAttribute.read_write,
                )
            except _NEXT_HOST as error:
                last = error
            except asyncio.CancelledError:
                self._hosts = [*(h for h in self._hosts if h is not host), host]
                raise
            else:
                self._hosts = [host, *(h for h in self._hosts if h is not host)]
                return session
        raise last

    def _say(self, error: Exception) -> str:
        """Log why there is no session. What is said before there is one has no one's data."""
        why = str(error)[:WHY_CHARACTERS_MAX] or type(error).__name__
        if isinstance(error, asyncpg.ProtocolViolationError) and "startup parameter" in why:
            why += f"; {_POOLER}"
        if why != self._said:
            self._said = why
            sqlstate = getattr(error, "sqlstate", None)
            log.warning("database_refuses", extra={"sqlstate": sqlstate, "why": why})
        return why


async def _check_settings(session: Session, settings: Mapping[str, str]) -> None:
    """See that a session is one's own: a pooler that ignores what one sets shares it with others.

    Their prepared statements have the same names as ours, and another one would be run. A pooler
    makes up the number of the process; where it may be one, the session is taken as it is.
    """
    if _BOUND not in settings or 0 < session.get_server_pid() <= PIDS_MAX:
        return
    try:
        asked = f"SELECT setting FROM pg_settings WHERE name = '{_BOUND}'"
        found = await session.fetchval(asked, timeout=CONNECT_SECONDS_MAX)
    except (asyncpg.DuplicatePreparedStatementError, asyncpg.InvalidSQLStatementNameError):
        found = None
    except BaseException:
        session.terminate()
        raise
    if found != settings[_BOUND]:
        session.terminate()
        raise asyncpg.InterfaceError(f"a pooler does not keep the session's settings; {_POOLER}")


def hosts_of(url: str) -> list[dict[str, Any]]:
    """What to add to a URL for each of its hosts; for one host, nothing."""
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    named = parts.netloc.rpartition("@")[2] or query.get("host", [""])[-1]
    if "," not in named:
        return [{}]
    ports = query.get("port", [""])[-1].split(",")
    found = []
    for place, text in enumerate(named.split(",")):
        match = _HOST.fullmatch(text)
        if match is None:
            raise ValueError("a host of the URL can't be read")
        host: dict[str, Any] = {"host": unquote(match[1] or match[2] or match[3])}
        if port := match[4] or ports[place if place < len(ports) else 0]:
            host["port"] = int(port)
        found.append(host)
    return found


def is_demoted(session: Any) -> bool:
    """Whether a session's server has come to take no writes: what it reads is of the past then.

    PostgreSQL tells of that by itself, with the next answer; nothing is asked here.
    """
    try:
        told = session.get_settings()
    except (asyncpg.InterfaceError, AttributeError):  # it has ended since its last answer
        return False
    return "on" in (
        getattr(told, "default_transaction_read_only", "off"),
        getattr(told, "in_hot_standby", "off"),
    )


def is_open(session: Any) -> bool:
    """Whether a session has not ended, as far as is known here."""
    try:
        return not session.is_closed()
    except asyncpg.InterfaceError:  # its pool has let go of it
        return False


async def keep(_: Any) -> None:
    """Leave a session as it is: no statement leaves anything in it, and a reset is a round trip."""


async def notice_silence(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Have the kernel end a connection to a machine that is silent, as one that lost power is."""
    transport: Any = getattr(connection, "_transport", None)
    found = transport.get_extra_info("socket") if transport else None
    if found is not None and found.family in (socket.AF_INET, socket.AF_INET6):
        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENCE_SECONDS_MAX)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, SILENCE_SECONDS_MAX // 3)
        milliseconds = SILENCE_SECONDS_MAX * 1000
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)

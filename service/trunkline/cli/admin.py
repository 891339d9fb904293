"""The commands that work on the database itself, whether the service runs or not."""

import argparse
import asyncio
import contextlib
import json
import re
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg

from trunkline import keys, logs, tokens
from trunkline import migrate as migrations
from trunkline.config import Settings, SettingsError
from trunkline.embedded import Embedded
from trunkline.store.database import Database
from trunkline.store.identities import IdentityStore

USAGE = 2
NAME_CHARACTERS_MAX = 100
_ACCOUNT = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_AGE = re.compile(r"([1-9][0-9]{0,5})([mhd])", re.ASCII)
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def migrate(settings: Settings, _: argparse.Namespace) -> int:
    """Apply the migrations that the database lacks, and tell of each."""

    async def work(database: Database) -> int:
        for step in await migrations.apply(database):
            print(f"applied {step.version:04} {step.name}")
        print(f"schema is at {migrations.known()[-1].version:04}")
        return 0

    return on_database(settings, work, fresh_schema=False)


def create_account(settings: Settings, parsed: argparse.Namespace) -> int:
    """Make an account."""
    if not _ACCOUNT.fullmatch(parsed.account):
        return _usage("an account id has 1 to 63 lower-case letters, digits and inner hyphens")

    async def work(database: Database) -> int:
        if not await IdentityStore(database).create_account(parsed.account):
            return _failed(f"there is an account {parsed.account} already")
        print(parsed.account)
        return 0

    return on_database(settings, work)


def list_accounts(settings: Settings, parsed: argparse.Namespace) -> int:
    """Print the accounts."""

    async def work(database: Database) -> int:
        _print(await IdentityStore(database).list_accounts(), as_json=parsed.json)
        return 0

    return on_database(settings, work)


def create_token(settings: Settings, parsed: argparse.Namespace) -> int:
    """Make a token and print it, alone."""
    scopes = [s.strip() for s in parsed.scopes.split(",")]
    if not set(scopes) <= set(tokens.SCOPES):
        return _usage(f"--scopes takes {', '.join(tokens.SCOPES)}")
    if not 0 < len(parsed.name) <= NAME_CHARACTERS_MAX or not parsed.name.isprintable():
        return _usage(f"--name takes 1 to {NAME_CHARACTERS_MAX} printable characters")
    age = _AGE.fullmatch(parsed.expires or "1d")
    if not age:
        return _usage("--expires takes a number and m, h or d, as in 30d")
    lifetime = timedelta(**{_UNITS[age[2]]: int(age[1])}) if parsed.expires else None

    async def work(database: Database) -> int:
        minted = tokens.mint()
        made = await IdentityStore(database).create_token(
            minted.token_id,
            parsed.account,
            parsed.name,
            tokens.digest(minted.text),
            scopes,
            datetime.now(UTC) + lifetime if lifetime else None,
        )
        if not made:
            return _failed(f"there is no account {parsed.account}; see `trunkline accounts create`")
        print(minted.text)
        return 0

    return on_database(settings, work)


def list_tokens(settings: Settings, parsed: argparse.Namespace) -> int:
    """Print the tokens, never their secrets."""

    async def work(database: Database) -> int:
        _print(await IdentityStore(database).list_tokens(), as_json=parsed.json)
        return 0

    return on_database(settings, work)


def revoke_token(settings: Settings, parsed: argparse.Namespace) -> int:
    """Revoke a token; servers stop taking it within seconds."""

    async def work(database: Database) -> int:
        if not await IdentityStore(database).revoke_token(parsed.token):
            return _failed("there is no token of this id; see `trunkline tokens list`")
        return 0

    return on_database(settings, work)


def on_database(
    settings: Settings,
    work: Callable[[Database], Coroutine[Any, Any, int]],
    *,
    fresh_schema: bool = True,
) -> int:
    """Run work on the database that the settings name; its exit code."""
    logs.configure("error", "text")

    async def run() -> int:
        async with _database(settings) as database:
            if fresh_schema and settings.migrate == "auto":
                await migrations.apply(database)
            return await work(database)

    return asyncio.run(run())


@contextlib.asynccontextmanager
async def _database(settings: Settings) -> AsyncIterator[Database]:
    async with contextlib.AsyncExitStack() as stack:
        url = settings.database_url
        if not url:
            binaries = Path(settings.postgres_bin) if settings.postgres_bin else None
            embedded = Embedded(Path(settings.data_dir), binaries, "a trunkline command")
            url = embedded.url
            if not await embedded.answers():
                stack.enter_context(embedded.locked())
                keys.of(settings)  # made with the database, whoever makes that
                await stack.enter_async_context(embedded.running())
        try:
            database = await Database.open(url, 1, 0)
        except (ValueError, OSError):
            raise SettingsError("TRUNKLINE_DATABASE_URL: is not a URL that can be used") from None
        stack.push_async_callback(database.close)
        yield database


def _print(rows: list[asyncpg.Record], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([dict(row) for row in rows], default=_json_value, indent=2))
        return
    for row in rows:
        print("  ".join(_cell(k, v) for k, v in row.items() if v is not None))


def _cell(name: str, value: object) -> str:
    text = _json_value(value) if isinstance(value, datetime) else value
    if isinstance(text, list):
        text = ",".join(text)
    return str(text) if name in ("id", "account_id", "name") else f"{name}={text}"


def _json_value(value: object) -> str:
    assert isinstance(value, datetime)
    return value.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _usage(what: str) -> int:
    print(f"trunkline: {what}", file=sys.stderr)
    return USAGE


def _failed(what: str) -> int:
    print(f"trunkline: {what}", file=sys.stderr)
    return 1

"""The statements on accounts, tokens and the check values of secret keys."""

from collections.abc import Mapping, Sequence
from datetime import datetime

import asyncpg

from trunkline.store.database import Database

LISTED_MAX = 10_000


class IdentityStore:
    """Accounts and their tokens. Of a token only its SHA-256 is here."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create_account(self, account_id: str) -> bool:
        """Add an account; whether it is new."""
        row = await self._database.row(
            "INSERT INTO accounts (id) VALUES ($1) ON CONFLICT DO NOTHING RETURNING id", account_id
        )
        return row is not None

    async def list_accounts(self) -> list[asyncpg.Record]:
        """Accounts by id: `id`, `created_at`; at most LISTED_MAX."""
        return await self._database.rows(
            "SELECT id, created_at FROM accounts ORDER BY id LIMIT $1", LISTED_MAX
        )

    async def create_token(
        self,
        token_id: str,
        account_id: str,
        name: str,
        sha256: bytes,
        scopes: Sequence[str],
        expires_at: datetime | None,
    ) -> bool:
        """Add a token; False where there is no such account."""
        row = await self._database.row(
            "INSERT INTO tokens (id, account_id, name, sha256, scopes, expires_at)"
            " SELECT $1, a.id, $3, $4, $5, $6 FROM accounts AS a WHERE a.id = $2 RETURNING id",
            token_id,
            account_id,
            name,
            sha256,
            scopes,
            expires_at,
        )
        return row is not None

    async def list_tokens(self) -> list[asyncpg.Record]:
        """Tokens by account and id, without their hashes; at most LISTED_MAX."""
        return await self._database.rows(
            "SELECT id, account_id, name, scopes, created_at, expires_at, revoked_at FROM tokens"
            " ORDER BY account_id, id LIMIT $1",
            LISTED_MAX,
        )

    async def revoke_token(self, token_id: str) -> bool:
        """Revoke a token, again is fine; False where there is none."""
        row = await self._database.row(
            "UPDATE tokens SET revoked_at = coalesce(revoked_at, now()) WHERE id = $1 RETURNING id",
            token_id,
        )
        return row is not None

    async def live_tokens(self, token_ids: Sequence[str]) -> Mapping[str, asyncpg.Record]:
        """Those of some tokens that are not revoked: account, scopes, sha256, expiry, by id."""
        rows = await self._database.rows(
            "SELECT id, account_id, scopes, sha256, expires_at FROM tokens"
            " WHERE id = ANY($1::text[]) AND revoked_at IS NULL",
            token_ids,
        )
        return {row["id"]: row for row in rows}

    async def any_token(self) -> bool:
        """Whether a token was ever made."""
        row = await self._database.row("SELECT EXISTS (SELECT FROM tokens)")
        return row is not None and bool(row[0])

    async def check_values(self) -> Mapping[str, bytes]:
        """The sealed check value of each secret key that was ever in use."""
        rows = await self._database.rows("SELECT key_id, sealed FROM secret_checks")
        return {row["key_id"]: row["sealed"] for row in rows}

    async def add_check_value(self, key_id: str, sealed: bytes) -> bytes:
        """Keep a key's check value; the first one stays, and is returned."""
        row = await self._database.row(
            "INSERT INTO secret_checks AS c (key_id, sealed) VALUES ($1, $2)"
            " ON CONFLICT (key_id) DO UPDATE SET sealed = c.sealed RETURNING sealed",
            key_id,
            sealed,
        )
        assert row is not None
        return bytes(row["sealed"])

    async def keys_in_use(self) -> list[str]:
        """The ids of the keys that sealed what is stored, by a loose index scan."""
        rows = await self._database.rows(
            """
            WITH RECURSIVE used AS (
              SELECT min(auth_password_key_id) AS key_id FROM trunks
              UNION ALL
              SELECT (SELECT min(t.auth_password_key_id) FROM trunks AS t
                       WHERE t.auth_password_key_id > used.key_id)
                FROM used WHERE used.key_id IS NOT NULL
            )
            SELECT key_id FROM used WHERE key_id IS NOT NULL"""
        )
        return [row["key_id"] for row in rows]

    async def sealed_count(self, key_id: str) -> int:
        """How many secrets a key sealed."""
        row = await self._database.row(
            "SELECT count(*) FROM trunks WHERE auth_password_key_id = $1", key_id
        )
        return int(row[0]) if row else 0

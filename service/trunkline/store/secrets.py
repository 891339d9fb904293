"""The statements on sealed secrets, whichever trunk and account they are of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import asyncpg

from trunkline.store.database import Database
from trunkline.store.updates import SECRETS

FIELDS = tuple(f.name for f in SECRETS)
START = ("", "")
"""The place before every trunk."""
LOOKED_AT_MAX = 500
COUNT_SECONDS_MAX = 600


@dataclass(frozen=True, slots=True)
class Sealed:
    """A secret as it is stored, and where: account, trunk and field."""

    account_id: str
    trunk_id: str
    field: str
    sealed: bytes
    key_id: str

    @property
    def context(self) -> tuple[str, str, str]:
        """What it is bound to."""
        return self.account_id, self.trunk_id, self.field


def _page(field: str) -> str:
    return f"""
SELECT account_id, id, {field}_key_id AS key_id,
       CASE WHEN {field}_key_id <> $3 THEN {field}_sealed END AS sealed
  FROM trunks WHERE (account_id, id) > ($1, $2) ORDER BY account_id, id LIMIT {LOOKED_AT_MAX}"""


# Rows that others have locked are left for later: a batch never waits while it has locks. Where a
# row has changed since it was read, its newest version is looked at, and written only if the secret
# in it is still the one that was opened. Nothing but the seal is set: the value is what it was, so
# neither revision nor time moves, and nobody is told.
def _reseal(field: str) -> str:
    unchanged = f"t.{field}_sealed = {{0}}.old AND t.{field}_key_id = {{0}}.old_key_id"
    return f"""
WITH given AS MATERIALIZED (
  SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[], $4::text[], $5::bytea[])
             AS g(account_id, id, old, old_key_id, new)
), free AS MATERIALIZED (
  SELECT g.* FROM given AS g JOIN trunks AS t ON t.account_id = g.account_id AND t.id = g.id
   WHERE {unchanged.format("g")}
     FOR NO KEY UPDATE OF t SKIP LOCKED
), resealed AS (
  UPDATE trunks AS t SET {field}_sealed = f.new, {field}_key_id = $6
    FROM free AS f WHERE t.account_id = f.account_id AND t.id = f.id AND {unchanged.format("f")}
  RETURNING 1
)
SELECT count(*) FROM resealed"""


class SecretStore:
    """The secrets of every account, sealed, and what has fingerprints of the same keys."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def others(
        self, field: str, key_id: str, after: tuple[str, str]
    ) -> tuple[list[Sealed], tuple[str, str] | None]:
        """Secrets of a field under another key than one, among the next LOOKED_AT_MAX trunks.

        Returns:
            The secrets, and the place to go on after; None at the end.
        """
        # By the primary key, not by the index on the key's id: that is full of entries of rows
        # that were re-sealed just now for as long as some transaction (a dump) may still see them.
        rows = await self._database.rows(_page(field), *after, key_id)
        found = [
            Sealed(row["account_id"], row["id"], field, row["sealed"], row["key_id"])
            for row in rows
            if row["sealed"] is not None
        ]
        last = (rows[-1]["account_id"], rows[-1]["id"]) if len(rows) == LOOKED_AT_MAX else None
        return found, last

    async def reseal(
        self, field: str, key_id: str, secrets: Sequence[Sealed], sealed: Sequence[bytes]
    ) -> int:
        """Put new seals, of a key, in the place of old ones that are still there; how many were."""
        row = await self._database.row(
            _reseal(field),
            [s.account_id for s in secrets],
            [s.trunk_id for s in secrets],
            [s.sealed for s in secrets],
            [s.key_id for s in secrets],
            sealed,
            key_id,
        )
        return int(row[0]) if row else 0

    async def secrets(self) -> Mapping[str, int]:
        """How many secrets each key has sealed."""
        each = " UNION ALL ".join(
            f"SELECT {f}_key_id AS key_id, count(*) AS count FROM trunks"
            f" WHERE {f}_key_id IS NOT NULL GROUP BY 1"
            for f in FIELDS
        )
        return await self._counted(f"SELECT key_id, sum(count) FROM ({each}) AS c GROUP BY 1")

    async def answers(self) -> Mapping[str, int]:
        """How many answers are kept for retries whose requests have fingerprints of each key."""
        return await self._counted("SELECT key_id, count(*) FROM requests GROUP BY 1")

    async def _counted(self, statement: str) -> Mapping[str, int]:
        async with self._database.transaction() as connection:
            # A large table takes longer than a call may.
            await connection.execute(f"SET LOCAL statement_timeout = '{COUNT_SECONDS_MAX}s'")
            rows: list[asyncpg.Record] = await connection.fetch(statement)
        return {row[0]: int(row[1]) for row in rows}

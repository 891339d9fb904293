"""Brings a database's schema up to what this server knows: numbered files, under one lock."""

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files

import asyncpg

from trunkline.store.database import Database

_NAME = re.compile(r"(\d{4})_(\w+)\.sql", re.ASCII)
_OLDEST = re.compile(r"-- Oldest schema version whose servers may go on: (\d{4})\.", re.ASCII)
_LOCK = 0x7472756E  # "trun": one migration at a time per database
LOCK_SECONDS_MAX = 120


@dataclass(frozen=True, slots=True)
class Migration:
    """One step: its number, its words, its SQL."""

    version: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        """The digest by which an edited file shows."""
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def oldest(self) -> int:
        """The oldest version whose servers may go on with the schema that this makes.

        Its own, unless its SQL says otherwise: `-- Oldest schema version whose servers may go on:
        0003.`
        """
        said = _OLDEST.search(self.sql)
        return int(said[1]) if said else self.version


class SchemaError(Exception):
    """The database's schema is not one that this server can work with; the message says why."""


def known() -> list[Migration]:
    """The migrations that this version brings, in order."""
    found = []
    for file in files("trunkline.schema").iterdir():
        match = _NAME.fullmatch(file.name)
        if match:
            found.append(Migration(int(match[1]), match[2], file.read_text("utf-8")))
    return sorted(found, key=lambda m: m.version)


async def missing(database: Database) -> list[Migration]:
    """The migrations that the database lacks.

    Raises:
        SchemaError: it has some that this server does not know, and that do not let servers as old
            as this one go on; or it has one that this server knows otherwise.
    """
    async with database.transaction() as connection:
        return await _missing(connection)


async def apply(database: Database) -> list[Migration]:
    """Apply what is missing, all or nothing; several servers may do so at once.

    Raises:
        SchemaError: as `missing`.
    """
    async with database.transaction() as connection:
        await connection.execute(
            f"SET LOCAL lock_timeout = '{LOCK_SECONDS_MAX}s';"
            " SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0"
        )
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
        todo = await _missing(connection)
        for step in todo:
            await connection.execute(step.sql)
        if todo:  # last: from here on nobody else can read which versions there are
            await connection.execute(
                "CREATE TABLE IF NOT EXISTS schema_migrations (version integer PRIMARY KEY,"
                " name text NOT NULL, sha256 text NOT NULL,"
                " applied_at timestamptz NOT NULL DEFAULT now());"
                " ALTER TABLE schema_migrations ADD COLUMN IF NOT EXISTS oldest integer"
            )
        for step in todo:
            await connection.execute(
                "INSERT INTO schema_migrations (version, name, sha256, oldest)"
                " VALUES ($1, $2, $3, $4)",
                step.version,
                step.name,
                step.sha256,
                step.oldest,
            )
        return todo


async def _missing(
    connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]",
) -> list[Migration]:
    ours = {m.version: m for m in known()}
    newest = max(ours)
    theirs = {}
    if await connection.fetchval("SELECT to_regclass('schema_migrations') IS NOT NULL"):
        # The column `oldest` may be missing still.
        rows = await connection.fetch(
            "SELECT version, sha256, (to_jsonb(m) ->> 'oldest')::integer AS oldest"
            " FROM schema_migrations AS m"
        )
        theirs = {row["version"]: row for row in rows}
    barred = [v for v in theirs.keys() - ours.keys() if (theirs[v]["oldest"] or v) > newest]
    if barred:
        raise SchemaError(
            f"the database has schema version {max(barred):04}, this server knows up to"
            f" {newest:04}: run a newer server"
        )
    for version in theirs.keys() & ours.keys():
        if ours[version].sha256 != theirs[version]["sha256"]:
            raise SchemaError(
                f"schema version {version:04} of the database is not the one that this server knows"
            )
    return [m for version, m in sorted(ours.items()) if version not in theirs]

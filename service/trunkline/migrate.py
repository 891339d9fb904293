"""Brings a database's schema up to what this server knows: numbered files, under one lock."""

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files

import asyncpg

from trunkline.store.database import Database

_NAME = re.compile(r"(\d{4})_(\w+)\.sql", re.ASCII)
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
        SchemaError: it has some that this server does not know, or knows otherwise.
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
        if todo:
            await connection.execute(
                "CREATE TABLE IF NOT EXISTS schema_migrations (version integer PRIMARY KEY,"
                " name text NOT NULL, sha256 text NOT NULL,"
                " applied_at timestamptz NOT NULL DEFAULT now())"
            )
        for step in todo:
            await connection.execute(step.sql)
            await connection.execute(
                "INSERT INTO schema_migrations (version, name, sha256) VALUES ($1, $2, $3)",
                step.version,
                step.name,
                step.sha256,
            )
        return todo


async def _missing(
    connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]",
) -> list[Migration]:
    ours = {m.version: m for m in known()}
    theirs = {}
    if await connection.fetchval("SELECT to_regclass('schema_migrations') IS NOT NULL"):
        rows = await connection.fetch("SELECT version, sha256 FROM schema_migrations")
        theirs = {row["version"]: row["sha256"] for row in rows}
    unknown = sorted(theirs.keys() - ours.keys())
    if unknown:
        raise SchemaError(
            f"the database has schema version {unknown[-1]:04}, this server knows up to"
            f" {max(ours):04}: run a newer server"
        )
    for version, digest in theirs.items():
        if ours[version].sha256 != digest:
            raise SchemaError(
                f"schema version {version:04} of the database is not the one that this server knows"
            )
    return [m for version, m in sorted(ours.items()) if version not in theirs]

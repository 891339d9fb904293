"""A pgbouncer of a test's own, in transaction mode, in front of a database."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import asyncpg

from tests.packages import installed
from tests.support import SEEN
from trunkline import unrooted

PACKAGE = "pgbouncer"
SECONDS_MAX = 30
PORT = 6432
CONFIGURATION = """
[databases]
{database} = host={upstream} port=5432 dbname={database} user={user}
[pgbouncer]
listen_addr =
listen_port = {port}
unix_socket_dir = {directory}
auth_type = any
pool_mode = transaction
default_pool_size = {size}
max_client_conn = 200
logfile = {directory}/pgbouncer.log
{more}
"""
IGNORING = """
ignore_startup_parameters = statement_timeout, lock_timeout, jit,
 idle_in_transaction_session_timeout, default_transaction_isolation,
 max_parallel_workers_per_gather
""".replace("\n ", " ")
"""What is often told to those whom pgbouncer refuses; what is ignored does not hold then."""


def program() -> Path | None:
    """pgbouncer, installed where that can be done."""
    found = installed([PACKAGE], [PACKAGE])
    return Path(found[0]) if found else None


@asynccontextmanager
async def pooled(
    pgbouncer: Path, url: str, directory: Path, size: int, more: str = ""
) -> AsyncIterator[str]:
    """The URL of a database through a pgbouncer with so many sessions of its own.

    The directory is there, and only its owner may enter it.
    """
    parts = urlsplit(url)
    name, user = parts.path.removeprefix("/"), parts.username
    file = directory / "pgbouncer.ini"
    upstream = parse_qs(parts.query)["host"][0]
    file.write_text(
        CONFIGURATION.format(
            database=name,
            user=user,
            upstream=upstream,
            port=PORT,
            directory=directory,
            size=size,
            more=more,
        )
    )
    # It refuses to be root.
    prefix = [sys.executable, "-I", str(unrooted.__file__)] if os.geteuid() == 0 else []
    with (directory / "output").open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *prefix, pgbouncer, file, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output
        )
    through = f"postgresql://{user}@/{name}?host={quote(str(directory), safe='')}&port={PORT}"
    try:
        async with asyncio.timeout(SECONDS_MAX):
            while True:
                assert process.returncode is None, (directory / "output").read_text()
                if (directory / f".s.PGSQL.{PORT}").exists():
                    break
                await asyncio.sleep(0.02)
        yield through
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
        SEEN.add((directory / "output").read_bytes())


async def server_sessions(url: str) -> int:
    """How many sessions of a database there are but one's own."""
    connection = await asyncpg.connect(url)
    try:
        return int(
            await connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
        )
    finally:
        await connection.close()

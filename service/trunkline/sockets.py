"""UNIX sockets to listen on, each for one live server alone."""

import contextlib
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

PATH_BYTES_MAX = 107
LOCK_TRIES_MAX = 10
_TAKEN = "another server has it"
_MASK = 0o117
"""Leaves a socket 0660: connecting takes the right to write."""


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[None]:
    """The path is this server's while the block runs; what a dead one left there goes.

    gRPC alone would take the path from a live server. The lock beside it, which ends with its
    process, tells a live one from a dead one.

    Raises:
        OSError: another server has it, or no socket can be there.
    """
    if len(os.fsencode(path)) > PATH_BYTES_MAX:
        raise _fault(path, f"the path has more than {PATH_BYTES_MAX} bytes")
    lock = path.with_name(path.name + ".lock")
    handle = _locked(lock, path)
    try:
        _clear(path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)


@contextlib.contextmanager
def mode_0660() -> Iterator[None]:
    """Sockets made in the block are for the owner and the group."""
    before = os.umask(_MASK)
    try:
        yield
    finally:
        os.umask(before)


def _locked(lock: Path, path: Path) -> int:
    for _ in range(LOCK_TRIES_MAX):
        try:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _fault(path, error.strerror) from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have removed it after it was opened here.
            if os.path.samestat(os.fstat(handle), lock.stat()):
                return handle
        except FileNotFoundError:
            pass
        except OSError:
            os.close(handle)
            break
        os.close(handle)
    raise _fault(path, _TAKEN)


def _clear(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise _fault(path, "what is there is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass  # its backlog is full, so somebody listens
        except OSError as error:
            raise _fault(path, error.strerror) from None
    raise _fault(path, _TAKEN)


def _fault(path: Path, why: str | None) -> OSError:
    return OSError(f"unix:{path} can't be listened on: {why}")

"""Runs a program that refuses to be root, for root: `unrooted.py PROGRAM ARGUMENTS`.

In a user namespace the same user has another number, so the program is content while files and
the directories above them need no other owner or mode. Where the kernel does not allow that, it
runs as the user `nobody`, which then must be able to reach its files.
"""

import ctypes
import os
import pwd
import sys
from pathlib import Path

PROBE = "--probe"
NO_NAMESPACE = 3
_CLONE_NEWUSER = 0x10000000
NOBODY = 65534


def _enter_namespace() -> None:
    uid, gid = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{NOBODY} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{NOBODY} {gid} 1")


def main() -> None:
    """Change, then become the program; with PROBE, tell by the exit code which way it is."""
    if os.geteuid() == 0:
        try:
            _enter_namespace()
        except OSError:
            if sys.argv[1] == PROBE:
                sys.exit(NO_NAMESPACE)
            nobody = pwd.getpwnam("nobody")
            os.setgroups([])
            os.setgid(nobody.pw_gid)
            os.setuid(nobody.pw_uid)
    if sys.argv[1] != PROBE:
        os.execv(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()

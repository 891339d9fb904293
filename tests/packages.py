"""Debian packages that a test needs, installed where that can be done."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

INSTALL_SECONDS_MAX = 500


def installed(packages: list[str], programs: list[str]) -> list[str] | None:
    """Where the programs of some packages are; None where they are not to be had.

    Tests that run side by side install one after the other.
    """
    path = os.environ["PATH"] + os.pathsep + "/usr/sbin"

    def found() -> list[str] | None:
        places = [shutil.which(program, path=path) for program in programs]
        return [place for place in places if place] if all(places) else None

    if found() is None and os.geteuid() == 0 and shutil.which("apt-get"):
        lock = Path(tempfile.gettempdir()) / "trunkline-test-packages.lock"
        with lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if found() is None:
                for arguments in (
                    ("update",),
                    ("install", "-y", "--no-install-recommends", *packages),
                ):
                    subprocess.run(
                        ["apt-get", "-qq", *arguments],
                        env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
                        capture_output=True,
                        stdin=subprocess.DEVNULL,
                        timeout=INSTALL_SECONDS_MAX,
                        check=False,
                    )
    return found()

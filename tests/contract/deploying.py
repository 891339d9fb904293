"""What the tests of `deploy/` share."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trunkline import config, otel, tracing
from trunkline.store import sessions

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "chart"
TOOLS = Path(sys.prefix) / "tools"
HELM = "helm.sh/helm/v3/cmd/helm@v3.22.0"
SECONDS_MAX = 60
BUILD_SECONDS_MAX = 900
ENDING_SECONDS_MAX = sessions.CLOSE_SECONDS_MAX + tracing.FLUSH_SECONDS_MAX
"""What a drained server may still take: to close its pools, and for the last spans."""
KUBERNETES = ("1.27.0", "1.37.0")
"""The oldest and the newest that the chart is held against."""


def run(*command: str | Path, seconds: float = SECONDS_MAX, **more: Any) -> tuple[int, str]:
    """Run a command to its end; its exit code, and what it printed to both outputs."""
    options: dict[str, Any] = {"cwd": ROOT} | more
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=seconds,
        check=False,
        **options,
    )
    return done.returncode, done.stdout


def helm(*arguments: str | Path) -> tuple[int, str]:
    """Run helm, which is built once and kept beside the other tools."""
    if not shutil.which("helm", path=str(TOOLS)):
        if not shutil.which("go"):
            pytest.skip("there is no Go toolchain to build helm with")
        TOOLS.mkdir(exist_ok=True)
        environment = os.environ | {"GOBIN": str(TOOLS)}
        code, out = run("go", "install", HELM, seconds=BUILD_SECONDS_MAX, env=environment)
        if code:
            pytest.skip(f"helm can't be built: {out.strip().splitlines()[-1]}")
    return run(TOOLS / "helm", *arguments)


def accepted(variables: dict[str, str]) -> config.Settings:
    """Settings that the service takes as they are, knowing every name."""
    assert config.unknown_variables(variables) == []
    assert otel.faults(variables) == []
    settings, _ = config.load(variables, {})
    return settings


def port(address: str) -> int:
    """The port of HOST:PORT."""
    return int(address.rpartition(":")[2])


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's, in order."""
    lines = [
        line
        for line in (DEPLOY / "Dockerfile").read_text("utf-8").splitlines()
        if not line.lstrip().startswith("#")
    ]
    whole = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [
        (word, rest.strip()) for word, _, rest in (line.partition(" ") for line in whole if line)
    ]


def user_of_the_image() -> int:
    """The number of the user that the image runs as."""
    (user,) = [rest for word, rest in instructions() if word == "USER"]
    return int(user.partition(":")[0])

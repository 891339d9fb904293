"""Runs what README.md says, in its order, and compares what it prints."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
READY_SECONDS_MAX = 60
_VOLATILE = (
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"), "TIME"),
    (re.compile(r"[0-9A-HJKMNP-TV-Z]{26}"), "ID"),
    (re.compile(r'\\"(\d+)-[0-9a-f]+\\"'), r"ETAG \1"),
    (re.compile(r"^[0-9A-Za-z]{12}(?=  acme)", re.MULTILINE), "TOKEN"),
    (re.compile(r"(?<=--resume )[0-9A-Za-z_-]{27}"), "TOKEN"),
)


def _steps() -> list[tuple[str, str]]:
    """The commands of the console blocks, each with what follows it."""
    blocks = re.findall(r"^```console\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    steps = []
    for step in re.split(r"^\$ ", "".join(blocks), flags=re.MULTILINE)[1:]:
        command, _, output = step.partition("\n")
        steps.append((command, output))
    return steps


def _settled(text: str) -> str:
    for pattern, name in _VOLATILE:
        text = pattern.sub(name, text)
    return text


def _free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


class _Session:
    """A directory as a clone looks to the commands, and `make run` with its data there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / ".venv").symlink_to(ROOT / ".venv")
        self.address, self.http_address = _free_address(), _free_address()
        ours = {k: v for k, v in os.environ.items() if not k.startswith("TRUNKLINE_")}
        self.environment = ours | {
            "TRUNKLINE_GRPC_ADDRESS": self.address,
            "TRUNKLINE_HTTP_ADDRESS": self.http_address,
        }
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> str:
        """`make run` up to its last line; what it printed."""
        with (self.directory / "log").open("a") as log:
            self._process = subprocess.Popen(
                ["make", "-C", str(ROOT), "run", f"DATA_DIR={self.directory / 'data'}"],
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        printed = ""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            printed += line
            if line.startswith("trunkline ready "):
                break
        assert "trunkline ready" in printed, (self.directory / "log").read_text()
        return printed

    def stop(self) -> None:
        """Ctrl-C."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGINT)
            self._process.communicate(timeout=READY_SECONDS_MAX)

    def shell(self, script: str) -> str:
        """What a script prints, to both outputs."""
        done = subprocess.run(
            ["bash", "-c", script.replace("127.0.0.1:8080", self.http_address)],
            cwd=self.directory,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=READY_SECONDS_MAX,
            check=False,
        )
        return done.stdout


@pytest.fixture
def session(tmp_path: Path) -> Iterator[_Session]:
    session = _Session(tmp_path)
    yield session
    session.stop()


def _transcript(session: _Session) -> list[tuple[str, str]]:
    """Every console step of the README with what it prints now."""
    printed, seen = [], ""
    for command, _ in _steps():
        if command.endswith("echo same"):
            session.stop()
            session.start()
        # The variables that earlier commands set are set again; their output is not kept.
        output = session.shell(f"{seen}\n{command}")
        printed.append((command, output))
        if re.match(r"export |[A-Z]+=", command):
            seen += command + "\n"
    return printed


def test_console_sessions_print_what_readme_says(session: _Session) -> None:
    ready = f"trunkline ready grpc={session.address} http={session.http_address}\n"
    assert session.start().endswith(ready)
    actual = [(command, _settled(output)) for command, output in _transcript(session)]
    assert actual == [(command, _settled(output)) for command, output in _steps()]


def test_python_example_runs(session: _Session) -> None:
    session.start()
    create = _steps()[1][0].replace("| tee before.json", "")
    session.shell(f"{_steps()[0][0]}\n{create}")
    (example,) = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    script = session.directory / "example.py"
    script.write_text(example.replace("127.0.0.1:50051", session.address))
    assert session.shell(f"{sys.executable} {script}") == "Acme Mumbai TLS\n"


def test_settings_table_is_what_the_service_has() -> None:
    from trunkline import config

    table = re.findall(r"^\| `([A-Z_]+)` \|.*\| (.*) \|$", README, re.MULTILINE)
    assert table == [(f.name.upper(), f.metadata["meaning"]) for f in config.names()]

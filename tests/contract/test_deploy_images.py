"""The image, compose.yaml, and every command in the documents of `deploy/`."""

import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from tests.contract.deploying import (
    BUILD_SECONDS_MAX,
    CHART,
    DEPLOY,
    ENDING_SECONDS_MAX,
    KUBERNETES,
    ROOT,
    SECONDS_MAX,
    accepted,
    helm,
    instructions,
    port,
    run,
    user_of_the_image,
)
from trunkline import config, keys
from trunkline.cli.main import _parser

README = (DEPLOY / "README.md").read_text("utf-8")
NOTES = (CHART / "templates" / "NOTES.txt").read_text("utf-8")
VALUES = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
SERVERS = ("trunkline-1", "trunkline-2")
NOWHERE = os.environ | {"DOCKER_HOST": "unix:///nonexistent"}
IMAGE = "trunkline-test"
pytestmark = pytest.mark.timeout(BUILD_SECONDS_MAX + SECONDS_MAX)


def commands(*programs: str) -> list[list[str]]:
    """The commands of README that begin with one of these words."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    split = [shlex.split(line) for line in "".join(blocks).splitlines()]
    return [one for one in split if one[0] in programs]


def has_compose() -> bool:
    """Whether docker has its plugin for compose files."""
    return bool(shutil.which("docker")) and not run("docker", "compose", "version", env=NOWHERE)[0]


def test_readme_has_no_command_that_no_test_looks_at() -> None:
    checked = ("docker", "helm", "kubectl", "trunkline")
    run_here = ("mkdir", "openssl", "echo", "chmod")
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert len(commands(*checked, *run_here)) == len("".join(blocks).splitlines())


def test_trunkline_takes_the_commands_of_the_documents() -> None:
    lines = re.findall(r"(?:-- trunkline|trunkline-1 trunkline) (.*)", README + NOTES)
    given = [shlex.split(line) for line in lines] + [one[1:] for one in commands("trunkline")]
    given += [one[one.index("trunkline", 2) + 1 :] for one in commands("docker") if one[1] == "run"]
    assert len(given) == 11
    for arguments in given:
        assert callable(_parser().parse_args(arguments).run)


@pytest.mark.skipif(not shutil.which("kubectl"), reason="there is no kubectl")
def test_secrets_that_readme_makes_are_those_that_the_chart_wants(tmp_path: Path) -> None:
    for name in ("database-url", "secret-keys"):
        (tmp_path / name).write_text("x")
    made = {}
    for command in [one for one in commands("kubectl") if one[1:3] == ["create", "secret"]]:
        if command[3] == "tls":
            continue  # needs a real pair; its keys are always tls.crt and tls.key
        code, out = run(*command, "--dry-run=client", "--output=json", cwd=tmp_path)
        assert code == 0, out
        secret = json.loads(out)
        made[secret["metadata"]["name"]] = list(secret["data"])
    wanted = (VALUES["database"], VALUES["keys"])
    assert made == {one["secretName"]: [one["secretKey"]] for one in wanted}


@pytest.mark.skipif(not shutil.which("kubectl"), reason="there is no kubectl")
def test_kubectl_knows_the_options_of_readme() -> None:
    for command in commands("kubectl"):
        _, out = run(*command, "--server=http://127.0.0.1:1", "--request-timeout=5s")
        assert not re.search(r"unknown|see 'kubectl|unsupported", out, re.IGNORECASE), out


def test_helm_renders_what_readme_installs() -> None:
    found = commands("helm")
    assert [one[1] for one in found] == ["install", "upgrade"]
    for _, verb, name, chart, *options in found:
        known = helm(verb, "--help")[1]
        assert [o for o in options if o.startswith("--") and f"{o} " not in known] == []
        values = [options[at + 1] for at, option in enumerate(options) if option == "--set"]
        given = [f"--set={one}" for one in [*values, "tls.secretName=trunkline-tls"]]
        code, out = helm("template", name, chart, *given, "--kube-version", KUBERNETES[0])
        assert code == 0, out


@pytest.mark.skipif(not shutil.which("docker"), reason="there is no docker command")
def test_docker_knows_the_options_of_readme() -> None:
    for command in commands("docker"):
        if command[1] != "compose" or has_compose():
            _, out = run(*command, env=NOWHERE)
            assert not re.search(r"unknown|invalid|requires at least", out), out


def composed(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A directory in which README's lines have made the secrets, and the variables in them."""
    (tmp_path / "deploy").mkdir()
    block = README.partition("## One machine")[2].partition("docker compose")[0]
    script = block.partition("```sh\n")[2]
    assert run("bash", "-euc", script, cwd=tmp_path) == (0, "")
    secrets = tmp_path / "deploy" / "secrets"
    lines = (secrets / "trunkline.env").read_text().splitlines()
    return secrets, dict(line.split("=", 1) for line in lines)


def test_secrets_that_readme_makes_are_those_that_compose_wants(tmp_path: Path) -> None:
    secrets, variables = composed(tmp_path)
    wanted = {Path(one["file"]).name for one in COMPOSE["secrets"].values()}
    wanted |= {Path(COMPOSE["services"][name]["env_file"]).name for name in SERVERS}
    assert {file.name for file in secrets.iterdir()} == wanted
    assert secrets.stat().st_mode & 0o777 == 0o700
    assert len(keys.of_file(secrets / "secret-keys")) == 1
    password = (secrets / "postgres-password").read_text().strip()
    assert f"trunkline:{password}@postgres/" in variables["TRUNKLINE_DATABASE_URL"]


@pytest.mark.parametrize("name", SERVERS)
def test_compose_gives_settings_that_the_service_takes(name: str, tmp_path: Path) -> None:
    service = COMPOSE["services"][name]
    _, secret = composed(tmp_path)
    (text,) = [rest for word, rest in instructions() if word == "ENV"]
    settings = accepted(
        dict(one.split("=", 1) for one in text.split()) | secret | service["environment"]
    )
    inside = [int(one.split(":")[-1]) for one in service["ports"]]
    addresses = (settings.grpc_address, settings.http_address, settings.metrics_address)
    assert inside == [port(address) for address in addresses]
    assert [one for one in service["ports"] if not one.startswith("127.0.0.1:")] == []
    grace = int(service["stop_grace_period"].removesuffix("s"))
    drained = settings.drain_delay_seconds + settings.drain_seconds
    assert grace > drained + ENDING_SECONDS_MAX
    assert settings.secret_keys_file == f"/run/secrets/{service['secrets'][0]}"
    assert service["secrets"][0] in COMPOSE["secrets"]
    assert service["healthcheck"]["test"] == ["CMD", "trunkline", "probe"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]


def test_compose_publishes_no_port_twice_and_has_no_secret_in_it() -> None:
    published = [one for name in SERVERS for one in COMPOSE["services"][name]["ports"]]
    assert len({one.rpartition(":")[0] for one in published}) == len(published)
    for service in COMPOSE["services"].values():
        names = set(service["environment"])
        secret = {config.variable(f.name) for f in config.names() if f.metadata["secret"]}
        assert not names & (secret | {"POSTGRES_PASSWORD"})


def test_compose_reads_the_file(tmp_path: Path) -> None:
    if not has_compose():
        pytest.skip("there is no docker compose")
    secrets, _ = composed(tmp_path)
    shutil.copy(DEPLOY / "compose.yaml", secrets.parent)
    options: list[str | Path] = ["-f", secrets.parent / "compose.yaml", "config", "--quiet"]
    assert run("docker", "compose", *options, env=NOWHERE) == (0, "")


def test_dockerfile_has_nothing_that_hadolint_complains_of() -> None:
    assert run(Path(sys.prefix) / "bin" / "hadolint", DEPLOY / "Dockerfile") == (0, "")


def test_image_is_started_without_a_shell_and_ended_by_sigterm() -> None:
    found = dict(instructions())
    assert json.loads(found["ENTRYPOINT"]) + json.loads(found["CMD"]) == ["trunkline", "serve"]
    assert found["STOPSIGNAL"] == "SIGTERM"
    assert user_of_the_image() > 0
    assert "HEALTHCHECK" not in found


def test_image_refuses_plaintext_until_it_is_allowed() -> None:
    (text,) = [rest for word, rest in instructions() if word == "ENV"]
    variables = dict(one.split("=", 1) for one in text.split())
    with pytest.raises(config.SettingsError, match="TRUNKLINE_ALLOW_PLAINTEXT=1"):
        config.load(variables, {})
    settings = accepted(variables | {"TRUNKLINE_ALLOW_PLAINTEXT": "1"})
    exposed = [int(one) for one in dict(instructions())["EXPOSE"].split()]
    bound = [port(settings.grpc_address), port(settings.http_address)]
    assert exposed == [*bound, VALUES["metrics"]["port"]]
    assert bound == [VALUES["grpc"]["port"], VALUES["http"]["port"]]


def test_what_is_copied_into_the_image_is_there_and_not_ignored() -> None:
    ignore = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    copied: set[str] = set()
    for word, rest in instructions():
        if word == "COPY" and "--from" not in rest:
            copied.update(rest.split()[:-1])
    assert copied == {line.removeprefix("!") for line in ignore if line.startswith("!")}
    assert [name for name in copied if not (ROOT / name).exists()] == []


@pytest.fixture(scope="module")
def image() -> str:
    """The image, built where there is an engine that can."""
    if not shutil.which("docker") or run("docker", "info")[0]:
        pytest.skip("there is no container engine")
    build: list[str | Path] = ["docker", "build", "-f", DEPLOY / "Dockerfile", "-t", IMAGE, "."]
    code, out = run(*build, seconds=BUILD_SECONDS_MAX)
    if code and re.search(r"python:3\S*: .*(resolve|pull|lookup|denied|timeout)", out):
        pytest.skip(f"the base image can't be had: {out.strip().splitlines()[-1]}")
    assert code == 0, out
    return IMAGE


def test_image_runs_on_a_file_system_that_it_can_not_write(image: str) -> None:
    start: list[str | Path] = [
        "docker",
        "run",
        "--rm",
        "--read-only",
        "--tmpfs",
        "/tmp",
        "--cap-drop",
        "ALL",
    ]
    assert run(*start, image, "--version")[0] == 0
    code, out = run(*start, image)
    assert (code, "TRUNKLINE_ALLOW_PLAINTEXT" in out) == (78, True)
    code, out = run(*start, "-e", "TRUNKLINE_ALLOW_PLAINTEXT=1", image)
    assert (code, "/data can't be used" in out) == (1, True)
    data = ["--tmpfs", f"/data:uid={user_of_the_image()},mode=0700"]
    code, out = run(*start, *data, image, "migrate", "--allow-plaintext", "1")
    assert (code, "schema is at" in out) == (0, True)

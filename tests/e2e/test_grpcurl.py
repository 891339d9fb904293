"""The lines that the service prints, given to the real grpcurl as printed."""

import asyncio
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.processes import PROGRAM, SECONDS_MAX, Server
from tests.support import SEEN

README = Path(__file__).parents[2] / "README.md"
TOOLS = Path(sys.prefix) / "tools"
GRPCURL = "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3"
BUILD_SECONDS_MAX = 500
SERVICE = "siptrunk.v1.SipTrunkService"
METHODS = {
    "CreateSipTrunk",
    "GetSipTrunk",
    "ListSipTrunks",
    "UpdateSipTrunk",
    "BatchUpdateSipTrunks",
    "DeleteSipTrunk",
    "AddGateways",
    "RemoveGateways",
    "AddIpIdentifiers",
    "RemoveIpIdentifiers",
    "CreatePhoneNumber",
    "BatchCreatePhoneNumbers",
    "ListPhoneNumbers",
    "UpdatePhoneNumber",
    "DeletePhoneNumber",
    "BatchDeletePhoneNumbers",
    "MovePhoneNumbers",
    "ListSipTrunkRevisions",
    "GetSipTrunkRevision",
    "RevertSipTrunk",
    "WatchSipTrunks",
}


async def run(script: str, seconds: float = SECONDS_MAX, **variables: str) -> tuple[int, str, str]:
    """Run a line as a shell does, with grpcurl on the path."""
    path = os.pathsep.join([str(TOOLS), os.environ["PATH"]])
    process = await asyncio.create_subprocess_exec(
        "sh",
        "-c",
        script,
        env=os.environ | {"PATH": path} | variables,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(seconds):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    SEEN.add(out)
    SEEN.add(err)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.fixture(scope="module")
async def grpcurl() -> None:
    """grpcurl, built once and kept beside the other tools."""
    if shutil.which("grpcurl", path=str(TOOLS)):
        return
    if not shutil.which("go"):
        pytest.skip("there is no Go toolchain to build grpcurl with")
    TOOLS.mkdir(exist_ok=True)
    code, _, err = await run(f"go install {GRPCURL}", BUILD_SECONDS_MAX, GOBIN=str(TOOLS))
    if code:
        pytest.skip(f"grpcurl can't be built: {err.strip().splitlines()[-1]}")


@pytest.fixture(scope="module")
async def tried(
    grpcurl: None, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Server, str]]:
    """A service that is tried, and its address."""
    directory = tmp_path_factory.mktemp("it's tried")
    async with Server(directory, "--try", bootstrap_token="") as server:
        yield server, await server.ready()


@pytest.fixture(scope="module")
async def trunk(tried: tuple[Server, str]) -> Any:
    """The trunk that the printed line makes."""
    server, _ = tried
    printed = re.search(r"^  (grpcurl .*?[^\\])$", server.out, re.MULTILINE | re.DOTALL)
    assert printed
    code, out, err = await run(printed[1])
    assert (code, err) == (0, "")
    return json.loads(out)


async def grpcurled(tried: tuple[Server, str], request: Any, method: str) -> Any:
    """The answer to a call."""
    server, address = tried
    (server.data.parent / "request.json").write_text(json.dumps(request))
    code, out, err = await run(
        f'grpcurl -plaintext -H "authorization: Bearer $(cat "$DATA/token")" -d @ {address}'
        f' {SERVICE}/{method} < "$DATA/../request.json"',
        DATA=str(server.data),
    )
    assert (code, err) == (0, "")
    return json.loads(out)


async def test_the_printed_line_makes_a_trunk(trunk: Any) -> None:
    assert trunk["name"] == "Acme Mumbai"
    assert trunk["auth_password_set"] is True


async def test_the_printed_line_of_the_installation_works_from_where_it_was_printed(
    tried: tuple[Server, str], trunk: Any
) -> None:
    server, _ = tried
    printed = re.search(r"^  (\S*trunkline call .*?[^\\])$", server.out, re.MULTILINE | re.DOTALL)
    assert printed
    code, out, err = await run(printed[1])
    # The name is taken by the first line's trunk: the line reached the service.
    assert (code, out) == (1, "")
    assert err.startswith("ALREADY_EXISTS: ")
    assert PROGRAM.name in printed[1]


async def test_the_update_in_readme_works_as_it_stands(
    tried: tuple[Server, str], trunk: Any
) -> None:
    server, address = tried
    blocks = re.findall(r"^```sh\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    (block,) = [b for b in blocks if b.startswith("grpcurl ")]
    line = block.replace("127.0.0.1:50051", address)
    code, out, err = await run(f"cd {shlex.quote(str(server.data.parent))}\n{line}", ID=trunk["id"])
    assert (code, err) == (0, "")
    assert json.loads(out)["is_active"] is False


async def test_a_printed_token_is_a_file_not_a_value(tried: tuple[Server, str]) -> None:
    server, _ = tried
    token = (server.data / "token").read_text().strip()
    assert token not in server.out + server.err


async def test_reflection_lists_the_services_and_methods(tried: tuple[Server, str]) -> None:
    _, address = tried
    code, out, err = await run(f"grpcurl -plaintext {address} list")
    assert (code, err) == (0, "")
    services = set(out.split())
    assert {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"} <= services
    code, out, err = await run(f"grpcurl -plaintext {address} list {SERVICE}")
    assert (code, err) == (0, "")
    assert set(out.split()) == {f"{SERVICE}.{method}" for method in METHODS}


@pytest.mark.parametrize(
    "symbol",
    [
        SERVICE,
        *sorted(f"{SERVICE}.{method}" for method in METHODS),
        "siptrunk.v1.SipTrunk",
        "siptrunk.v1.PhoneNumber",
        "grpc.health.v1.Health",
    ],
)
async def test_reflection_describes_everything(tried: tuple[Server, str], symbol: str) -> None:
    _, address = tried
    code, out, err = await run(f"grpcurl -plaintext {address} describe {symbol}")
    assert (code, err) == (0, "")
    assert symbol.rpartition(".")[2] in out


async def test_a_mask_is_a_message_with_paths(tried: tuple[Server, str], trunk: Any) -> None:
    # grpcurl knows no JSON form of FieldMask: the one string that protobuf's JSON has, it refuses.
    before = await grpcurled(tried, {"id": trunk["id"]}, "GetSipTrunk")
    changed = await grpcurled(
        tried,
        {
            "sip_trunk": {"id": trunk["id"], "qualify_frequency": 30, "name": "not named"},
            "update_mask": {"paths": ["qualify_frequency"]},
        },
        "UpdateSipTrunk",
    )
    assert changed["qualify_frequency"] == 30
    moving = {"qualify_frequency", "etag", "updated_at"}
    assert {k: v for k, v in changed.items() if k not in moving} == {
        k: v for k, v in before.items() if k not in moving
    }
    assert await grpcurled(tried, {"id": trunk["id"]}, "GetSipTrunk") == changed


async def test_a_mask_clears_what_has_no_value(tried: tuple[Server, str], trunk: Any) -> None:
    for sent, shown in (({"description": "x"}, "x"), ({}, None)):
        request = {
            "sip_trunk": {"id": trunk["id"], **sent},
            "update_mask": {"paths": ["description"]},
        }
        changed = await grpcurled(tried, request, "UpdateSipTrunk")
        assert changed.get("description") == shown


async def test_every_method_answers(tried: tuple[Server, str], trunk: Any) -> None:
    sent = {
        "name": "Every method",
        "provider": "twilio",
        "authType": "IP_BASED",
        "gateways": [{"gatewayAddress": "sip.example.com"}],
        "ipIdentifiers": [{"ipAddress": "203.0.113.5"}],
    }
    made = await grpcurled(tried, {"sipTrunk": sent}, "CreateSipTrunk")
    listed = await grpcurled(tried, {}, "ListSipTrunks")
    assert {t["id"] for t in listed["sip_trunks"]} == {trunk["id"], made["id"]}
    number = await grpcurled(
        tried,
        {"trunkId": made["id"], "phoneNumber": {"phoneNumber": "+15550100"}},
        "CreatePhoneNumber",
    )
    named = await grpcurled(
        tried,
        {
            "trunkId": made["id"],
            "phoneNumber": {"id": number["id"], "name": "Desk"},
            "update_mask": {"paths": ["name"]},
        },
        "UpdatePhoneNumber",
    )
    numbers = await grpcurled(tried, {"trunkId": made["id"]}, "ListPhoneNumbers")
    assert numbers["phone_numbers"] == [named]
    request = {"trunkId": made["id"], "id": number["id"]}
    assert await grpcurled(tried, request, "DeletePhoneNumber") == {}
    assert await grpcurled(tried, {"id": made["id"]}, "DeleteSipTrunk") == {}


async def test_reflection_describes_all_that_it_lists(tried: tuple[Server, str]) -> None:
    _, address = tried
    code, out, err = await run(f"grpcurl -plaintext {address} describe")
    assert (code, err) == (0, "")
    assert "siptrunk.v1.SipTrunkService is a service" in out


async def test_health_is_asked_without_a_token(tried: tuple[Server, str]) -> None:
    _, address = tried
    code, out, _ = await run(f"grpcurl -plaintext {address} grpc.health.v1.Health/Check")
    assert code == 0
    assert json.loads(out) == {"status": "SERVING"}


async def test_an_error_shows_its_details(tried: tuple[Server, str]) -> None:
    server, address = tried
    code, _, err = await run(
        f'grpcurl -plaintext -H "authorization: Bearer $(cat "$DATA/token")"'
        f""" -d '{{"sip_trunk":{{"name":""}}}}' {address} {SERVICE}/CreateSipTrunk""",
        DATA=str(server.data),
    )
    assert code != 0
    assert "InvalidArgument" in err
    for shown in ("google.rpc.BadRequest", "google.rpc.ErrorInfo", '"provider"', '"gateways"'):
        assert shown in err

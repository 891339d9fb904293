"""`trunkline call`: a service's methods from a shell that has nothing but the installation."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.processes import Done, Server, command, free_address
from tests.support import TOKEN, password

FILE_NAME = "token"


@dataclass(frozen=True)
class Shell:
    """Where calls go, and the file with their token."""

    address: str
    token_file: Path

    async def call(self, method: str, request: Any, *more: str, stdin: str = "") -> Done:
        text = request if isinstance(request, str) else json.dumps(request)
        arguments = ("--token-file", str(self.token_file), *more)
        return await command(
            "call", *arguments, method, text, grpc_address=self.address, stdin=stdin
        )

    async def answer(self, method: str, request: Any, *more: str) -> Any:
        done = await self.call(method, request, *more)
        assert (done.code, done.err) == (0, "")
        return json.loads(done.out)


@pytest.fixture(scope="module")
async def shell(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shell]:
    directory = tmp_path_factory.mktemp("called")
    async with Server(directory) as server:
        (directory / FILE_NAME).write_text(TOKEN + "\n")
        yield Shell(await server.ready(), directory / FILE_NAME)


@pytest.fixture
async def trunk(shell: Shell, request: pytest.FixtureRequest) -> Any:
    """A trunk as `call` prints it."""
    sent = {
        "name": request.node.name,
        "provider": "plivo",
        "auth_type": "USERPASS",
        "auth_username": "acme",
        "auth_password": password(),
        "description": "kept",
        "gateways": [{"gateway_address": "sip.example.com"}],
    }
    return await shell.answer("CreateSipTrunk", {"sip_trunk": sent})


async def test_a_trunk_is_printed_with_the_names_of_the_proto(shell: Shell, trunk: Any) -> None:
    read = await shell.answer("GetSipTrunk", {"id": trunk["id"]})
    assert read == trunk
    assert read["gateways"][0]["gateway_address"] == "sip.example.com"
    assert read["auth_password_set"] is True


@pytest.mark.parametrize(
    "mask",
    [
        {"updateMask": "qualifyFrequency"},
        {"update_mask": "qualifyFrequency"},
        {"updateMask": "qualify_frequency"},
        {"update_mask": "qualify_frequency"},
        {"update_mask": "qualify_frequency,qualifyFrequency"},
        {"update_mask": {"paths": ["qualify_frequency"]}},
        {"updateMask": {"paths": ["qualifyFrequency"]}},
    ],
    ids=str,
)
async def test_a_mask_may_be_spelled_both_ways(shell: Shell, trunk: Any, mask: Any) -> None:
    sent = {"id": trunk["id"], "qualify_frequency": 30, "description": "not named"}
    changed = await shell.answer("UpdateSipTrunk", {"sip_trunk": sent} | mask)
    assert changed["qualify_frequency"] == 30
    assert changed["description"] == "kept"


@pytest.mark.parametrize("path", ["description", "qualify_frequency,description"])
async def test_a_field_named_without_a_value_is_cleared(
    shell: Shell, trunk: Any, path: str
) -> None:
    sent = {"id": trunk["id"], "qualifyFrequency": 0}
    changed = await shell.answer("UpdateSipTrunk", {"sip_trunk": sent, "updateMask": path})
    assert "description" not in changed


async def test_a_replacement_may_be_named_by_its_star(shell: Shell, trunk: Any) -> None:
    request = {"sip_trunk": trunk, "update_mask": "*"}
    assert await shell.answer("UpdateSipTrunk", request) == trunk


async def test_the_mask_of_a_phone_number_may_be_spelled_both_ways(
    shell: Shell, trunk: Any
) -> None:
    made = await shell.answer(
        "CreatePhoneNumber",
        {"trunk_id": trunk["id"], "phone_number": {"phone_number": "+15550100"}},
    )
    named = await shell.answer(
        "UpdatePhoneNumber",
        {
            "trunkId": trunk["id"],
            "phoneNumber": {"id": made["id"], "name": "Desk"},
            "updateMask": "name",
        },
    )
    assert named["name"] == "Desk"


async def test_a_request_may_be_read_from_standard_input(shell: Shell, trunk: Any) -> None:
    done = await shell.call("GetSipTrunk", "-", stdin=json.dumps({"id": trunk["id"]}))
    assert json.loads(done.out) == trunk


async def test_a_method_may_carry_the_name_of_its_service(shell: Shell, trunk: Any) -> None:
    method = "siptrunk.v1.SipTrunkService/GetSipTrunk"
    assert await shell.answer(method, {"id": trunk["id"]}) == trunk


async def test_a_request_may_be_left_out(shell: Shell) -> None:
    token = {"token": shell.token_file.read_text()}
    done = await command("call", "ListSipTrunks", grpc_address=shell.address, **token)
    assert (done.code, done.err) == (0, "")


async def test_a_refused_update_tells_of_every_violation_on_standard_error(
    shell: Shell, trunk: Any
) -> None:
    sent = {
        "id": trunk["id"],
        "qualify_frequency": -1,
        "gateways": [{"gateway_address": "sip.example.com", "port": 0}],
        "media_encryption": "SDES",
    }
    done = await shell.call("UpdateSipTrunk", {"sip_trunk": sent})
    assert (done.code, done.out) == (1, "")
    first, *rest = done.err.splitlines()
    assert first.startswith("INVALID_ARGUMENT: ")
    for path in ("qualify_frequency", "gateways[0].port", "media_encryption"):
        assert [line for line in rest if line.startswith(f"  {path} [")], path
    assert "Traceback" not in done.err


async def test_an_unknown_path_is_refused_by_name(shell: Shell, trunk: Any) -> None:
    request = {"sip_trunk": {"id": trunk["id"]}, "update_mask": "no_such_field"}
    done = await shell.call("UpdateSipTrunk", request)
    assert done.code == 1
    assert "no_such_field" in done.err


async def test_a_stale_etag_is_refused_with_the_current_one(shell: Shell, trunk: Any) -> None:
    sent = {"id": trunk["id"], "description": "x", "etag": '"1-0"'}
    done = await shell.call("UpdateSipTrunk", {"sip_trunk": sent})
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("ABORTED: ")
    assert trunk["etag"] in done.err


async def test_a_refusal_does_not_show_the_password_sent(shell: Shell, trunk: Any) -> None:
    secret = password()
    sent = {"id": trunk["id"], "auth_password": f" {secret}\n", "qualify_frequency": -1}
    done = await shell.call("UpdateSipTrunk", {"sip_trunk": sent})
    assert done.code == 1
    assert "auth_password" in done.err
    assert secret not in done.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "JSON"),
        ("", "JSON"),
        ("[]", "JSON"),
        ('"text"', "JSON"),
        ("null", "JSON"),
        ('{"nope": 1}', "nope"),
        ('{"id": 1}', "id"),
        ('{"id": "a", "id": {}}', "id"),
    ],
)
async def test_json_that_is_no_request_is_a_usage_error(shell: Shell, text: str, said: str) -> None:
    done = await shell.call("GetSipTrunk", text)
    assert (done.code, done.out) == (2, "")
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith("trunkline: ")
    assert said in done.err


async def test_json_that_is_no_request_does_not_show_the_password_in_it(shell: Shell) -> None:
    secret = password()
    for wrong in ([secret], {"x": secret}, 1):
        sent = {"name": "x", "auth_password": wrong}
        done = await shell.call("CreateSipTrunk", {"sip_trunk": sent})
        assert done.code == 2
        assert secret not in done.err


async def test_a_call_without_a_token_is_unauthenticated(shell: Shell) -> None:
    done = await command("call", "ListSipTrunks", grpc_address=shell.address)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("UNAUTHENTICATED: ")


@pytest.mark.parametrize("content", [b"\xff\xfe", "tök".encode(), b"a b\x00c"])
async def test_a_token_that_no_token_can_be_is_refused_in_words(
    shell: Shell, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "bad").write_bytes(content)
    done = await shell.call("ListSipTrunks", {}, "--token-file", str(tmp_path / "bad"))
    assert done.code in (1, 2)
    assert "token" in done.err
    assert "Traceback" not in done.err
    assert len([line for line in done.err.splitlines() if not line.startswith("  ")]) == 1


async def test_a_token_file_that_is_not_there_is_named(shell: Shell, tmp_path: Path) -> None:
    done = await shell.call("ListSipTrunks", {}, "--token-file", str(tmp_path / "none"))
    assert done.code == 1
    assert len(done.err.splitlines()) == 1
    assert str(tmp_path / "none") in done.err


async def test_a_server_that_is_not_there_is_unavailable(shell: Shell) -> None:
    address = free_address()
    done = await command("call", "ListSipTrunks", grpc_address=address)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("UNAVAILABLE: ")
    assert address in done.err
    assert len(done.err.splitlines()) == 1

"""A secret goes in and never comes out: searched for wherever a service leaves something."""

import asyncio
import base64
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.e2e.processes import SECONDS_MAX, Server, command, database_url, not_started
from tests.support import (
    KEYS_OTHER,
    TOKEN,
    Gateway,
    SipTrunk,
    connected,
    forms,
    ip_based,
    leaks,
    password,
    search,
    update,
    userpass,
)
from trunkline import unrooted
from trunkline.embedded import package_binaries

ROUNDS = 2


@dataclass
class Left:
    """What a service that was given passwords has left behind."""

    passwords: set[str] = field(default_factory=set)
    answers: list[bytes] = field(default_factory=list)
    output: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    codes: set[str] = field(default_factory=set)
    dump: bytes = b""
    rows: bytes = b""
    data: Path = Path()

    def password(self) -> str:
        made = password()
        self.passwords.add(made)
        return made


async def program(name: str, *arguments: str) -> bytes:
    """What one of PostgreSQL's programs prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        str(unrooted.__file__),
        str(package_binaries() / name),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(SECONDS_MAX):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out


async def given(left: Left, call: Any) -> Any:
    """An answer or an error, kept with everything that came with it."""
    try:
        response = await call
    except grpc.aio.AioRpcError as error:
        left.codes.add(error.code().name)
        shown = (error.details(), error.debug_error_string(), error.trailing_metadata())
        left.answers.append(repr(shown).encode())
        # Details travel as bytes, which repr would escape.
        left.answers += [v for _, v in error.trailing_metadata() or () if isinstance(v, bytes)]
        return None
    left.codes.add("OK")
    assert isinstance(response, Message)
    left.answers += [response.SerializeToString(), str(response).encode()]
    return response


def creations(left: Left, taken: str) -> Sequence[SipTrunk]:
    """Trunks with passwords in them, of which only the first is right."""
    return [
        userpass(auth_password=left.password()),
        userpass(auth_password=left.password(), name=taken),
        userpass(auth_password=f" {left.password()}"),
        userpass(auth_password=f"{left.password()}\n"),
        userpass(auth_password=f"{left.password()}\0"),
        userpass(auth_password=left.password() * 20),
        userpass(auth_password=left.password(), gateways=[]),
        userpass(auth_password=left.password(), allow="PCMU", media_encryption=SipTrunk.SDES),
        ip_based(auth_password=left.password()),
        # In the wrong field, as by a slip of the hand: an error may show a value, never this one.
        userpass(auth_password=left.password(), auth_username="x" * 200),
    ]


def updates(left: Left, trunk: SipTrunk, other: SipTrunk) -> Sequence[pb.UpdateSipTrunkRequest]:
    """Changes with passwords in them, of which only the first three are right."""

    def change(*paths: str, **fields: Any) -> pb.UpdateSipTrunkRequest:
        return update(trunk.id, *paths, auth_password=left.password(), **fields)

    return [
        change("auth_password"),
        change("auth_password", "description", description="x"),
        change("description"),
        change(),
        change("*", name=trunk.name, gateways=[Gateway(gateway_address="sip.example.com")]),
        change("auth_password", "no_such_field"),
        change("auth_password", etag='"1-0"'),
        change("auth_password", "name", name=other.name),
        change("auth_password", "transport", transport=77),
        change("auth_password", "qualify_frequency", qualify_frequency=-1),
        change("auth_password", "provider", provider="another"),
        update("none", "auth_password", auth_password=left.password()),
        update(trunk.id, "auth_password", auth_password=f"{left.password()}\t"),
        update(trunk.id, "auth_password", auth_password=left.password() * 20),
    ]


async def exercised(left: Left, address: str) -> None:
    """Creates, changes and failures of every kind."""
    async with connected(address) as stub, connected(address, "no-token" * 8) as stranger:
        other = await given(
            left,
            stub.CreateSipTrunk(
                pb.CreateSipTrunkRequest(sip_trunk=userpass(auth_password=left.password()))
            ),
        )
        for _ in range(ROUNDS):
            first, *wrong = [
                pb.CreateSipTrunkRequest(sip_trunk=sent) for sent in creations(left, other.name)
            ]
            made = await given(left, stub.CreateSipTrunk(first))
            for request in wrong:
                assert await given(left, stub.CreateSipTrunk(request)) is None
            await given(left, stranger.CreateSipTrunk(first))
            for change in updates(left, made, other):
                await given(left, stub.UpdateSipTrunk(change))
                await given(left, stranger.UpdateSipTrunk(change))
            await asyncio.gather(
                *(
                    given(left, stub.UpdateSipTrunk(u, timeout=0.02))
                    for u in updates(left, made, other)
                )
            )
            await given(left, stub.GetSipTrunk(pb.GetSipTrunkRequest(id=made.id)))
        await given(left, stub.ListSipTrunks(pb.ListSipTrunksRequest()))
        await given(left, stub.ListSipTrunks(pb.ListSipTrunksRequest(filter="auth_password=x")))
        await given(left, stub.DeleteSipTrunk(pb.DeleteSipTrunkRequest(id=made.id)))
    # A message that is cut off within the password.
    raw = pb.UpdateSipTrunkRequest(sip_trunk=SipTrunk(id="x", auth_password=left.password()))
    async with grpc.aio.insecure_channel(address) as channel:
        for body in (raw.SerializeToString()[:-5], b"\xff" + left.password().encode()):
            call: Any = channel.unary_unary("/siptrunk.v1.SipTrunkService/UpdateSipTrunk")
            metadata = (("authorization", f"Bearer {TOKEN}"),)
            try:
                await call(body, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                left.codes.add(error.code().name)
                left.answers.append(repr((error.details(), error.trailing_metadata())).encode())


@pytest.fixture(scope="module")
async def left(tmp_path_factory: pytest.TempPathFactory) -> Left:
    """A service's whole life, with passwords in most calls, and the debris of it."""
    directory = tmp_path_factory.mktemp("secrets")
    left = Left()
    async with Server(directory) as server:
        address = await server.ready()
        left.data = server.data
        await exercised(left, address)
        for sent in (left.password(), [left.password()], {"x": left.password()}):
            body = json.dumps({"sip_trunk": {"id": "x", "auth_password": sent}})
            done = await command("call", "UpdateSipTrunk", body, grpc_address=address, token=TOKEN)
            left.commands.append(done.out + done.err)
        url = database_url(server.data)
        left.dump = await program("pg_dump", url)
        left.rows = await program("psql", url, "-c", "SELECT * FROM trunks")
        left.rows += await program("psql", url, "-c", "SELECT * FROM pg_stat_activity")
        await server.kill()
        left.output.append(server.out + server.err)
        async with Server(directory) as again:
            await exercised(left, await again.ready())
            await again.stop()
            left.output.append(again.out + again.err)
    keys = (server.data / "secret-keys").read_text()
    (server.data / "secret-keys").write_text(KEYS_OTHER + "\n")
    refused = await not_started(Server(directory))
    left.output.append(refused.out + refused.err)
    (server.data / "secret-keys").write_text(keys)
    return left


async def test_calls_of_every_kind_were_made(left: Left) -> None:
    assert {
        "OK",
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "ABORTED",
        "UNAUTHENTICATED",
    } <= left.codes
    assert "INTERNAL" not in left.codes
    assert len(left.passwords) > 50


async def test_no_answer_shows_a_password(left: Left) -> None:
    assert leaks(b"\n".join(left.answers), left.passwords) == []


async def test_no_log_line_shows_a_password(left: Left) -> None:
    logs = "\n".join(left.output).encode()
    assert b'"event": "call"' in logs
    assert leaks(logs, left.passwords) == []


async def test_no_command_shows_a_password(left: Left) -> None:
    assert leaks("\n".join(left.commands).encode(), left.passwords) == []


async def test_no_file_of_the_data_directory_shows_a_password(left: Left) -> None:
    assert search(left.data, left.passwords) == []


async def test_no_dump_shows_a_password(left: Left) -> None:
    assert b"COPY public.trunks" in left.dump
    assert leaks(left.dump, left.passwords) == []


async def test_no_row_shows_a_password(left: Left) -> None:
    assert b"auth_password_sealed" in left.rows
    assert b"sip.example.com" in left.rows
    assert leaks(left.rows, left.passwords) == []


async def test_the_search_finds_what_is_in_clear_beside_a_password(left: Left) -> None:
    # The host name of every trunk: if the search could not find this, it would find nothing.
    found = search(left.data, {"sip.example.com"})
    assert any("/pg_wal/" in path for path in found)
    assert any("/base/" in path for path in found)
    assert leaks(left.dump, {"sip.example.com"})


@pytest.mark.parametrize("before", range(4))
def test_the_search_finds_a_password_in_each_of_its_forms(tmp_path: Path, before: int) -> None:
    secret, padding = password(), b"x" * before
    raw = padding + secret.encode() + padding
    shown = [raw, raw.hex().encode(), raw.hex().upper().encode(), base64.b64encode(raw)]
    for position, text in enumerate(shown):
        directory = tmp_path / str(position)
        directory.mkdir()
        (directory / "file").write_bytes(b"\0\xff" + text + b"\n")
        assert leaks(text, {secret}) == [secret]
        assert len(search(tmp_path / str(position), {secret})) == 1
    assert leaks(b"".join(forms("another")), {secret}) == []

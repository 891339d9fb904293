"""What `trunkline protos` writes: compiled by protoc, and used to call a server by itself."""

import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from tests.conftest import running
from tests.e2e.processes import command
from tests.e2e.test_grpcurl import METHODS, SERVICE, grpcurl, run  # noqa: F401 - a fixture too
from tests.support import SEEN, TOKEN, password

ROOT = Path(__file__).parents[2]
FILES = {
    "descriptors.binpb",
    "google/api/annotations.proto",
    "google/api/field_behavior.proto",
    "google/api/http.proto",
    "google/rpc/code.proto",
    "google/rpc/error_details.proto",
    "google/rpc/status.proto",
}
AUTHORIZED = (("authorization", f"Bearer {TOKEN}"),)


@pytest.fixture(scope="module")
async def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that the command has made."""
    directory = tmp_path_factory.mktemp("protos") / "a new" / "directory"
    done = await command("protos", directory)
    assert (done.code, done.err) == (0, "")
    assert set(done.out.splitlines()) == {str(directory / name) for name in contents(directory)}
    return directory


@pytest.fixture
async def silent(database: str) -> AsyncIterator[str]:
    """The address of a server that tells nobody what it has."""
    async with running(database, reflection=False) as service:
        yield service.grpc_address


def files(path: Path) -> dict[str, descriptor_pb2.FileDescriptorProto]:
    """The files in a descriptor set."""
    found = descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes()).file
    return {file.name: file for file in found}


def contents(directory: Path) -> dict[str, bytes]:
    """What is in the files of a directory, by their paths in it."""
    found = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}


async def inside(directory: Path, script: str) -> tuple[int, str, str]:
    """Run a line in a directory as a shell does, with grpcurl on the path."""
    return await run(f'cd "$DIRECTORY" && {script}', DIRECTORY=str(directory))


async def test_sources_are_those_of_the_repository(written: Path) -> None:
    ours = {f"siptrunk/{name}": text for name, text in contents(ROOT / "protos/siptrunk").items()}
    found = contents(written)
    assert found.keys() == FILES | ours.keys()
    assert found.items() >= ours.items()


async def test_sources_compile_with_nothing_else_at_hand_to_what_the_set_has(
    written: Path, tmp_path: Path
) -> None:
    code_of = tmp_path / "code"
    code_of.mkdir()
    out = f"--python_out={code_of} --grpc_python_out={code_of}"
    code, printed, err = await inside(
        written,
        f"{sys.executable} -m grpc_tools.protoc -I. {out} --include_imports --include_source_info"
        f" --descriptor_set_out={tmp_path / 'set.binpb'} $(find . -name '*.proto')",
    )
    assert (code, printed, err) == (0, "", "")
    compiled, given = files(tmp_path / "set.binpb"), files(written / "descriptors.binpb")
    for name in compiled:
        if name.startswith("siptrunk/"):
            assert given[name] == compiled[name]
            assert given[name].source_code_info.location
    assert given.keys() - compiled.keys() == {"grpc_health/v1/health.proto"}
    assert (code_of / "siptrunk" / "v1" / "sip_trunk_service_pb2_grpc.py").is_file()


async def test_set_alone_makes_a_call_and_reads_its_error(written: Path, silent: str) -> None:
    pool = descriptor_pool.DescriptorPool()
    for file in files(written / "descriptors.binpb").values():
        pool.Add(file)  # refused where an import has not come before
    method = pool.FindMethodByName(f"{SERVICE}.CreateSipTrunk")
    request = message_factory.GetMessageClass(method.input_type)
    answer: Any = message_factory.GetMessageClass(method.output_type)
    async with grpc.aio.insecure_channel(silent) as channel:
        call: Any = channel.unary_unary(
            f"/{SERVICE}/{method.name}", request.SerializeToString, answer.FromString
        )
        made = await call(request(sip_trunk=a_trunk()), metadata=AUTHORIZED)
        assert (made.name, made.auth_password_set) == ("By descriptors", True)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(request(), metadata=AUTHORIZED)
    trailers = dict(iter(refused.value.trailing_metadata() or ()))
    SEEN.add(repr(trailers).encode())
    status: Any = message_factory.GetMessageClass(pool.FindMessageTypeByName("google.rpc.Status"))
    found = status.FromString(trailers["grpc-status-details-bin"])
    kinds = {detail.type_url.rpartition("/")[2] for detail in found.details}
    assert "google.rpc.BadRequest" in kinds
    assert all(pool.FindMessageTypeByName(kind) for kind in kinds)


def a_trunk() -> dict[str, Any]:
    return {
        "name": "By descriptors",
        "provider": "plivo",
        "auth_type": "USERPASS",
        "auth_username": "acme",
        "auth_password": password(),
        "gateways": [{"gateway_address": "sip.example.com"}],
    }


@pytest.mark.usefixtures("grpcurl")
async def test_grpcurl_needs_no_reflection_with_the_set(
    written: Path, silent: str, tmp_path: Path
) -> None:
    with_set = "grpcurl -plaintext -protoset descriptors.binpb"
    code, out, err = await inside(written, f"{with_set} list {SERVICE}")
    assert (code, set(out.split()), err) == (0, {f"{SERVICE}.{name}" for name in METHODS}, "")
    (tmp_path / "request.json").write_text(json.dumps({"sip_trunk": a_trunk()}))
    authorized = f'-H "authorization: Bearer {TOKEN}"'
    create = f"{with_set} {authorized} -d @ {silent} {SERVICE}/CreateSipTrunk"
    code, out, err = await inside(written, f"{create} < {tmp_path}/request.json")
    assert (code, err) == (0, "")
    assert json.loads(out)["name"] == "By descriptors"
    code, out, err = await inside(written, f"{create} < /dev/null")
    assert code != 0
    assert '"@type": "type.googleapis.com/google.rpc.BadRequest"' in err
    health = f"{with_set} {silent} grpc.health.v1.Health/Check"
    code, out, err = await inside(written, health)
    assert (code, json.loads(out), err) == (0, {"status": "SERVING"}, "")
    code, _, err = await inside(written, f"grpcurl -plaintext {silent} list")
    assert code != 0
    assert "does not support the reflection API" in err


async def test_second_run_writes_the_same(written: Path) -> None:
    before = contents(written)
    assert (await command("protos", written)).code == 0
    assert contents(written) == before


async def test_directory_that_can_not_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("")
    done = await command("protos", tmp_path / "a-file")
    assert done.code == 1
    assert done.err.startswith("trunkline: ")
    assert "a-file" in done.err
    assert "Traceback" not in done.err

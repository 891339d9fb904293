import inspect
import re
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory

from siptrunk.v1 import sip_trunk_service_pb2
from tests.support import TOKEN, refusal
from trunkline import config, errors
from trunkline.cli.limits import LIMITS
from trunkline.cli.main import main

SERVICE = sip_trunk_service_pb2.DESCRIPTOR.services_by_name["SipTrunkService"]
ERRORS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.TrunklineError) and kind is not errors.TrunklineError
]


async def called(address: str, method: str, body: bytes, token: str | None = TOKEN) -> Any:
    """The error that a method answers raw bytes with; None where it answers well."""
    metadata = [("authorization", f"Bearer {token}")] if token else []
    async with grpc.aio.insecure_channel(address) as channel:
        # A stream's first response is as good an answer as any.
        call: Any = channel.unary_stream(method)
        try:
            async for _ in call(body, metadata=metadata):
                break
        except grpc.aio.AioRpcError as error:
            return error
    return None


@pytest.mark.parametrize("method", [m.name for m in SERVICE.methods])
async def test_every_method_of_the_proto_is_served(service: str, method: str) -> None:
    request = message_factory.GetMessageClass(SERVICE.methods_by_name[method].input_type)()
    error = await called(service, f"/{SERVICE.full_name}/{method}", request.SerializeToString())
    if method in ("ListSipTrunks", "WatchSipTrunks"):
        assert error is None
    else:
        found = refusal(error)
        assert found.code == "INVALID_ARGUMENT"
        assert set(found.violations.values()) == {"REQUIRED"}


@pytest.mark.parametrize("method", [m.name for m in SERVICE.methods])
async def test_every_method_needs_a_token(service: str, method: str) -> None:
    error = await called(service, f"/{SERVICE.full_name}/{method}", b"", token=None)
    assert refusal(error).code == "UNAUTHENTICATED"


@pytest.mark.parametrize("method", ["/siptrunk.v1.SipTrunkService/Nope", "/other.Service/Get"])
async def test_method_that_is_in_no_proto_is_unimplemented(service: str, method: str) -> None:
    found = refusal(await called(service, method, b""))
    assert found.code == "UNIMPLEMENTED"
    assert found.reason == "METHOD_UNKNOWN"


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_error_class_has_a_code_of_its_own(kind: type[errors.TrunklineError]) -> None:
    assert "code" in vars(kind)
    assert [other for other in ERRORS if other.code == kind.code] == [kind]


def test_every_error_class_is_in_the_table_of_its_module() -> None:
    table = dict(re.findall(r"[├└]── (\w+) +([A-Z_]+)", errors.__doc__ or ""))
    assert table == {kind.__name__: kind.code.name for kind in ERRORS}


@pytest.fixture
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for f in config.names():
        monkeypatch.delenv(config.variable(f.name), raising=False)


@pytest.mark.usefixtures("_no_settings")
def test_config_lists_every_setting_with_its_value_source_and_meaning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["config"]) == 0
    lines = capsys.readouterr().out.splitlines()
    settings = config.Settings()
    expected = []
    for f in config.names():
        value = getattr(settings, f.name)
        plain = int(value) if isinstance(value, bool) else value
        shown = "(not set)" if f.metadata["secret"] else plain
        expected += [
            f"{config.variable(f.name)}={shown}",
            f"    {config.flag(f.name)}; from default",
            f"    {f.metadata['meaning']}",
        ]
    end = lines.index("")
    assert lines[:end] == expected
    assert lines[end + 1] == "Limits that are not settings:"
    told = [
        line for limit in LIMITS for line in (f"{limit.name}={limit.value}", f"    {limit.meaning}")
    ]
    assert lines[end + 2 :] == told


@pytest.mark.usefixtures("_no_settings")
def test_config_tells_that_a_secret_is_set_but_not_what_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUNKLINE_BOOTSTRAP_TOKEN", TOKEN)
    assert main(["config", "--database-url", "postgresql://u:fake-secret@h/db"]) == 0
    shown = capsys.readouterr()
    assert "TRUNKLINE_BOOTSTRAP_TOKEN=(set)\n" in shown.out
    assert "from TRUNKLINE_BOOTSTRAP_TOKEN\n" in shown.out
    assert "TRUNKLINE_DATABASE_URL=(set)\n" in shown.out
    assert "--database-url; from --database-url\n" in shown.out
    for secret in (TOKEN, "fake-secret"):
        assert secret not in shown.out + shown.err


@pytest.mark.parametrize("command", ["serve", "migrate", "config", "call"])
def test_help_of_a_command_has_a_flag_for_every_setting(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for f in config.names():
        assert f"{config.flag(f.name)} VALUE" in text


def test_settings_of_the_contract_are_there() -> None:
    names = {config.variable(f.name).removeprefix(config.PREFIX) for f in config.names()}
    assert names >= {
        "GRPC_ADDRESS",
        "DATABASE_URL",
        "DATA_DIR",
        "BOOTSTRAP_TOKEN",
        "MIGRATE",
        "DATABASE_POOL_SIZE",
        "DATABASE_STATEMENT_CACHE",
        "SECRET_KEYS",
        "SECRET_KEYS_FILE",
        "ALLOW_PLAINTEXT",
        "LOG_LEVEL",
        "LOG_FORMAT",
    }

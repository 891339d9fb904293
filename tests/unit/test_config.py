import dataclasses
from typing import Any

import pytest

from tests.support import KEYS, TOKEN
from trunkline import config
from trunkline.config import Settings, SettingsError, Source


def load(environment: dict[str, str] | None = None, **flags: str | None) -> Settings:
    settings, _ = config.load(environment or {}, flags)
    return settings


def faults(environment: dict[str, str] | None = None, **flags: str | None) -> list[str]:
    with pytest.raises(SettingsError) as error:
        load(environment, **flags)
    return str(error.value).splitlines()


def test_settings_have_their_defaults_where_nothing_is_given() -> None:
    settings, sources = config.load({}, {})
    assert settings == Settings()
    assert sources == [Source(f.name, "default") for f in config.names()]


@pytest.mark.parametrize("f", config.names(), ids=lambda f: f.name)
def test_setting_says_what_it_means(f: "dataclasses.Field[Any]") -> None:
    assert len(f.metadata["meaning"]) > 10
    assert f.metadata["secret"] in (True, False)
    assert config.variable(f.name) == f"TRUNKLINE_{f.name.upper()}"
    assert config.flag(f.name) == f"--{f.name.replace('_', '-')}"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("grpc_address", "127.0.0.1:0", "127.0.0.1:0"),
        ("grpc_address", "[::1]:50051", "[::1]:50051"),
        ("grpc_address", "localhost:50051", "localhost:50051"),
        ("grpc_address", "unix:/tmp/trunkline.sock", "unix:/tmp/trunkline.sock"),
        ("database_url", "postgresql://h/db", "postgresql://h/db"),
        ("database_url", "postgres://a:1,b:2/db", "postgres://a:1,b:2/db"),
        ("database_url", "postgresql://[::1]:1,[::2]:2/db", "postgresql://[::1]:1,[::2]:2/db"),
        ("database_url", "postgresql:///db?host=/run/pg", "postgresql:///db?host=/run/pg"),
        ("data_dir", "/var/lib/trunkline", "/var/lib/trunkline"),
        ("data_dir", "  spaces  ", "spaces"),
        ("bootstrap_token", "t" * 32, "t" * 32),
        ("migrate", "off", "off"),
        ("database_pool_size", "1", 1),
        ("database_pool_size", "500", 500),
        ("database_statement_cache", "0", 0),
        ("codecs", "ulaw,alaw", "ulaw,alaw"),
        ("codecs", "ulaw, g722", "ulaw, g722"),
        ("reflection", "0", False),
        ("reflection", "off", False),
        ("reflection", "FALSE", False),
        ("reflection", "", False),
        ("reflection", "yes", True),
        ("allow_plaintext", "1", True),
        ("allow_plaintext", "On", True),
        ("grpc_socket", "/run/trunkline.sock", "/run/trunkline.sock"),
        ("tls_ca", "/run/ca.crt", "/run/ca.crt"),
        ("drain_seconds", "0", 0),
        ("drain_seconds", "3600", 3600),
        ("log_level", "debug", "debug"),
        ("log_format", "text", "text"),
    ],
)
def test_setting_is_read_from_its_variable_and_its_flag(name: str, text: str, value: Any) -> None:
    variable = config.variable(name)
    settings, sources = config.load({variable: text}, {})
    assert getattr(settings, name) == value
    assert Source(name, variable) in sources
    settings, sources = config.load({}, {name: text})
    assert getattr(settings, name) == value
    assert Source(name, config.flag(name)) in sources


def test_flag_goes_before_its_variable() -> None:
    settings, sources = config.load({"TRUNKLINE_DRAIN_SECONDS": "1"}, {"drain_seconds": "2"})
    assert settings.drain_seconds == 2
    assert Source("drain_seconds", "--drain-seconds") in sources


def test_flag_that_is_empty_goes_before_its_variable() -> None:
    environment = {"TRUNKLINE_DATABASE_URL": "postgresql://h/db"}
    assert load(environment, database_url="").database_url == ""


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("grpc_address", "50051", "'50051' is not HOST:PORT"),
        ("grpc_address", ":50051", "':50051' is not HOST:PORT"),
        ("grpc_address", "", "'' is not HOST:PORT"),
        ("grpc_address", "127.0.0.1:65536", "'127.0.0.1:65536' is not HOST:PORT"),
        ("grpc_address", "127.0.0.1:http", "'127.0.0.1:http' is not HOST:PORT"),
        ("grpc_address", "0.0.0.0:50051", "set TRUNKLINE_ALLOW_PLAINTEXT=1"),
        ("grpc_address", "[::]:50051", "set TRUNKLINE_ALLOW_PLAINTEXT=1"),
        ("grpc_address", "10.0.0.1:50051", "set TRUNKLINE_ALLOW_PLAINTEXT=1"),
        ("grpc_address", "localhost.example.com:50051", "set TRUNKLINE_ALLOW_PLAINTEXT=1"),
        ("grpc_address", "127.example.com:50051", "set TRUNKLINE_ALLOW_PLAINTEXT=1"),
        ("database_url", "mysql://h/db", "is not a postgresql:// URL"),
        ("database_url", "h/db", "is not a postgresql:// URL"),
        ("database_url", "host=h dbname=db", "is not a postgresql:// URL"),
        ("database_url", "postgresql://[::1/db", "is not a postgresql:// URL"),
        ("data_dir", "", "is needed without a DATABASE_URL"),
        ("bootstrap_token", "short", "has 5 characters; at least 32"),
        ("bootstrap_token", "t" * 31, "has 31 characters; at least 32"),
        ("migrate", "on", "is neither auto nor off"),
        ("migrate", "AUTO", "is neither auto nor off"),
        ("database_pool_size", "0", "is out of range"),
        ("database_pool_size", "501", "is out of range"),
        ("database_pool_size", "ten", "is not a whole number"),
        ("database_pool_size", "-1", "is not a whole number"),
        ("database_pool_size", "1.5", "is not a whole number"),
        ("database_pool_size", "", "is not a whole number"),
        ("database_pool_size", "\u0661\u0660", "is not a whole number"),
        ("database_pool_size", "9" * 5000, "is not a whole number"),
        ("database_statement_cache", "all", "is not a whole number"),
        ("codecs", "", "is not a comma-separated list of different codec names"),
        ("codecs", "ulaw,ulaw", "is not a comma-separated list of different codec names"),
        ("codecs", "ulaw,all", "is not a comma-separated list of different codec names"),
        ("codecs", "ulaw;alaw", "is not a comma-separated list of different codec names"),
        ("codecs", "ULAW", "is not a comma-separated list of different codec names"),
        ("codecs", "!ulaw", "is not a comma-separated list of different codec names"),
        ("reflection", "2", "is neither 1 nor 0"),
        ("allow_plaintext", "maybe", "is neither 1 nor 0"),
        ("grpc_socket", "unix:/run/trunkline.sock", "is a path; leave out unix:"),
        ("tls_client_ca", "/run/ca.crt", "needs TLS_CERT and TLS_KEY"),
        ("http_address", "0.0.0.0:8080", "set TRUNKLINE_TLS_CERT and TRUNKLINE_TLS_KEY, or set"),
        ("drain_seconds", "3601", "is out of range"),
        ("drain_seconds", "1m", "is not a whole number"),
        ("log_level", "trace", "is none of debug, info, warning, error"),
        ("log_level", "INFO", "is none of debug, info, warning, error"),
        ("log_format", "xml", "is none of json, text"),
    ],
)
def test_setting_that_can_not_be_used_is_named_saying_why(name: str, text: str, says: str) -> None:
    (fault,) = faults({config.variable(name): text})
    assert fault.startswith(f"{config.variable(name)}: ")
    assert says in fault


def test_flag_that_can_not_be_read_is_named_as_it_was_given() -> None:
    assert faults(drain_seconds="soon") == ["--drain-seconds: is not a whole number"]


def test_every_fault_is_said_at_once() -> None:
    found = faults(
        {
            "TRUNKLINE_LOG_LEVEL": "loud",
            "TRUNKLINE_DRAIN_SECONDS": "soon",
            "TRUNKLINE_MIGRATE": "perhaps",
        }
    )
    assert {line.partition(":")[0] for line in found} == {
        "TRUNKLINE_LOG_LEVEL",
        "TRUNKLINE_DRAIN_SECONDS",
        "TRUNKLINE_MIGRATE",
    }


def test_plaintext_off_loopback_is_taken_where_it_is_allowed() -> None:
    settings = load({"TRUNKLINE_GRPC_ADDRESS": "0.0.0.0:50051", "TRUNKLINE_ALLOW_PLAINTEXT": "1"})
    assert settings.grpc_address == "0.0.0.0:50051"


PAIR = {"TRUNKLINE_TLS_CERT": "/run/tls.crt", "TRUNKLINE_TLS_KEY": "/run/tls.key"}


def test_every_address_is_taken_with_tls() -> None:
    settings = load(PAIR, grpc_address="0.0.0.0:50051", http_address="[::]:8080")
    assert (settings.tls_cert, settings.tls_key) == ("/run/tls.crt", "/run/tls.key")
    assert config.plaintext_faults(settings) == []


@pytest.mark.parametrize("name", PAIR)
def test_certificate_and_key_are_needed_both(name: str) -> None:
    (missing,) = PAIR.keys() - {name}
    given = name.removeprefix("TRUNKLINE_")
    for address in ("127.0.0.1:1", "0.0.0.0:1"):
        found = faults({name: PAIR[name]}, grpc_address=address)
        assert found == [f"{missing}: is needed with {given}"]


def test_address_to_call_with_tls_may_be_any() -> None:
    settings = load(tls_ca="/run/ca.crt", grpc_address="trunkline.example:50051")
    assert settings.grpc_address == "trunkline.example:50051"


def test_ca_of_the_server_to_call_does_not_make_listening_safe() -> None:
    settings = load(tls_ca="/run/ca.crt", grpc_address="0.0.0.0:1", http_address="0.0.0.0:2")
    assert [fault.partition(":")[0] for fault in config.plaintext_faults(settings)] == [
        "TRUNKLINE_GRPC_ADDRESS",
        "TRUNKLINE_HTTP_ADDRESS",
    ]
    (fault,) = config.plaintext_faults(settings, "http_address")
    assert fault.startswith("TRUNKLINE_HTTP_ADDRESS: is not loopback")
    assert config.plaintext_faults(Settings()) == []


def test_keys_from_two_places_are_refused() -> None:
    (fault,) = faults(secret_keys=KEYS, secret_keys_file="/run/keys")
    assert fault == "TRUNKLINE_SECRET_KEYS_FILE: and SECRET_KEYS: one only"


@pytest.mark.parametrize(
    "name",
    [
        "TRUNKLINE_GRPC_ADRESS",
        "TRUNKLINE_",
        "TRUNKLINE_grpc_address",
        "TRUNKLINE_DATABASE_URLS",
        "TRUNKLINE_IMPORT",
        "TRUNKLINE_REPORTS",
    ],
)
def test_variable_that_means_nothing_is_told(name: str) -> None:
    assert config.unknown_variables({name: "x", "HOME": "/", "TRUNKLINEX": "x"}) == [name]


@pytest.mark.parametrize(
    "name",
    [
        "TRUNKLINE_PORT",
        "TRUNKLINE_PORT_50051_TCP",
        "TRUNKLINE_PORT_50051_TCP_ADDR",
        "TRUNKLINE_PORT_50051_TCP_PORT",
        "TRUNKLINE_SERVICE_HOST",
        "TRUNKLINE_SERVICE_PORT",
        "TRUNKLINE_SERVICE_PORT_GRPC",
        "TRUNKLINE_GRPC_PORT",
        "TRUNKLINE_GRPC_PORT_50051_TCP_PROTO",
        "TRUNKLINE_GRPC_SERVICE_HOST",
        "TRUNKLINE_TOKEN",
    ],
)
def test_variable_that_kubernetes_injects_or_a_client_uses_is_not_told(name: str) -> None:
    assert config.unknown_variables({name: "x"}) == []


def test_variables_of_the_settings_are_known() -> None:
    assert config.unknown_variables({config.variable(f.name): "" for f in config.names()}) == []


SECRETS = {
    "database_url": "postgresql://user:fake-url-password@h/db",
    "bootstrap_token": TOKEN,
    "secret_keys": KEYS,
}


def test_secrets_are_exactly_those_marked() -> None:
    assert {f.name for f in config.names() if f.metadata["secret"]} == SECRETS.keys()


def test_secrets_are_not_shown_by_repr() -> None:
    settings = load({config.variable(name): value for name, value in SECRETS.items()})
    shown = f"{settings!r} {settings} {[settings]}"
    assert all(value not in shown for value in SECRETS.values())
    assert "fake-url-password" not in shown
    assert settings.grpc_address in shown


def test_settings_can_not_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().log_level = "debug"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("bootstrap_token", "fake-short-token"),
        ("database_url", "mysql://user:fake-password@h/db"),
        ("database_url", "postgresql://user:fake-password@[::1/db"),
    ],
)
def test_fault_of_a_secret_does_not_show_it(name: str, secret: str) -> None:
    text = "\n".join(faults({config.variable(name): secret}))
    assert secret not in text
    assert "fake-password" not in text


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1"])
def test_loopback_is_known(address: str) -> None:
    assert config.is_loopback(address)

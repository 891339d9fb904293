"""The settings: one frozen dataclass, from `TRUNKLINE_*` variables and equal flags of `serve`."""

import dataclasses
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from trunkline.codecs import DEFAULT_CODECS
from trunkline.logs import FORMATS, LEVELS
from trunkline.tokens import BOOTSTRAP_CHARACTERS_MIN

PREFIX = "TRUNKLINE_"
POOL_SIZE_MAX = 500
STREAMS_MAX = 2000
MESSAGE_BYTES_MAX = 1 << 20
METADATA_BYTES_MAX = 16 << 10
STREAMS_PER_CONNECTION_MAX = 1000
"""Calls under way at once on one connection (HTTP/2 streams); more wait at the client."""
PENDING_CALLS_MAX = 10_000
"""Calls that have come and are not yet looked at; grpc drops more, without a word of ours."""
CLIENT_PING_SECONDS_MIN = 10
"""Clients that ping more often are told to calm down and lose their connection."""
KEEPALIVE_ANSWER_SECONDS_MAX = 20
HISTORY_DAYS_MAX = 3650
IDEMPOTENCY_HOURS_MAX = 168
# For the commands that call a server; `serve` has no use for it.
CLIENT_VARIABLES = {"TRUNKLINE_TOKEN"}
_RANGES = (
    ("database_pool_size", 1, POOL_SIZE_MAX),
    ("database_wait_seconds", 1, 30),
    ("history_days", 1, HISTORY_DAYS_MAX),
    ("idempotency_hours", 1, IDEMPOTENCY_HOURS_MAX),
    ("calls_max", 1, 100_000),
    ("streams_max", 1, STREAMS_MAX),
    ("connection_age_seconds", 0, 86_400),
    ("connection_grace_seconds", 0, 86_400),
    ("keepalive_seconds", 1, 3600),
    ("drain_delay_seconds", 0, 3600),
    ("drain_seconds", 0, 3600),
)
_INJECTED = re.compile(r"_(PORT|SERVICE)(_|$)")
_CODEC = re.compile(r"[a-z0-9]{1,32}", re.ASCII)
_HOST = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(:[0-9]{0,5})?", re.ASCII)


class SettingsError(Exception):
    """Settings that can't be used; the message names each and says why, never a secret's value."""


def _setting(default: Any, meaning: str, *, secret: bool = False) -> Any:
    return dataclasses.field(
        default=default, metadata={"meaning": meaning, "secret": secret}, repr=not secret
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting of the service. Sizes are counts, times are seconds."""

    grpc_address: str = _setting(
        "127.0.0.1:50051", "HOST:PORT of the gRPC server; port 0 takes any free one"
    )
    grpc_socket: str = _setting(
        "",
        "path of a UNIX socket that the gRPC server also listens on, in plaintext, mode 0660;"
        " empty: none",
    )
    http_address: str = _setting(
        "127.0.0.1:8080", "HOST:PORT of the HTTP gateway; port 0 takes any free one; empty: none"
    )
    http_cors_origins: str = _setting(
        "",
        "origins that browsers may call the gateway from, separated by commas, or *; empty: none",
    )
    database_url: str = _setting(
        "",
        "PostgreSQL 15 or newer as a libpq URL, several hosts allowed; empty: the embedded one",
        secret=True,
    )
    data_dir: str = _setting("data", "where the embedded database, its keys and its token live")
    postgres_bin: str = _setting(
        "", "the bin directory of the embedded PostgreSQL; empty: the one installed by pip"
    )
    bootstrap_token: str = _setting(
        "",
        f"at least {BOOTSTRAP_CHARACTERS_MIN} characters; acts on the account default, with every"
        " scope, while no token was ever made",
        secret=True,
    )
    migrate: str = _setting("auto", "auto: bring the schema up to date at start; off: wait for it")
    database_pool_size: int = _setting(
        10,
        f"connections to PostgreSQL that calls share, 1 to {POOL_SIZE_MAX}; up to 3 more look"
        " after the rest",
    )
    database_wait_seconds: int = _setting(
        5, "how long a call may wait for one of these connections, 1 to 30"
    )
    database_statement_cache: int = _setting(
        200, "prepared statements kept per connection; 0 behind pgbouncer"
    )
    secret_keys: str = _setting(
        "",
        "keys that seal secrets, as id:base64 of 32 bytes, newest first, separated by commas or"
        " lines",
        secret=True,
    )
    secret_keys_file: str = _setting("", "a file with the same, in place of SECRET_KEYS")
    history_days: int = _setting(
        90, f"days that revisions are kept after they were replaced, 1 to {HISTORY_DAYS_MAX}"
    )
    idempotency_hours: int = _setting(
        24,
        "hours that answers are kept for retries with the same request_id, 1 to"
        f" {IDEMPOTENCY_HOURS_MAX}",
    )
    codecs: str = _setting(DEFAULT_CODECS, "the codecs known, in the order that `all` stands for")
    reflection: bool = _setting(default=True, meaning="serve gRPC reflection, which needs no token")
    tls_cert: str = _setting(
        "",
        "a PEM file: the certificate of both ports, then those up to its CA; read again when it"
        " changes; empty: plaintext",
    )
    tls_key: str = _setting("", "a PEM file: the private key of TLS_CERT")
    tls_client_ca: str = _setting(
        "",
        "a PEM file: the CAs that every client of both ports needs a certificate of; empty: none"
        " needed",
    )
    tls_ca: str = _setting(
        "",
        "for commands that call a server, which show TLS_CERT if set: a PEM file with the server's"
        " CA; empty: plaintext",
    )
    allow_plaintext: bool = _setting(
        default=False, meaning="allow a plaintext port on an address that is not loopback"
    )
    calls_max: int = _setting(
        1000, "calls that are answered at once, 1 to 100000; more are told to try again"
    )
    streams_max: int = _setting(
        STREAMS_MAX, f"likewise for streams, which watches are, 1 to {STREAMS_MAX}"
    )
    connection_age_seconds: int = _setting(
        1800,
        "how long clients may keep a connection, so that they spread over new servers; 0: for ever",
    )
    connection_grace_seconds: int = _setting(
        60, "how long calls and streams on such a connection may then go on"
    )
    keepalive_seconds: int = _setting(
        60, "how often clients that are silent are asked whether they are there, 1 to 3600"
    )
    drain_delay_seconds: int = _setting(
        0,
        "how long after SIGTERM calls are still taken while health is NOT_SERVING, 0 to 3600:"
        " what a load balancer needs to notice",
    )
    drain_seconds: int = _setting(20, "how long calls may then take to finish, 0 to 3600")
    metrics_address: str = _setting(
        "",
        "HOST:PORT of the Prometheus metrics, at /metrics in plaintext, which name no account;"
        " empty: none",
    )
    log_level: str = _setting("info", f"one of {', '.join(LEVELS)}")
    log_format: str = _setting("json", f"one of {', '.join(FORMATS)}")

    def cors_origins(self) -> list[str]:
        """The origins that browsers may call from."""
        return [origin.strip() for origin in self.http_cors_origins.split(",") if origin.strip()]

    def codec_names(self) -> list[str]:
        """The codecs as a list."""
        return [name.strip() for name in self.codecs.split(",")]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a setting's value comes from: `default`, a variable's name or a flag."""

    name: str
    origin: str


def names() -> Sequence["dataclasses.Field[Any]"]:
    """The settings in order, with `metadata["meaning"]` and `metadata["secret"]`."""
    return dataclasses.fields(Settings)


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def flag(name: str) -> str:
    """The flag of a setting."""
    return "--" + name.replace("_", "-")


def load(
    environment: Mapping[str, str], flags: Mapping[str, str | None]
) -> tuple[Settings, list[Source]]:
    """Read the settings; a flag goes before its variable.

    Raises:
        SettingsError: some can't be used.
    """
    values: dict[str, Any] = {}
    sources, faults = [], []
    for f in names():
        given = flags.get(f.name)
        origin = flag(f.name)
        if given is None and variable(f.name) in environment:
            given, origin = environment[variable(f.name)], variable(f.name)
        if given is None:
            sources.append(Source(f.name, "default"))
            continue
        sources.append(Source(f.name, origin))
        try:
            values[f.name] = _parsed(f.default, given.strip())
        except ValueError as error:
            faults.append(f"{origin}: {error}")
    settings = Settings(**values)
    faults += _faults(settings) + _tls_faults(settings)
    if faults:
        raise SettingsError("\n".join(faults))
    return settings, sources


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """`TRUNKLINE_*` names that mean nothing here, but for those that Kubernetes injects."""
    known = {variable(f.name) for f in names()} | CLIENT_VARIABLES
    ours = (n for n in environment if n.startswith(PREFIX) and n not in known)
    return sorted(n for n in ours if not _INJECTED.search(n.removeprefix("TRUNKLINE")))


def _parsed(default: object, text: str) -> object:
    if isinstance(default, bool):
        if text.lower() in ("1", "true", "yes", "on"):
            return True
        if text.lower() in ("0", "false", "no", "off", ""):
            return False
        raise ValueError("is neither 1 nor 0")
    if isinstance(default, int):
        if not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII):
            raise ValueError("is not a whole number")
        return int(text)
    return text


def _faults(s: Settings) -> list[str]:
    found = []

    def want(condition: object, name: str, what: str) -> None:
        if not condition:
            found.append(f"{variable(name)}: {what}")

    for name in ("grpc_address", "http_address", "metrics_address"):
        text = getattr(s, name)
        if not text and name != "grpc_address":
            continue
        right = _is_address(text) or (name == "grpc_address" and text.startswith("unix:"))
        want(right, name, f"{text!r} is not HOST:PORT")
    want(not s.grpc_socket.startswith("unix:"), "grpc_socket", "is a path; leave out unix:")
    token = len(s.bootstrap_token)
    want(
        token == 0 or token >= BOOTSTRAP_CHARACTERS_MIN,
        "bootstrap_token",
        f"has {token} characters; at least {BOOTSTRAP_CHARACTERS_MIN}",
    )
    want(s.migrate in ("auto", "off"), "migrate", "is neither auto nor off")
    # What a retry is answered with is a revision.
    longer = s.idempotency_hours > 24 * s.history_days
    want(not longer, "idempotency_hours", "is longer than HISTORY_DAYS")
    for name, least, most in _RANGES:
        want(least <= getattr(s, name) <= most, name, f"is out of range: {least} to {most}")
    want(s.log_level in LEVELS, "log_level", f"is none of {', '.join(LEVELS)}")
    want(s.log_format in FORMATS, "log_format", f"is none of {', '.join(FORMATS)}")
    want(
        all(_CODEC.fullmatch(n) and n != "all" for n in s.codec_names())
        and len(set(s.codec_names())) == len(s.codec_names()),
        "codecs",
        "is not a comma-separated list of different codec names",
    )
    want(s.database_url or s.data_dir, "data_dir", "is needed without a DATABASE_URL")
    want(
        not s.database_url or _is_postgresql(s.database_url),
        "database_url",
        "is not a postgresql:// URL; in a user or password, write / ? # @ as %2F %3F %23 %40",
    )
    want(
        not (s.secret_keys and s.secret_keys_file), "secret_keys_file", "and SECRET_KEYS: one only"
    )
    return found


def _tls_faults(s: Settings) -> list[str]:
    found = []
    for name, other in (("tls_cert", "tls_key"), ("tls_key", "tls_cert")):
        if getattr(s, other) and not getattr(s, name):
            found.append(f"{variable(name)}: is needed with {other.upper()}")
    if s.tls_client_ca and not s.tls_cert:
        found.append(f"{variable('tls_client_ca')}: needs TLS_CERT and TLS_KEY")
    # With TLS_CA, an address may be where to call; those who listen ask `plaintext_faults`.
    return found if s.tls_ca else found + plaintext_faults(s)


def plaintext_faults(s: Settings, *addresses: str) -> list[str]:
    """What is wrong with listening in plaintext, at the addresses named or at all of them."""
    if s.tls_cert or s.tls_key or s.allow_plaintext:
        return []
    return [
        f"{variable(name)}: is not loopback, and the port is plaintext; set TRUNKLINE_TLS_CERT and"
        " TRUNKLINE_TLS_KEY, or set TRUNKLINE_ALLOW_PLAINTEXT=1 where a sidecar or the network"
        " does TLS"
        for name in addresses or ("grpc_address", "http_address")
        if _is_address(getattr(s, name)) and not is_loopback(getattr(s, name))
    ]


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host and re.fullmatch(r"[0-9]{1,5}", port, re.ASCII)) and int(port) <= 65535


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an address."""
    host = address.rpartition(":")[0].strip("[]")
    if address.startswith("unix:") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_postgresql(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    hosts = parts.netloc.rpartition("@")[2].split(",")
    return parts.scheme in ("postgresql", "postgres") and all(map(_HOST.fullmatch, hosts))

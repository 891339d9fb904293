"""Certificates for tests: authorities, what they issue, and the ways that files are replaced."""

import asyncio
import itertools
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from tests.support import TOKEN, Recorder, Stub

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
SECONDS_MAX = 30
SERVER_NAMES = ("localhost", "127.0.0.1")
_swaps = itertools.count(1)


def ecdsa(curve: type[ec.EllipticCurve] = ec.SECP256R1) -> ec.EllipticCurvePrivateKey:
    """A new key, quickly made."""
    return ec.generate_private_key(curve())


def pem(key: Key, password: bytes | None = None) -> bytes:
    """A key as a file has it."""
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


@dataclass(frozen=True)
class Issued:
    """A certificate with its chain, and its key, as files have them."""

    certificate: x509.Certificate
    chain: bytes
    key: bytes

    @property
    def serial(self) -> str:
        """As the log has it."""
        return f"{self.certificate.serial_number:x}"


class Authority:
    """A CA; with a parent, one whose certificate comes along in each chain.

    Args:
        name: its common name.
        parent: signs its certificate; itself without one.
    """

    def __init__(self, name: str, parent: "Authority | None" = None) -> None:
        self._key = ecdsa()
        self._parent = parent
        subject = _subject(name)
        self.certificate: x509.Certificate = _signed(
            _builder(subject, parent.certificate.subject if parent else subject, 365)
            .public_key(self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True),
            parent._key if parent else self._key,
        )

    @property
    def pem(self) -> bytes:
        """Its certificate, for those who trust it."""
        return self.certificate.public_bytes(Encoding.PEM)

    def issue(
        self,
        name: str = "trunkline",
        *alternatives: str,
        days: float = 90,
        key: Key | None = None,
    ) -> Issued:
        """A certificate for a host, an address or a URI; without any, for a server of a test."""
        key = key or ecdsa()
        builder = _builder(_subject(name), self.certificate.subject, days)
        names = [_general(text) for text in alternatives]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        made = _signed(builder.public_key(key.public_key()), self._key)
        chain = made.public_bytes(Encoding.PEM) + (self.pem if self._parent else b"")
        return Issued(made, chain, pem(key))

    def server(self, **values: float | Key) -> Issued:
        """A certificate for a server of a test."""
        return self.issue("trunkline", *SERVER_NAMES, **values)  # type: ignore[arg-type]


def write(directory: Path, issued: Issued) -> dict[str, Any]:
    """Write the pair into its files in place; the settings that name them."""
    directory.mkdir(exist_ok=True)
    (directory / "tls.crt").write_bytes(issued.chain)
    (directory / "tls.key").write_bytes(issued.key)
    return settings(directory)


def rename(directory: Path, issued: Issued) -> dict[str, Any]:
    """The same by new files that take the places of the old ones."""
    fresh = directory / f"new-{next(_swaps)}"
    write(fresh, issued)
    for name in ("tls.crt", "tls.key"):
        (fresh / name).replace(directory / name)
    return settings(directory)


def swap(directory: Path, issued: Issued, **more: bytes) -> dict[str, Any]:
    """The same as Kubernetes mounts a secret: all files change at once, by one symbolic link.

    Args:
        directory: of the files.
        issued: the pair.
        more: further files, by name without `.crt`.
    """
    directory.mkdir(exist_ok=True)
    fresh = directory / f"..data-{next(_swaps)}"
    write(fresh, issued)
    for name, contents in more.items():
        (fresh / f"{name}.crt").write_bytes(contents)
    link = directory / "..data-new"
    link.symlink_to(fresh.name)
    link.replace(directory / "..data")
    for path in fresh.iterdir():
        if not (directory / path.name).is_symlink():
            (directory / path.name).symlink_to(os.path.join("..data", path.name))  # noqa: PTH118
    return settings(directory)


def settings(directory: Path) -> dict[str, Any]:
    """The settings that name the pair in a directory."""
    return {"tls_cert": str(directory / "tls.crt"), "tls_key": str(directory / "tls.key")}


def trusting(*authorities: Authority, client: Issued | None = None) -> grpc.ChannelCredentials:
    """For a client that trusts some authorities, and maybe shows a certificate."""
    return grpc.ssl_channel_credentials(
        b"".join(a.pem for a in authorities),
        client.key if client else None,
        client.chain if client else None,
    )


def context(*authorities: Authority, client: dict[str, Any] | None = None) -> ssl.SSLContext:
    """The same for a client on Python's ssl, whose pair is in files."""
    made = ssl.create_default_context(cadata="".join(a.pem.decode() for a in authorities))
    if client:
        made.load_cert_chain(client["tls_cert"], client["tls_key"])
    return made


@asynccontextmanager
async def connected(
    address: str, credentials: grpc.ChannelCredentials, token: str | None = TOKEN
) -> AsyncIterator[Any]:
    """A stub whose calls carry a token, on a connection of its own with TLS."""
    async with grpc.aio.secure_channel(
        address,
        credentials,
        options=[("grpc.use_local_subchannel_pool", 1)],
        interceptors=[Recorder(token)],
    ) as channel:
        yield Stub(channel)


async def shown(address: str, *authorities: Authority) -> str:
    """The serial number of the certificate that a port shows to a new connection."""
    host, _, port = address.rpartition(":")
    client = context(*authorities)
    client.set_alpn_protocols(["h2", "http/1.1"])
    async with asyncio.timeout(SECONDS_MAX):
        _, writer = await asyncio.open_connection(host, int(port), ssl=client)
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return f"{x509.load_der_x509_certificate(der).serial_number:x}"


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])


def _general(text: str) -> x509.GeneralName:
    if "://" in text:
        return x509.UniformResourceIdentifier(text)
    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _builder(subject: x509.Name, issuer: x509.Name, days: float) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=400))
        .not_valid_after(now + timedelta(days=days))
    )


def _signed(builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    return builder.sign(key, hashes.SHA256())

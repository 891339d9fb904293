"""TLS: a certificate, its key and the CAs of clients, from files that may change."""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from trunkline import config
from trunkline.config import Settings, SettingsError

log = logging.getLogger(__name__)

REFRESH_SECONDS = 1.0
EXPIRY_WARNING = timedelta(days=14)
EXPIRY_WARNING_EVERY = timedelta(days=1)
FILE_BYTES_MAX = 1 << 20
CLIENT_NAMES_MAX = 4
CLIENT_NAME_CHARACTERS_MAX = 200
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)

Contents = tuple[bytes | str, ...]
"""What is in some files; for one that can't be read, why."""


class _UnusableError(Exception):
    """A file is not what its setting wants; nothing of what is in it is told."""

    def __init__(self, setting: str, path: str, why: str) -> None:
        super().__init__(f"{config.variable(setting)}: {path} {why}")
        self.path = path
        self.why = why


@dataclass(frozen=True, slots=True)
class _Pair:
    """A certificate and a key that fit each other, as gRPC and as Python's ssl take them."""

    contents: Contents = field(repr=False)
    certificate: x509.Certificate
    configuration: grpc.ServerCertificateConfiguration
    context: ssl.SSLContext

    def told(self) -> dict[str, str]:
        """What the log tells of it."""
        return {
            "not_after": self.certificate.not_valid_after_utc.isoformat(),
            "serial": f"{self.certificate.serial_number:x}",
        }


class _LiveContext(ssl.SSLContext):
    """Makes each connection by the context that is the current one when it begins.

    A change to a context that is in use would leave the CAs that it had, and the sessions that
    clients may resume.
    """

    current: Callable[[], ssl.SSLContext]

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        return self.current().wrap_bio(*args, **kwargs)


class Certificates:
    """The certificate of a server as its files have it, for new connections.

    A state of the files that can't be used, such as one half written, leaves the last good one.

    Args:
        settings: name the files.

    Raises:
        SettingsError: the files can't be used as they are now.
    """

    def __init__(self, settings: Settings) -> None:
        self._files = {"tls_cert": settings.tls_cert, "tls_key": settings.tls_key}
        if settings.tls_client_ca:
            self._files["tls_client_ca"] = settings.tls_client_ca
        self.asks_clients = bool(settings.tls_client_ca)
        try:
            self._pair = _pair(self._files, _contents(self._files))
        except _UnusableError as error:
            raise SettingsError(str(error)) from None
        self._refused: Contents = ()
        self._warned_at = datetime.min.replace(tzinfo=UTC)
        self._warn_of_expiry(datetime.now(UTC))

    def server_credentials(self) -> grpc.ServerCredentials:
        """For a port of a gRPC server."""
        handed = self._pair.configuration

        # Called for each connection, on threads of gRPC's own.
        def changed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal handed
            current = self._pair.configuration
            if current is handed:
                return None
            handed = current
            return current

        return grpc.dynamic_ssl_server_credentials(
            handed,
            changed,  # type: ignore[arg-type]  # None is for no change, which the stubs don't know
            require_client_authentication=self.asks_clients,
        )

    def context(self) -> ssl.SSLContext:
        """For an HTTP server on asyncio."""
        context = _LiveContext(ssl.PROTOCOL_TLS_SERVER)
        context.current = lambda: self._pair.context
        return context

    @contextlib.asynccontextmanager
    async def refreshing(self) -> AsyncIterator[None]:
        """Look at the files again and again while the block runs."""
        task = asyncio.create_task(self._refresh_forever())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def refresh(self, now: datetime) -> None:
        """Take what is in the files, if it is something else that can be used."""
        found = _contents(self._files)
        if found == self._pair.contents:
            self._refused = ()
        elif found != self._refused:
            self._take(found, now)
        self._warn_of_expiry(now)

    async def _refresh_forever(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                # On a thread: the files may be on a disk that is slow to answer.
                await asyncio.to_thread(self.refresh, datetime.now(UTC))
            except Exception:
                log.exception("tls_refresh_failed")

    def _take(self, found: Contents, now: datetime) -> None:
        pair, fault = None, None
        try:
            pair = _pair(self._files, found)
        except _UnusableError as error:
            fault = error
        if _contents(self._files) != found:
            return  # they are being written: the next look will tell
        if fault is not None:
            self._refused = found
            log.warning("tls_reload_failed", extra={"path": fault.path, "why": fault.why})
        elif pair is not None:
            self._pair, self._refused = pair, ()
            log.info("tls_reloaded", extra={"path": self._files["tls_cert"]} | pair.told())
            self._warned_at = now - EXPIRY_WARNING_EVERY

    def _warn_of_expiry(self, now: datetime) -> None:
        left = self._pair.certificate.not_valid_after_utc - now
        if left > EXPIRY_WARNING or now < self._warned_at + EXPIRY_WARNING_EVERY:
            return
        self._warned_at = now
        extra = {"path": self._files["tls_cert"], "days_left": left.days} | self._pair.told()
        log.warning("tls_certificate_expires", extra=extra)


@contextlib.asynccontextmanager
async def certificates(settings: Settings) -> AsyncIterator[Certificates | None]:
    """The certificates of the settings, looked at again while the block runs; None without TLS.

    Raises:
        SettingsError: they can't be used.
    """
    if not settings.tls_cert:
        yield None
        return
    made = Certificates(settings)
    async with made.refreshing():
        yield made


def channel_credentials(settings: Settings, address: str) -> grpc.ChannelCredentials | None:
    """What a client of the server at an address needs; None where it is called in plaintext.

    Raises:
        SettingsError: the files can't be used.
    """
    if not settings.tls_ca or address.startswith("unix:"):
        return None
    files = {"tls_ca": settings.tls_ca}
    if settings.tls_cert:
        files |= {"tls_cert": settings.tls_cert, "tls_key": settings.tls_key}
    try:
        data = _checked(files, _contents(files))
        _certificates(files, data, "tls_ca")
        if settings.tls_cert:
            _fitting(files, data)
    except _UnusableError as error:
        raise SettingsError(str(error)) from None
    return grpc.ssl_channel_credentials(data["tls_ca"], data.get("tls_key"), data.get("tls_cert"))


def client_name(identity: Mapping[str, list[bytes]]) -> str | None:
    """Whose certificate a gRPC client has shown, from its call's `auth_context()`; None for none.

    The subject alternative names, or the common name where there are none.
    """
    names = identity.get("x509_subject_alternative_name") or identity.get("x509_common_name") or []
    shown = ",".join(name.decode("utf-8", "replace") for name in names[:CLIENT_NAMES_MAX])
    return shown[:CLIENT_NAME_CHARACTERS_MAX] or None


def peer_name(certificate: Mapping[str, Any]) -> str | None:
    """The same from a certificate as Python's ssl has it."""
    names = [value.encode() for _, value in certificate.get("subjectAltName", ())]
    subject = [pair for part in certificate.get("subject", ()) for pair in part]
    common = [value.encode() for kind, value in subject if kind == "commonName"]
    return client_name({"x509_subject_alternative_name": names, "x509_common_name": common})


def _contents(files: Mapping[str, str]) -> Contents:
    return tuple(_read(Path(path)) for path in files.values())


def _read(path: Path) -> bytes | str:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        return f"can't be read: {error.strerror}"
    return data if len(data) <= FILE_BYTES_MAX else f"has more than {FILE_BYTES_MAX} bytes"


def _checked(files: Mapping[str, str], contents: Contents) -> dict[str, bytes]:
    """What is in each file, by its setting."""
    data = {}
    for (setting, path), content in zip(files.items(), contents, strict=True):
        if isinstance(content, str):
            raise _UnusableError(setting, path, content)
        # A block without its end is passed over by those who read PEM.
        if content.count(b"-----BEGIN ") != content.count(b"-----END "):
            raise _UnusableError(setting, path, "has a PEM block without its end")
        data[setting] = content
    return data


def _pair(files: Mapping[str, str], contents: Contents) -> _Pair:
    data = _checked(files, contents)
    certificate = _fitting(files, data)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    cert, key, client_ca = files["tls_cert"], files["tls_key"], data.get("tls_client_ca")
    authorities = [] if client_ca is None else _certificates(files, data, "tls_client_ca")
    try:
        if authorities:
            context.verify_mode = ssl.CERT_REQUIRED
            # As gRPC does it: a CA named here needs no other one above it.
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            context.load_verify_locations(
                cadata=b"".join(a.public_bytes(Encoding.DER) for a in authorities)
            )
        # With no password, a key that is encrypted by now would be asked for at the terminal.
        context.load_cert_chain(cert, key, password=b"")
    except OSError as error:
        reason = getattr(error, "reason", None) or error.strerror
        raise _UnusableError("tls_cert", cert, f"can't be used with its key: {reason}") from None
    configuration = grpc.ssl_server_certificate_configuration(
        [(data["tls_key"], data["tls_cert"])], client_ca
    )
    return _Pair(contents, certificate, configuration, context)


def _fitting(files: Mapping[str, str], data: Mapping[str, bytes]) -> x509.Certificate:
    """The first certificate, which is seen to be that of the key."""
    certificate = _certificates(files, data, "tls_cert")[0]
    path = files["tls_key"]
    try:
        key = load_pem_private_key(data["tls_key"], None)
    except TypeError:
        raise _UnusableError("tls_key", path, "is encrypted") from None
    except (ValueError, UnsupportedAlgorithm):
        raise _UnusableError("tls_key", path, "has no private key that can be read") from None
    known = isinstance(key, rsa.RSAPrivateKey) or (
        isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, _CURVES)
    )
    if not known:
        why = "is a key that gRPC can't use; RSA and ECDSA on P-256, P-384 or P-521 are"
        raise _UnusableError("tls_key", path, why)
    if certificate.public_key() != key.public_key():
        why = f"is not the key of the first certificate in {files['tls_cert']}"
        raise _UnusableError("tls_key", path, why)
    return certificate


def _certificates(
    files: Mapping[str, str], data: Mapping[str, bytes], setting: str
) -> list[x509.Certificate]:
    try:
        found = x509.load_pem_x509_certificates(data[setting])
        for certificate in found:
            certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        why = "has no certificates that can be read"
        raise _UnusableError(setting, files[setting], why) from None
    return found

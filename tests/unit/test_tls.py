"""Files of certificates: which are taken, which are refused, and what is said of them."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from tests.certificates import Authority, Issued, ecdsa, pem, swap, write
from trunkline import tls
from trunkline.config import Settings, SettingsError
from trunkline.tls import Certificates

CA = Authority("An authority")
OTHER_CA = Authority("Another authority")
ONE, TWO = CA.server(), CA.server()
NOW = datetime.now(UTC)


def certificates(directory: Path, **more: Any) -> Certificates:
    return Certificates(Settings(**write(directory, ONE), **more))


def chain(server: Certificates) -> bytes:
    """The certificates that new connections are shown."""
    content = server._pair.contents[0]
    assert isinstance(content, bytes)
    return content


def events(caplog: pytest.LogCaptureFixture) -> list[tuple[str, dict[str, Any]]]:
    return [
        (record.getMessage(), record.__dict__)
        for record in caplog.records
        if record.name == "trunkline.tls"
    ]


def names(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [event for event, _ in events(caplog)]


@pytest.mark.parametrize(
    "key",
    [
        ecdsa(),
        ecdsa(ec.SECP384R1),
        ecdsa(ec.SECP521R1),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["P-256", "P-384", "P-521", "RSA"],
)
def test_pair_of_a_usual_kind_is_taken(tmp_path: Path, key: Any) -> None:
    issued = CA.server(key=key)
    assert chain(Certificates(Settings(**write(tmp_path, issued)))) == issued.chain


def test_certificate_and_key_may_be_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "both.pem"
    path.write_bytes(ONE.key + ONE.chain)
    server = Certificates(Settings(tls_cert=str(path), tls_key=str(path)))
    assert chain(server) == ONE.key + ONE.chain


def _gone(directory: Path) -> None:
    (directory / "tls.crt").unlink()


def _no_certificate(directory: Path) -> None:
    (directory / "tls.crt").write_text("nothing of the kind\n")


def _empty(directory: Path) -> None:
    (directory / "tls.crt").write_bytes(b"")


def _cut(directory: Path) -> None:
    (directory / "tls.crt").write_bytes(ONE.chain + TWO.chain[:200])


def _huge(directory: Path) -> None:
    (directory / "tls.crt").write_bytes(ONE.chain + b"\n" * tls.FILE_BYTES_MAX)


def _no_key(directory: Path) -> None:
    (directory / "tls.key").write_bytes(ONE.chain)


def _half_key(directory: Path) -> None:
    (directory / "tls.key").write_bytes(ONE.key[: len(ONE.key) // 2])


def _encrypted(directory: Path) -> None:
    key = ecdsa()
    issued = CA.server(key=key)
    write(directory, Issued(issued.certificate, issued.chain, pem(key, b"a password")))


def _other_key(directory: Path) -> None:
    (directory / "tls.key").write_bytes(TWO.key)


def _other_order(directory: Path) -> None:
    (directory / "tls.crt").write_bytes(CA.pem + ONE.chain)


def _ed25519(directory: Path) -> None:
    write(directory, CA.server(key=ed25519.Ed25519PrivateKey.generate()))


def _bitcoin(directory: Path) -> None:
    write(directory, CA.server(key=ecdsa(ec.SECP256K1)))


def _short(directory: Path) -> None:
    write(directory, CA.server(key=rsa.generate_private_key(65537, 1024)))


def _directory(directory: Path) -> None:
    (directory / "tls.key").unlink()
    (directory / "tls.key").mkdir()


BAD = [
    (_gone, "TRUNKLINE_TLS_CERT: {}/tls.crt can't be read: No such file or directory"),
    (_no_certificate, "TRUNKLINE_TLS_CERT: {}/tls.crt has no certificates that can be read"),
    (_empty, "TRUNKLINE_TLS_CERT: {}/tls.crt has no certificates that can be read"),
    (_cut, "TRUNKLINE_TLS_CERT: {}/tls.crt has a PEM block without its end"),
    (_huge, "TRUNKLINE_TLS_CERT: {}/tls.crt has more than 1048576 bytes"),
    (_no_key, "TRUNKLINE_TLS_KEY: {}/tls.key has no private key that can be read"),
    (_half_key, "TRUNKLINE_TLS_KEY: {}/tls.key has a PEM block without its end"),
    (_encrypted, "TRUNKLINE_TLS_KEY: {}/tls.key is encrypted"),
    (
        _other_key,
        "TRUNKLINE_TLS_KEY: {0}/tls.key is not the key of the first certificate in {0}/tls.crt",
    ),
    (
        _other_order,
        "TRUNKLINE_TLS_KEY: {0}/tls.key is not the key of the first certificate in {0}/tls.crt",
    ),
    (
        _ed25519,
        "TRUNKLINE_TLS_KEY: {}/tls.key is a key that gRPC can't use; RSA and ECDSA on P-256, P-384"
        " or P-521 are",
    ),
    (
        _bitcoin,
        "TRUNKLINE_TLS_KEY: {}/tls.key is a key that gRPC can't use; RSA and ECDSA on P-256, P-384"
        " or P-521 are",
    ),
    (_short, "TRUNKLINE_TLS_CERT: {}/tls.crt can't be used with its key: EE_KEY_TOO_SMALL"),
    (_directory, "TRUNKLINE_TLS_KEY: {}/tls.key can't be read: Is a directory"),
]


@pytest.mark.parametrize(("spoil", "says"), BAD, ids=[spoil.__name__ for spoil, _ in BAD])
def test_start_with_files_that_can_not_be_used_says_which_and_why(
    tmp_path: Path, spoil: Callable[[Path], None], says: str
) -> None:
    settings = Settings(**write(tmp_path, ONE))
    spoil(tmp_path)
    with pytest.raises(SettingsError) as error:
        Certificates(settings)
    assert str(error.value) == says.format(tmp_path)


def test_client_ca_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ca.crt"
    path.write_text("no authority")
    with pytest.raises(SettingsError) as error:
        certificates(tmp_path, tls_client_ca=str(path))
    says = f"TRUNKLINE_TLS_CLIENT_CA: {path} has no certificates that can be read"
    assert str(error.value) == says


@pytest.mark.parametrize(("spoil", "says"), BAD, ids=[spoil.__name__ for spoil, _ in BAD])
def test_change_that_can_not_be_used_leaves_the_old_pair_and_is_told_once(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Path], None],
    says: str,
) -> None:
    server = certificates(tmp_path)
    spoil(tmp_path)
    for _ in range(3):
        server.refresh(NOW)
    assert chain(server) == ONE.chain
    ((event, fields),) = events(caplog)
    assert event == "tls_reload_failed"
    assert f"{fields['path']} {fields['why']}" == says.format(tmp_path).partition(": ")[2]
    assert "PRIVATE KEY" not in caplog.text + repr(fields)


def test_each_bad_state_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = certificates(tmp_path)
    _gone(tmp_path)
    server.refresh(NOW)
    write(tmp_path, ONE)
    server.refresh(NOW)
    assert names(caplog) == ["tls_reload_failed"]
    _gone(tmp_path)
    server.refresh(NOW)
    _empty(tmp_path)
    server.refresh(NOW)
    assert names(caplog) == ["tls_reload_failed"] * 3


@pytest.mark.parametrize("replace", [write, swap], ids=["written", "swapped"])
def test_change_is_taken_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, replace: Callable[..., dict[str, Any]]
) -> None:
    directory = tmp_path / "tls"
    server = Certificates(Settings(**replace(directory, ONE)))
    replace(directory, TWO)
    for _ in range(3):
        server.refresh(NOW)
    assert chain(server) == TWO.chain
    ((event, fields),) = events(caplog)
    assert event == "tls_reloaded"
    assert fields["serial"] == f"{TWO.certificate.serial_number:x}"
    assert fields["not_after"] == TWO.certificate.not_valid_after_utc.isoformat()
    assert fields["path"] == str(directory / "tls.crt")


def test_change_of_the_client_ca_alone_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "ca.crt"
    path.write_bytes(CA.pem)
    server = certificates(tmp_path, tls_client_ca=str(path))
    path.write_bytes(OTHER_CA.pem)
    server.refresh(NOW)
    assert names(caplog) == ["tls_reloaded"]
    (authority,) = server._pair.context.get_ca_certs(binary_form=True)
    assert authority in OTHER_CA.certificate.public_bytes(Encoding.DER)


def test_files_that_stay_or_are_written_anew_with_the_same_are_not_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = certificates(tmp_path)
    server.refresh(NOW)
    write(tmp_path, ONE)
    server.refresh(NOW)
    assert events(caplog) == []


def test_pair_that_follows_a_bad_one_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = certificates(tmp_path)
    (tmp_path / "tls.crt").write_bytes(TWO.chain)
    server.refresh(NOW)
    assert chain(server) == ONE.chain
    (tmp_path / "tls.key").write_bytes(TWO.key)
    server.refresh(NOW)
    assert chain(server) == TWO.chain
    assert names(caplog) == ["tls_reload_failed", "tls_reloaded"]


def test_certificate_that_expires_soon_is_told_at_load_and_once_a_day(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    soon = CA.server(days=3.5)
    server = Certificates(Settings(**write(tmp_path, soon)))
    ((event, fields),) = events(caplog)
    assert event == "tls_certificate_expires"
    assert fields["days_left"] == 3
    assert fields["not_after"] == soon.certificate.not_valid_after_utc.isoformat()
    assert fields["path"] == str(tmp_path / "tls.crt")
    now = datetime.now(UTC)
    for hours in (1, 23, 25, 26, 48, 50):
        server.refresh(now + timedelta(hours=hours))
    assert [fields["days_left"] for _, fields in events(caplog)] == [3, 2, 1]


def test_certificate_is_told_of_from_two_weeks_before_its_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = Certificates(Settings(**write(tmp_path, CA.server(days=20))))
    server.refresh(NOW + timedelta(days=5))
    assert events(caplog) == []
    server.refresh(NOW + timedelta(days=6, hours=6))
    assert names(caplog) == ["tls_certificate_expires"]


def test_certificate_that_is_put_in_place_and_expires_soon_is_told_of_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = Certificates(Settings(**write(tmp_path, CA.server(days=5))))
    write(tmp_path, CA.server(days=-1))
    server.refresh(datetime.now(UTC))
    assert names(caplog) == [
        "tls_certificate_expires",
        "tls_reloaded",
        "tls_certificate_expires",
    ]
    assert events(caplog)[-1][1]["days_left"] < 0
    assert {record.levelno for record in caplog.records[::2]} == {logging.WARNING}


def test_key_is_not_shown_by_repr(tmp_path: Path) -> None:
    server = certificates(tmp_path)
    secret = ONE.key.splitlines()[1].decode()
    assert secret not in f"{server!r} {server._pair!r} {vars(server)}"


def test_call_is_in_plaintext_where_no_ca_is_set_or_a_unix_socket_is_called(
    tmp_path: Path,
) -> None:
    ca = tmp_path / "ca.crt"
    ca.write_bytes(CA.pem)
    pair = write(tmp_path, ONE)
    assert tls.channel_credentials(Settings(**pair), "127.0.0.1:1") is None
    settings = Settings(tls_ca=str(ca), **pair)
    assert tls.channel_credentials(settings, "unix:/run/trunkline") is None
    assert tls.channel_credentials(settings, "127.0.0.1:1") is not None


@pytest.mark.parametrize(
    ("contents", "spoil", "says"),
    [
        (None, None, "TRUNKLINE_TLS_CA: {}/ca.crt can't be read: No such file or directory"),
        (b"", None, "TRUNKLINE_TLS_CA: {}/ca.crt has no certificates that can be read"),
        (CA.pem, _no_key, "TRUNKLINE_TLS_KEY: {}/tls.key has no private key that can be read"),
        (CA.pem, _gone, "TRUNKLINE_TLS_CERT: {}/tls.crt can't be read: No such file or directory"),
    ],
)
def test_files_of_a_client_that_can_not_be_used_are_named(
    tmp_path: Path, contents: bytes | None, spoil: Callable[[Path], None] | None, says: str
) -> None:
    settings = Settings(tls_ca=str(tmp_path / "ca.crt"), **write(tmp_path, ONE))
    if contents is not None:
        (tmp_path / "ca.crt").write_bytes(contents)
    if spoil is not None:
        spoil(tmp_path)
    with pytest.raises(SettingsError) as error:
        tls.channel_credentials(settings, "127.0.0.1:1")
    assert str(error.value) == says.format(tmp_path)


@pytest.mark.parametrize(
    ("alternatives", "common", "name"),
    [
        ([], [], None),
        ([], [b"dialler"], "dialler"),
        ([b"dialler.example"], [b"dialler"], "dialler.example"),
        ([b"a.example", b"spiffe://example/b"], [], "a.example,spiffe://example/b"),
        ([b"%d.example" % n for n in range(9)], [], "0.example,1.example,2.example,3.example"),
        ([b"\xff"], [], "\ufffd"),
        ([b"x" * 5000], [], "x" * tls.CLIENT_NAME_CHARACTERS_MAX),
    ],
)
def test_client_is_known_by_its_alternative_names_or_its_common_name(
    alternatives: list[bytes], common: list[bytes], name: str | None
) -> None:
    identity = {"x509_subject_alternative_name": alternatives, "x509_common_name": common}
    assert tls.client_name({k: v for k, v in identity.items() if v}) == name

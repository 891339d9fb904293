import hashlib
import hmac

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import password
from trunkline.sealing import KEY_BYTES, KeyRing, SealError

KEYS = {name: name.encode().ljust(KEY_BYTES, b"-") for name in ("k1", "k2")}
RING = KeyRing({"k1": KEYS["k1"]})
CONTEXT = ("default", "01ABC", "auth_password")


def test_sealed_secret_opens_again() -> None:
    secret = password()
    assert RING.open(RING.seal(secret, *CONTEXT), "k1", *CONTEXT) == secret


def test_sealed_secret_does_not_show_the_secret() -> None:
    secret = password()
    assert secret.encode() not in RING.seal(secret, *CONTEXT)


def test_secret_is_sealed_anew_each_time() -> None:
    secret = password()
    assert len({RING.seal(secret, *CONTEXT) for _ in range(100)}) == 100


def test_newest_key_seals_and_older_ones_open() -> None:
    secret = password()
    ring = KeyRing({"k2": KEYS["k2"], "k1": KEYS["k1"]})
    assert ring.newest == "k2"
    assert ring.key_ids == ("k2", "k1")
    assert ring.open(RING.seal(secret, *CONTEXT), "k1", *CONTEXT) == secret
    sealed = ring.seal(secret, *CONTEXT)
    assert ring.open(sealed, "k2", *CONTEXT) == secret
    with pytest.raises(SealError):
        ring.open(sealed, "k1", *CONTEXT)


def test_other_key_of_the_same_id_does_not_open() -> None:
    secret = password()
    other = KeyRing({"k1": KEYS["k2"]})
    with pytest.raises(SealError) as error:
        other.open(RING.seal(secret, *CONTEXT), "k1", *CONTEXT)
    assert str(error.value) == "key k1 does not open it"


def test_key_that_is_not_in_the_ring_is_named() -> None:
    with pytest.raises(SealError, match="no key k9 in the ring"):
        RING.open(RING.seal(password(), *CONTEXT), "k9", *CONTEXT)


@pytest.mark.parametrize(
    "context",
    [
        ("acme", "01ABC", "auth_password"),
        ("default", "01ABD", "auth_password"),
        ("default", "01ABC", "auth_username"),
        ("default", "01ABC"),
        ("default", "01ABC", "auth_password", ""),
        ("default01ABC", "", "auth_password"),
        ("defaul", "t01ABC", "auth_password"),
        (),
    ],
)
def test_secret_does_not_open_in_another_context(context: tuple[str, ...]) -> None:
    sealed = RING.seal(password(), *CONTEXT)
    with pytest.raises(SealError):
        RING.open(sealed, "k1", *context)


def test_secret_that_was_tampered_with_anywhere_does_not_open() -> None:
    sealed = RING.seal(password(), *CONTEXT)
    for position in range(len(sealed)):
        changed = bytearray(sealed)
        changed[position] ^= 1
        with pytest.raises(SealError):
            RING.open(bytes(changed), "k1", *CONTEXT)


def test_secret_that_was_cut_short_or_lengthened_does_not_open() -> None:
    sealed = RING.seal(password(), *CONTEXT)
    for length in range(len(sealed)):
        with pytest.raises(SealError):
            RING.open(sealed[:length], "k1", *CONTEXT)
    with pytest.raises(SealError):
        RING.open(sealed + b"\0", "k1", *CONTEXT)


def test_ring_does_not_show_its_keys() -> None:
    assert not any(key.decode() in repr(RING) for key in KEYS.values())


@settings(database=None, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=256))
def test_any_text_can_be_sealed(secret: str) -> None:
    assert RING.open(RING.seal(secret, *CONTEXT), "k1", *CONTEXT) == secret


@settings(database=None, deadline=None)
@given(st.lists(st.text("ab", max_size=3), max_size=4), st.lists(st.text("ab", max_size=3)))
def test_contexts_are_told_apart_by_their_parts(one: list[str], other: list[str]) -> None:
    sealed = RING.seal("", *one)
    if one == other:
        assert RING.open(sealed, "k1", *other) == ""
    else:
        with pytest.raises(SealError):
            RING.open(sealed, "k1", *other)


def test_fingerprint_tells_equal_contents_from_others_and_needs_the_key() -> None:
    secret = password().encode()
    ring = KeyRing({"k2": KEYS["k2"], "k1": KEYS["k1"]})
    printed = ring.fingerprint(secret)
    assert printed == ring.fingerprint(secret, "k2") == KeyRing(KEYS).fingerprint(secret, "k2")
    assert printed != ring.fingerprint(secret + b"x")
    assert printed != ring.fingerprint(secret, "k1")
    assert ring.fingerprint(secret, "k3") is None
    assert printed is not None
    assert secret not in printed


def test_fingerprint_is_of_no_key_that_seals() -> None:
    assert RING.fingerprint(b"x") != hmac.digest(KEYS["k1"], b"x", hashlib.sha256)

"""Secret keys as they are given: read, or refused without being shown."""

import base64
from pathlib import Path

import pytest

from trunkline import keys
from trunkline.config import Settings, SettingsError

KEY = base64.b64encode(b"k" * 32).decode()
OTHER_KEY = base64.b64encode(b"o" * 32).decode()


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", []),
        (" \n ", []),
        (f"k1:{KEY}", ["k1"]),
        (f" k1:{KEY} ,", ["k1"]),
        (f"k2:{OTHER_KEY},k1:{KEY}", ["k2", "k1"]),
        (f"k2:{OTHER_KEY}\nk1:{KEY}\n", ["k2", "k1"]),
        (f"# newest first\r\n2026-01.a_b:{KEY}\r\n", ["2026-01.a_b"]),
    ],
)
def test_keys_are_read_newest_first(text: str, ids: list[str]) -> None:
    assert list(keys.parsed(text)) == ids


def test_key_is_the_bytes_that_its_base64_says() -> None:
    assert keys.parsed(f"k1:{KEY}") == {"k1": b"k" * 32}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (KEY.rstrip("="), "entry 1 is not id:base64"),
        ("k1:", "entry 1 is not id:base64"),
        (f":{KEY}", "entry 1 is not id:base64"),
        (f"k1:{KEY},{OTHER_KEY}", "entry 2 is not id:base64"),
        (f"bad id:{KEY}", "entry 1 is not id:base64"),
        (f"{'k' * 33}:{KEY}", "entry 1 is not id:base64"),
        (f"k1:{KEY[:-5]}", "the key k1 is not the base64 of 32 bytes"),
        (f"k1:{base64.b64encode(b'k' * 31).decode()}", "the key k1 is not the base64 of 32 bytes"),
        (f"k1:{base64.b64encode(b'k' * 33).decode()}", "the key k1 is not the base64 of 32 bytes"),
        (f"k1:{KEY[:20]}!{KEY[20:]}", "the key k1 is not the base64 of 32 bytes"),
        ("k1:\u00fc" + KEY, "the key k1 is not the base64 of 32 bytes"),
        (f"k1:{KEY},k1:{OTHER_KEY}", "the key k1 is there twice"),
    ],
)
def test_keys_that_can_not_be_read_are_refused_without_being_shown(text: str, says: str) -> None:
    with pytest.raises(SettingsError) as error:
        keys.parsed(text)
    assert str(error.value) == f"TRUNKLINE_SECRET_KEYS: {says}"


def test_keys_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"k1:{KEY}\n")
    assert keys.given(Settings(secret_keys_file=str(path))) == {"k1": b"k" * 32}


@pytest.mark.parametrize("contents", [None, b"\xff\xfe"])
def test_key_file_that_can_not_be_read_is_named(tmp_path: Path, contents: bytes | None) -> None:
    path = tmp_path / "keys"
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(SettingsError) as error:
        keys.given(Settings(secret_keys_file=str(path)))
    assert str(error.value) == f"{path} can't be read as a file of secret keys"

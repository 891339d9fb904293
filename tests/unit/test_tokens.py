import hashlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trunkline import tokens

FORM = re.compile(r"tl_([0-9A-Za-z]{12})_([0-9A-Za-z]{43})_([0-9A-Za-z]{6})", re.ASCII)


def test_minted_token_has_an_id_256_random_bits_and_a_checksum() -> None:
    minted = tokens.mint()
    match = FORM.fullmatch(minted.text)
    assert match
    assert match[1] == minted.token_id
    assert 62 ** len(match[2]) > 2**256


def test_minted_tokens_are_all_different() -> None:
    minted = [tokens.mint() for _ in range(100)]
    assert len({m.token_id for m in minted}) == 100
    assert len({m.text.split("_")[2] for m in minted}) == 100


def test_minted_token_is_not_shown_by_repr() -> None:
    minted = tokens.mint()
    shown = f"{minted!r} {minted} {[minted]}"
    assert minted.token_id in shown
    assert minted.text.split("_")[2] not in shown


def test_minted_token_fits_the_bounds() -> None:
    text = tokens.mint().text
    assert tokens.BOOTSTRAP_CHARACTERS_MIN <= len(text) <= tokens.TOKEN_CHARACTERS_MAX


def test_id_of_a_minted_token_is_read_from_it() -> None:
    minted = tokens.mint()
    assert tokens.token_id(minted.text) == minted.token_id


def test_token_with_any_character_changed_has_no_id() -> None:
    text = tokens.mint().text
    for position, character in enumerate(text):
        changed = "0" if character != "0" else "1"
        assert tokens.token_id(text[:position] + changed + text[position + 1 :]) is None


def test_token_with_neighbours_exchanged_has_no_id() -> None:
    text = tokens.mint().text
    for position in range(len(text) - 1):
        one, other = text[position], text[position + 1]
        if one != other:
            changed = text[:position] + other + one + text[position + 2 :]
            assert tokens.token_id(changed) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "_",
        "___",
        "tl_",
        "tl___",
        "tl_abc",
        "tl_0123456789ab",
        "tl_0123456789ab_secret",
        "tl_0123456789ab_secret_000000",
        "Bearer tl_0123456789ab_secret_000000",
        "test-only-bootstrap-token-0123456789abcdef",
        "tl_\u0660\u0661\u0662\u0663\u0664\u0665\u0666\u0667\u0668\u0669ab_secret_000000",
    ],
)
def test_text_that_is_no_minted_token_has_no_id(text: str) -> None:
    assert tokens.token_id(text) is None


@pytest.mark.parametrize("extra", [" ", "\n", "x", "_"])
def test_minted_token_with_something_around_it_has_no_id(extra: str) -> None:
    text = tokens.mint().text
    assert tokens.token_id(text + extra) is None
    assert tokens.token_id(extra + text) is None


@settings(database=None, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=300))
def test_any_text_is_read_without_an_error(text: str) -> None:
    assert tokens.token_id(text) is None
    assert tokens.token_id(f"tl_{text}") is None


def test_digest_is_the_sha256_of_the_text() -> None:
    text = tokens.mint().text
    assert tokens.digest(text) == hashlib.sha256(text.encode()).digest()

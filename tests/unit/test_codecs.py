import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trunkline.codecs import TOKENS_MAX, Catalogue, CodecError
from trunkline.config import Settings

CATALOGUE = Catalogue(Settings().codec_names())
SMALL = Catalogue(["ulaw", "alaw", "g722"])
TOKENS = st.sampled_from(
    [
        "ulaw",
        "ALAW",
        " g722",
        "opus",
        "!ulaw",
        "!alaw",
        "all",
        "All",
        "ulaw:20",
        "g722:300",
        "gsm:9",
    ]
)
LISTS = st.lists(TOKENS, min_size=1, max_size=8).map(",".join)


def normal(text: str, *, removal: bool = False) -> str | None:
    try:
        return CATALOGUE.normal(text, removal=removal)
    except CodecError:
        return None


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("ulaw,alaw", "ulaw,alaw"),
        ("ULAW, Alaw", "ulaw,alaw"),
        ("ulaw:20,alaw:300", "ulaw:20,alaw:300"),
        ("all,!g729", "all,!g729"),
        ("opus", "opus"),
    ],
)
def test_list_is_stored_in_lower_case_without_blanks(sent: str, stored: str) -> None:
    assert CATALOGUE.normal(sent, removal=False) == stored


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        ("PCMU", 'use "ulaw"'),
        ("pcma", 'use "alaw"'),
        ("ulaw,alow", 'names "alow", which is not a known codec; use "alaw"'),
        ("h264", 'names "h264", which is not a known codec'),
        ("", "where a codec name"),
        ("ulaw,", "where a codec name"),
        (",ulaw", "where a codec name"),
        ("ulaw alaw", "where a codec name"),
        ("ulaw;alaw", "where a codec name"),
        ("!!ulaw", "where a codec name"),
        ("ulaw:", "where a codec name"),
        ("ulaw:-20", "where a codec name"),
        ("ul\u00e4w", "where a codec name"),
        ("ulaw:9", "10 to 300 ms"),
        ("ulaw:301", "10 to 300 ms"),
        ("ulaw:0", "10 to 300 ms"),
        ("ulaw,!alaw:20", "10 to 300 ms"),
        ("all:20", "not a known codec"),
        ("!ulaw", "leaves no codec"),
        ("ulaw,!ulaw", "leaves no codec"),
        (",".join(["ulaw"] * (TOKENS_MAX + 1)), f"at most {TOKENS_MAX}"),
    ],
)
def test_list_that_can_not_be_read_is_refused_saying_why(sent: str, why: str) -> None:
    with pytest.raises(CodecError) as error:
        CATALOGUE.normal(sent, removal=False)
    assert why in str(error.value)


def test_removal_may_leave_nothing() -> None:
    assert CATALOGUE.normal("!ulaw", removal=True) == "!ulaw"


@pytest.mark.parametrize(
    ("allow", "disallow", "offer"),
    [
        ("ulaw,alaw", "all", ("ulaw", "alaw")),
        ("alaw,ulaw", "all", ("alaw", "ulaw")),
        ("ulaw,alaw", "ulaw", ("alaw",)),
        ("ulaw:20,alaw", "alaw", ("ulaw:20",)),
        ("ulaw:20", "ulaw:30", ()),
        ("all", "all", ("ulaw", "alaw", "g722")),
        ("all,!alaw", "all", ("ulaw", "g722")),
        ("g722,all", "all", ("g722", "ulaw", "alaw")),
        ("ulaw,!ulaw,alaw", "all", ("alaw",)),
        ("!ulaw,ulaw", "all", ("ulaw",)),
        ("ulaw,ulaw:20", "all", ("ulaw:20",)),
        ("ulaw,alaw", "all,!alaw", ("alaw",)),
        ("ulaw,alaw", "ulaw,alaw", ()),
        ("ulaw", "!ulaw", ("ulaw",)),
    ],
)
def test_offer_is_what_allow_leaves_less_disallow(
    allow: str, disallow: str, offer: tuple[str, ...]
) -> None:
    assert SMALL.offer(allow, disallow) == offer


@settings(database=None, deadline=None)
@given(LISTS, st.booleans())
def test_normal_form_is_its_own_normal_form(sent: str, removal: bool) -> None:  # noqa: FBT001
    stored = normal(sent, removal=removal)
    if stored is not None:
        assert normal(stored, removal=removal) == stored


@settings(database=None, deadline=None)
@given(LISTS, LISTS)
def test_offer_is_a_subset_of_allow_in_its_order_with_nothing_of_disallow(
    allow: str, disallow: str
) -> None:
    kept, removed = normal(allow), normal(disallow, removal=True)
    if kept is None or removed is None:
        return
    offer = CATALOGUE.offer(kept, removed)
    allowed = list(CATALOGUE.walk(kept).values())
    assert [token for token in allowed if token in offer] == list(offer)
    names = {token.partition(":")[0] for token in offer}
    assert len(names) == len(offer)
    assert names <= set(CATALOGUE.names)
    assert not names & set(CATALOGUE.removed(removed))


@settings(database=None, deadline=None)
@given(LISTS)
def test_disallow_all_changes_nothing(allow: str) -> None:
    kept = normal(allow)
    if kept is not None:
        assert CATALOGUE.offer(kept, "all") == tuple(CATALOGUE.walk(kept).values())


@settings(database=None, deadline=None)
@given(st.text(max_size=600))
def test_any_text_is_a_codec_list_or_a_codec_error(text: str) -> None:
    normal(text)
    normal(text, removal=True)

import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trunkline.ulids import Ulids

MILLISECOND = 1_000_000
FORM = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}", re.ASCII)
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def clock(times: list[int]) -> Callable[[], int]:
    remaining = iter(times)
    return lambda: next(remaining) * MILLISECOND


def milliseconds(ulid: str) -> int:
    value = 0
    for character in ulid[:10]:
        value = value * 32 + ALPHABET.index(character)
    return value


def test_identifier_is_a_ulid_that_the_api_takes_as_an_id() -> None:
    ulid = Ulids().new()
    assert FORM.fullmatch(ulid)
    assert re.fullmatch(r"[!-~]{1,64}", ulid)


@pytest.mark.parametrize("time", [0, 1, 1_469_918_176_385, 2**48 - 1])
def test_identifier_begins_with_the_time(time: int) -> None:
    assert milliseconds(Ulids(clock([time])).new()) == time or time == 0


def test_known_time_is_written_as_the_specification_writes_it() -> None:
    assert Ulids(clock([1_469_918_176_385])).new()[:10] == "01ARYZ6S41"


def test_sources_at_one_moment_give_different_identifiers() -> None:
    assert len({Ulids(clock([5])).new() for _ in range(100)}) == 100


def test_identifiers_of_a_millisecond_rise() -> None:
    source = Ulids(clock([1_469_918_176_385] * 1000))
    made = [source.new() for _ in range(1000)]
    assert made == sorted(set(made))
    assert {milliseconds(ulid) for ulid in made} == {1_469_918_176_385}


@settings(database=None, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=2, max_size=50))
def test_identifiers_rise_even_where_the_clock_goes_back(times: list[int]) -> None:
    source = Ulids(clock(times))
    made = [source.new() for _ in times]
    assert made == sorted(set(made))
    assert all(FORM.fullmatch(ulid) for ulid in made)


def test_identifier_after_a_later_millisecond_has_that_time() -> None:
    source = Ulids(clock([10, 20]))
    assert [milliseconds(source.new()) for _ in range(2)] == [10, 20]

import json
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.support import ip_based
from trunkline import events
from trunkline.events import Event, Place
from trunkline.feed import Track

EPOCH = bytes(range(8))
NOW = datetime(2026, 1, 2, 3, 4, 5, 600700, UTC)


def event(position: int, account_id: str = "ours", **row: Any) -> Event:
    """A change of a trunk named after its place."""
    known = {
        "position": position,
        "account_id": account_id,
        "trunk_id": "t",
        "revision": position,
        "changed_at": NOW,
        "numbered_at": NOW,
        "method": "UpdateSipTrunk",
        "changed": ["name"],
        "trunk": json.dumps({"name": f"Trunk {position}"}),
        "numbers": None,
        "deleted": False,
    }
    return Event(known | row, EPOCH, lambda text: ip_based(name=json.loads(text)["name"]))


@pytest.mark.parametrize("count", [0, 1, 2, 300])
def test_response_of_events_is_the_message_that_it_stands_for(count: int) -> None:
    made = [event(position) for position in range(1, count + 1)]
    token = events.token(EPOCH, Place(count, 7))
    found = pb.WatchSipTrunksResponse.FromString(events.response(made, token))
    assert found == pb.WatchSipTrunksResponse(
        events=[one.message() for one in made], resume_token=token
    )


def test_event_that_is_long_has_a_long_length() -> None:
    long = event(1, trunk=json.dumps({"name": "x" * 100_000}))
    found = pb.WatchSipTrunksResponse.FromString(events.response([long, event(2)], ""))
    assert [len(e.sip_trunk.name) for e in found.events] == [100_000, len("Trunk 2")]


def test_token_is_read_back_and_nothing_else_is_one() -> None:
    rng = random.Random(0)
    for position in (0, 1, 255, 1 << 40, (1 << 63) - 1):
        text = events.token(EPOCH, Place(position, 0xFFFFFFFF))
        assert events.parse_token(text) == (EPOCH, Place(position, 0xFFFFFFFF))
        for place in range(len(text)):
            other = text[:place] + rng.choice("AZaz09-_") + text[place + 1 :]
            try:
                epoch, found = events.parse_token(other)
            except ValueError:
                continue
            assert (events.token(epoch, found) == text) == (other == text)
        for bad in (text[:-1], text + "A", text + "=", " " + text, text + "\n"):
            with pytest.raises(ValueError, match="not a token"):
                events.parse_token(bad)
    for bad in ("", "nope", "ü" * 27, "!" * 27):
        with pytest.raises(ValueError, match="not a token"):
            events.parse_token(bad)


def test_place_of_an_event_tells_it_from_another_at_the_same_position() -> None:
    place = event(5).place
    assert place == event(5).place
    later = NOW + timedelta(microseconds=1)
    for other in (
        event(5, numbered_at=later),
        event(5, trunk_id="u"),
        event(5, revision=6),
        event(5, "theirs"),
    ):
        assert other.place.position == place.position
        assert other.place.check != place.check


def test_event_matches_where_the_trunk_does_or_did() -> None:
    kept, flipped = event(1), event(2, changed=["is_active"])
    assert kept.matches(is_active=None)
    assert not kept.matches(is_active=True)  # absent is false
    assert kept.matches(is_active=False)
    assert flipped.matches(is_active=True)
    assert flipped.matches(is_active=False)


def test_track_gives_what_comes_after_a_position_a_response_at_a_time() -> None:
    track = Track(10)
    for position in range(11, 211):
        track.add(event(position))
    seen, position = list[int](), 10
    while found := track.after(position):
        assert len(found) <= 64
        seen += [e.position for e in found]
        position = seen[-1]
    assert seen == list(range(11, 211))
    assert next(e.position for e in track.after(150)) == 151
    assert track.after(210) == track.after(999) == []


def test_track_ends_a_response_early_where_it_would_be_long() -> None:
    track = Track(0)
    for position in range(1, 6):
        track.add(event(position, trunk=json.dumps({"name": "x" * 150_000})))
    assert [e.position for e in track.after(0)] == [1]
    assert [e.position for e in track.after(3)] == [4]


def test_track_that_lets_go_says_up_to_where() -> None:
    track = Track(0)
    for position in (3, 7):
        track.add(event(position))
    assert track.drop_oldest().position == 3
    assert track.floor == 3
    assert [e.position for e in track.after(3)] == [7]

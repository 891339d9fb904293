"""Several at once: updates of trunks, numbers that come, go and move."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.http.clients import shared
from tests.http.trunks import ABSENT, TRUNKS, created, problem, read, userpass

BATCH = f"{TRUNKS}:batchUpdate"
BATCH_MAX = 100
_digits = iter(range(15551000, 15559999))


@pytest.fixture(scope="module")
async def http(postgres: str, template: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the module's gateway; each test minds its own trunks."""
    async with shared(postgres, template) as made:
        yield made


def numbers(count: int) -> list[dict[str, Any]]:
    return [{"phone_number": f"+{next(_digits)}"} for _ in range(count)]


async def batch(http: httpx.AsyncClient, *requests: Any, **headers: str) -> httpx.Response:
    return await http.post(BATCH, json={"requests": requests}, headers=headers)


async def test_updates_are_done_each_by_its_own_keys(http: httpx.AsyncClient) -> None:
    first, second, third = [await created(http, userpass(description="d")) for _ in range(3)]
    response = await batch(
        http,
        {"id": second["id"], "description": None, "transport": "transport-tls"},
        {"id": first["id"], "qualify_frequency": 1, "etag": first["etag"]},
        {"id": third["id"]},
    )
    assert response.status_code == 200, response.text
    shown = response.json()
    assert [t["id"] for t in shown] == [second["id"], first["id"], third["id"]]
    moved = ("etag", "updated_at")
    for before, after, fields in (
        (second, shown[0], {"description": None, "transport": "transport-tls"}),
        (first, shown[1], {"qualify_frequency": 1}),
    ):
        port = {"gateways": [before["gateways"][0] | {"port": after["gateways"][0]["port"]}]}
        kept = {k: v for k, v in (before | fields | port).items() if k not in moved}
        assert {k: v for k, v in after.items() if k not in moved} == kept
    assert shown[2] == third
    assert shown == [await read(http, t["id"]) for t in shown]


async def test_trunks_sent_back_as_they_were_read_change_nothing(http: httpx.AsyncClient) -> None:
    trunks = [await created(http, userpass(phone_numbers=numbers(2))) for _ in range(3)]
    for headers in ({}, {"Idempotency-Key": "echo"}):
        response = await batch(http, *trunks, **headers)
        assert (response.status_code, response.json()) == (200, trunks)


async def test_one_that_is_wrong_stops_all_and_every_violation_has_its_path(
    http: httpx.AsyncClient,
) -> None:
    trunks = [await created(http, userpass(phone_numbers=numbers(1))) for _ in range(3)]
    ids = [t["id"] for t in trunks]
    gateways = [{"gateway_address": "b.example", "port": 0}]
    found = problem(
        await batch(
            http,
            {"id": ids[0], "is_active": False},
            {"id": ids[1], "gateways": gateways, "media_encryption": "sdes"},
            {"id": ids[2], "transport": "neither", "provider": "other"},
        )
    )
    assert found.status == 400
    assert sorted(found.violations) == [
        ("requests[1].gateways[0].port", "OUT_OF_RANGE"),
        ("requests[1].media_encryption", "SDES_NEEDS_TLS"),
        ("requests[2].provider", "IMMUTABLE"),
        ("requests[2].transport", "UNKNOWN_VALUE"),
    ]
    sdes = problem(await batch(http, {"id": ids[0], "media_encryption": "sdes"}))
    assert sdes.status == 422
    assert sdes.violations == [("requests[0].media_encryption", "SDES_NEEDS_TLS")]
    assert [await read(http, one) for one in ids] == trunks


@pytest.mark.parametrize(
    ("item", "violations"),
    [
        ({}, [("requests[1].id", "REQUIRED")]),
        ({"id": None}, [("requests[1].id", "REQUIRED")]),
        ({"id": 5}, [("requests[1].id", "WRONG_TYPE")]),
        ({"id": "two words"}, [("requests[1].id", "INVALID_FORM")]),
        ({"id": "{id}"}, [("requests[1].id", "DUPLICATE")]),
        ({"id": ABSENT, "nope": 1}, [("requests[1].nope", "UNKNOWN_FIELD")]),
        ({"id": ABSENT, "gateways": [5]}, [("requests[1].gateways[0]", "WRONG_TYPE")]),
        ({"id": ABSENT, "request_id": "x"}, [("requests[1].request_id", "UNKNOWN_FIELD")]),
        ("x", [("requests[1]", "WRONG_TYPE")]),
    ],
    ids=str,
)
async def test_a_request_of_a_batch_that_is_wrong_is_400_by_its_path(
    http: httpx.AsyncClient, item: Any, violations: list[tuple[str, str]]
) -> None:
    trunk = await created(http)
    if isinstance(item, dict) and item.get("id") == "{id}":
        item = {"id": trunk["id"]}
    found = problem(await batch(http, {"id": trunk["id"], "is_active": False}, item))
    assert (found.status, found.violations) == (400, violations)
    assert await read(http, trunk["id"]) == trunk


@pytest.mark.parametrize(
    ("body", "violations"),
    [
        ({}, [("requests", "REQUIRED")]),
        ({"requests": []}, [("requests", "REQUIRED")]),
        ({"requests": {}}, [("requests", "WRONG_TYPE")]),
        ({"requests": [{"id": "x"}] * (BATCH_MAX + 1)}, [("requests", "TOO_MANY")]),
        ({"trunks": []}, [("trunks", "UNKNOWN_FIELD")]),
    ],
    ids=["none", "empty", "an object", "too many", "another key"],
)
async def test_a_batch_that_is_wrong_is_400(
    http: httpx.AsyncClient, body: Any, violations: list[tuple[str, str]]
) -> None:
    found = problem(await http.post(BATCH, json=body))
    assert (found.status, found.violations) == (400, violations)


async def test_a_batch_tells_which_is_stale_taken_or_not_there(http: httpx.AsyncClient) -> None:
    one, other = await created(http), await created(http)
    stale = problem(await batch(http, {"id": one["id"]}, {"id": other["id"], "etag": '"0-0"'}))
    assert (stale.status, stale.reason) == (409, "ETAG_MISMATCH")
    taken = problem(await batch(http, {"id": one["id"], "name": other["name"]}))
    assert (taken.status, taken.reason) == (409, "NAME_TAKEN")
    absent = problem(await batch(http, {"id": one["id"]}, {"id": ABSENT}))
    assert (absent.status, absent.reason) == (404, "TRUNK_NOT_FOUND")
    for found, place in ((stale, 1), (taken, 0), (absent, 1)):
        assert f"requests[{place}]" in found.message
    headers = {"If-Match": one["etag"]}
    assert problem(await batch(http, {"id": one["id"]}, **headers)).status == 412
    assert (await batch(http, {"id": one["id"]}, **{"If-Match": "*"})).status_code == 200


async def test_numbers_are_added_moved_and_removed_together(http: httpx.AsyncClient) -> None:
    one, other = await created(http), await created(http)
    here, there = [f"{TRUNKS}/{t['id']}/numbers" for t in (one, other)]
    sent = [n | {"name": f"n{i}"} for i, n in enumerate(numbers(5))]
    made = (await http.post(f"{here}:batchCreate", json={"phone_numbers": sent})).json()
    assert [(n["phone_number"], n["name"]) for n in made] == [
        (n["phone_number"], n["name"]) for n in sent
    ]
    assert (await http.get(here)).json() == made
    ids = [n["id"] for n in made]
    body = {"target_trunk_id": other["id"], "ids": ids[3:1:-1]}
    moved = (await http.post(f"{here}:move", json=body)).json()
    assert [n["id"] for n in moved] == ids[2:4]
    assert {n["byot_trunk_id"] for n in moved} == {other["id"]}
    assert (await http.get(there)).json() == moved
    assert (await http.get(here)).json() == [made[0], made[1], made[4]]
    gone = await http.post(f"{here}:batchDelete", json={"ids": [ids[0], ids[4]]})
    assert gone.json() == {"message": "2 phone number(s) removed successfully"}
    assert (await http.get(here)).json() == [made[1]]


async def test_numbers_of_a_batch_are_refused_together(http: httpx.AsyncClient) -> None:
    one, other = await created(http, userpass(phone_numbers=numbers(2))), await created(http)
    url, ids = f"{TRUNKS}/{one['id']}/numbers", [n["id"] for n in one["phone_numbers"]]
    taken = {"phone_number": one["phone_numbers"][0]["phone_number"]}
    wrong = {"phone_numbers": [{"phone_number": "x"}]}
    inactive = {"phone_numbers": [{"phone_number": "+15550", "is_active": False}]}
    bad = {"phone_numbers": [*numbers(1), {"phone_number": "x"}, {"number": "1"}]}
    for path, body, status, fields in (
        ("batchCreate", {"phone_numbers": [*numbers(1), taken]}, 409, []),
        ("batchCreate", bad, 400, ["phone_numbers[2].number"]),
        ("batchCreate", wrong, 400, ["phone_numbers[0].phone_number"]),
        ("batchCreate", {"phone_numbers": numbers(1) * 2}, 400, ["phone_numbers[1]"]),
        ("batchCreate", {"phone_numbers": []}, 400, ["phone_numbers"]),
        ("batchCreate", inactive, 400, ["phone_numbers[0].is_active"]),
        ("batchDelete", {"ids": [ids[0], ABSENT]}, 404, []),
        ("batchDelete", {"ids": [ids[0], 5]}, 400, ["ids[1]"]),
        ("batchDelete", {"ids": [ids[0]] * 2}, 400, ["ids[1]"]),
        ("batchDelete", {"ids": ids, "force": True}, 400, ["force"]),
        ("move", {"ids": ids}, 400, ["target_trunk_id"]),
        ("move", {"ids": ids, "target_trunk_id": one["id"]}, 400, ["target_trunk_id"]),
        ("move", {"ids": ids, "target_trunk_id": ABSENT}, 404, []),
        ("move", {"ids": [ids[0], ABSENT], "target_trunk_id": other["id"]}, 404, []),
        ("move", {"ids": "x", "target_trunk_id": other["id"]}, 400, ["ids"]),
    ):
        response = await http.post(f"{url}:{path}", json=body)
        found = problem(response)
        assert (found.status, found.fields) == (status, fields), (path, body, response.text)
    assert await read(http, one["id"]) == one


@pytest.mark.parametrize("verb", ["batchCreate", "batchDelete", "move"])
async def test_if_match_holds_for_no_batch_of_numbers(http: httpx.AsyncClient, verb: str) -> None:
    trunk = await created(http)
    url = f"{TRUNKS}/{trunk['id']}/numbers:{verb}"
    body = {"phone_numbers": numbers(1)} if verb == "batchCreate" else {"ids": ["x"]}
    found = problem(await http.post(url, json=body, headers={"If-Match": trunk["etag"]}))
    assert (found.status, found.reason) == (412, "ETAG_MISMATCH")
    assert await read(http, trunk["id"]) == trunk

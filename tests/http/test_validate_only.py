"""`?validate_only=true`: checked and answered as without, and nothing is written."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.http.clients import shared
from tests.http.document import faults
from tests.http.trunks import ABSENT, TRUNKS, created, problem, read, userpass

TRY = {"validate_only": "true"}


@pytest.fixture(scope="module")
async def http(postgres: str, template: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the module's gateway; each test minds its own trunks."""
    async with shared(postgres, template) as made:
        yield made


async def tried(http: httpx.AsyncClient, method: str, path: str, body: Any = None) -> Any:
    """The reply to a request that writes nothing, and the list of trunks stays."""
    before = (await http.get(TRUNKS)).json()
    content: Any = {} if body is None else {"json": body}
    response = await http.request(method, path, params=TRY, **content)
    assert response.status_code == 200, response.text
    assert (await http.get(TRUNKS)).json() == before
    return response


async def test_a_create_is_shown_without_what_only_a_write_makes(http: httpx.AsyncClient) -> None:
    body = userpass(phone_numbers=[{"phone_number": "+15550100"}])
    response = await tried(http, "POST", TRUNKS, body)
    shown = response.json()
    assert "ETag" not in response.headers
    absent = ("id", "etag", "created_at", "updated_at", "auth_password_changed_at")
    assert [shown[name] for name in absent] == [None] * len(absent)
    assert (shown["phone_numbers"], shown["phone_number_count"]) == ([], 1)
    assert (shown["name"], shown["transport"]) == (body["name"], "transport-udp")
    assert faults("TrunkTrial", shown) == []
    assert (await http.post(TRUNKS, json=body)).status_code == 201


async def test_an_update_shows_the_trunk_as_it_would_be_and_what_would_change(
    http: httpx.AsyncClient,
) -> None:
    trunk = await created(http, userpass(phone_numbers=[{"phone_number": "+15550101"}]))
    url = f"{TRUNKS}/{trunk['id']}"
    body = {"qualify_frequency": 5, "transport": "transport-udp"}
    response = await tried(http, "PATCH", url, body)
    assert response.json() == trunk | {"qualify_frequency": 5, "etag": None, "updated_at": None}
    assert response.headers["X-Changed-Fields"] == "qualify_frequency"
    assert "ETag" not in response.headers
    assert faults("TrunkTrial", response.json()) == []
    same = await tried(http, "PATCH", url, {})
    assert (same.json(), same.headers["ETag"]) == (trunk, trunk["etag"])


async def test_edits_of_items_and_a_revert_are_tried(http: httpx.AsyncClient) -> None:
    trunk = await created(http)
    url = f"{TRUNKS}/{trunk['id']}"
    await http.patch(url, json={"description": "later"})
    gateways, addresses = [{"gateway_address": "b.example"}], [{"ip_address": "203.0.113.9"}]
    added = await tried(http, "POST", f"{url}/gateways", {"gateways": gateways})
    assert [g["gateway_address"] for g in added.json()["gateways"]] == [
        "sip.example.com",
        "b.example",
    ]
    named = await tried(http, "POST", f"{url}/ip-identifiers", {"ip_identifiers": addresses})
    assert named.json()["ip_identifiers"] == addresses
    back = await tried(http, "POST", f"{url}:revert", {"revision": 1})
    assert back.json()["description"] is None
    told = [response.headers["X-Changed-Fields"] for response in (added, named, back)]
    assert told == ["gateways", "ip_identifiers", "description"]
    for response in (added, named, back):
        assert "ETag" not in response.headers
        assert faults("TrunkTrial", response.json()) == []


async def test_changes_of_numbers_are_tried(http: httpx.AsyncClient) -> None:
    numbers = [{"phone_number": "+15550110"}, {"phone_number": "+15550111"}]
    trunk, other = await created(http, userpass(phone_numbers=numbers)), await created(http)
    url, ids = f"{TRUNKS}/{trunk['id']}/numbers", [n["id"] for n in trunk["phone_numbers"]]
    more = [{"phone_number": "+15550112"}, {"phone_number": "+15550113"}]
    one = await tried(http, "POST", url, more[0])
    several = await tried(http, "POST", f"{url}:batchCreate", {"phone_numbers": more})
    assert [n["phone_number"] for n in (one.json(), *several.json())] == [
        "+15550112",
        "+15550112",
        "+15550113",
    ]
    renamed = await tried(http, "PATCH", f"{url}/{ids[0]}", {"name": "x"})
    assert (renamed.json()["id"], renamed.json()["name"]) == (ids[0], "x")
    move = {"target_trunk_id": other["id"], "ids": ids}
    moved = await tried(http, "POST", f"{url}:move", move)
    assert {n["byot_trunk_id"] for n in moved.json()} == {other["id"]}
    for shown in (one.json(), *several.json(), renamed.json(), *moved.json()):
        assert shown["updated_at"] is None
        assert faults("NumberTrial", shown) == []
    gone = await tried(http, "POST", f"{url}:batchDelete", {"ids": ids})
    assert gone.json() == {"message": "Nothing was removed. 2 phone number(s) can be."}
    last = await tried(http, "DELETE", f"{url}/{ids[0]}")
    assert last.json() == {"message": "Nothing was removed. The phone number can be."}
    trunk_gone = await tried(http, "DELETE", f"{TRUNKS}/{trunk['id']}")
    assert trunk_gone.json() == {
        "message": "Nothing was deleted. The trunk can be, with 2 phone number(s)."
    }


async def test_several_updates_are_tried(http: httpx.AsyncClient) -> None:
    trunks = [await created(http) for _ in range(2)]
    requests = [{"id": t["id"], "qualify_frequency": 9} for t in trunks]
    response = await tried(http, "POST", f"{TRUNKS}:batchUpdate", {"requests": requests})
    would = {"qualify_frequency": 9, "etag": None, "updated_at": None}
    assert response.json() == [t | would for t in trunks]


async def test_what_is_refused_is_refused_when_tried(http: httpx.AsyncClient) -> None:
    trunk = await created(http)
    url = f"{TRUNKS}/{trunk['id']}"
    for method, path, body, status in (
        ("POST", TRUNKS, userpass(name=trunk["name"]), 409),
        ("PATCH", url, {"media_encryption": "sdes"}, 422),
        ("PATCH", url, {"qualify_frequency": -1}, 400),
        ("DELETE", f"{TRUNKS}/{ABSENT}", None, 404),
    ):
        content: Any = {} if body is None else {"json": body}
        assert problem(await http.request(method, path, params=TRY, **content)).status == status
    stale = await http.delete(url, params=TRY, headers={"If-Match": '"0-0"'})
    assert problem(stale).status == 412
    assert await read(http, trunk["id"]) == trunk


async def test_false_writes(http: httpx.AsyncClient) -> None:
    response = await http.post(TRUNKS, json=userpass(), params={"validate_only": "false"})
    assert response.status_code == 201


@pytest.mark.parametrize(
    ("query", "field", "reason"),
    [
        ("validate_only=1", "validate_only", "WRONG_TYPE"),
        ("validate_only=True", "validate_only", "WRONG_TYPE"),
        ("validate_only=", "validate_only", "WRONG_TYPE"),
        ("validate_only", "validate_only", "WRONG_TYPE"),
        ("validate_only=true&validate_only=false", "validate_only", "TWICE"),
        ("validateOnly=true", "validateOnly", "UNKNOWN_PARAMETER"),
        ("dry_run=true", "dry_run", "UNKNOWN_PARAMETER"),
        ("etag=x", "etag", "UNKNOWN_PARAMETER"),
        ("request_id=x", "request_id", "UNKNOWN_PARAMETER"),
    ],
)
async def test_a_change_with_a_parameter_that_it_does_not_know_is_refused(
    http: httpx.AsyncClient, query: str, field: str, reason: str
) -> None:
    """Else a misspelt trial would write."""
    trunk = await created(http)
    url = f"{TRUNKS}/{trunk['id']}"
    for method, path, body in (
        ("POST", TRUNKS, userpass()),
        ("PATCH", url, {"is_active": False}),
        ("DELETE", url, None),
        ("POST", f"{url}/numbers", {"phone_number": "+15550190"}),
        ("POST", f"{url}/gateways", {"gateways": [{"gateway_address": "b.example"}]}),
    ):
        content: Any = {} if body is None else {"json": body}
        found = problem(await http.request(method, f"{path}?{query}", **content))
        assert (found.status, found.violations) == (400, [(field, reason)])
    assert await read(http, trunk["id"]) == trunk

"""Revisions: who changed what, when, and what it was before."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.http.clients import shared
from tests.http.document import faults
from tests.http.trunks import ABSENT, TRUNKS, alone, created, ip_based, problem, userpass
from tests.support import password

KEYS = [
    "trunk_id", "revision", "changed_at", "token_id", "request_id", "method", "update_mask",
    "changed_fields", "trunk", "before", "phone_numbers", "deleted",
]  # fmt: skip
REVISIONS = 7


@pytest.fixture(scope="module")
async def http(postgres: str, template: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the module's gateway; each test minds its own trunks."""
    async with shared(postgres, template) as made:
        yield made


async def history(http: httpx.AsyncClient, trunk_id: str, **parameters: Any) -> Any:
    response = await http.get(f"{TRUNKS}/{trunk_id}/revisions", params=parameters)
    assert response.status_code == 200, response.text
    return response.json()


async def test_a_change_is_shown_with_what_was_before(http: httpx.AsyncClient) -> None:
    gateways = [{"gateway_address": "sip.example.com"}]
    trunk = await created(http, userpass(gateways=gateways))
    url = f"{TRUNKS}/{trunk['id']}"
    body = {
        "transport": "transport-tls",
        "description": "new",
        "gateways": [{"gateway_address": "b.example"}],
        "qualify_frequency": 60,
    }
    changed = await http.patch(url, json=body, headers={"Idempotency-Key": f"h-{trunk['id']}"})
    last, first = await history(http, trunk["id"])
    assert list(last) == list(first) == KEYS
    assert last["trunk"] == alone(changed.json())
    assert first["trunk"] == alone(trunk)
    assert last["before"] == {
        "description": None,
        "gateways": [trunk["gateways"][0] | {"port": 5060}],
        "transport": "transport-udp",
    }
    assert sorted(last["changed_fields"]) == sorted(last["before"])
    assert sorted(last["update_mask"]) == sorted(body)
    shown = {k: last[k] for k in ("trunk_id", "revision", "method", "request_id", "token_id")}
    assert shown == {
        "trunk_id": trunk["id"],
        "revision": 2,
        "method": "UpdateSipTrunk",
        "request_id": f"h-{trunk['id']}",
        "token_id": "bootstrap",
    }
    assert (last["deleted"], last["phone_numbers"]) == (False, None)
    assert last["changed_at"] == changed.json()["updated_at"]
    unknown = [first[k] for k in ("before", "request_id", "update_mask", "phone_numbers")]
    assert (first["revision"], first["method"], unknown) == (1, "CreateSipTrunk", [None] * 4)
    for revision in (first, last):
        assert faults("Revision", revision) == []
        one = await http.get(f"{url}/revisions/{revision['revision']}")
        assert one.json() == revision


async def test_a_secret_is_named_and_not_shown(http: httpx.AsyncClient) -> None:
    trunk = await created(http)
    await http.patch(f"{TRUNKS}/{trunk['id']}", json={"auth_password": password()})
    last, _ = await history(http, trunk["id"])
    assert last["changed_fields"] == ["auth_password"]
    assert "auth_password" not in last["trunk"]
    assert "auth_password" not in last["before"]
    assert last["before"] == {}


async def test_numbers_that_come_change_and_go_are_told(http: httpx.AsyncClient) -> None:
    numbers = [{"phone_number": "+15550120"}]
    trunk = await created(http, userpass(phone_numbers=numbers))
    url = f"{TRUNKS}/{trunk['id']}/numbers"
    number = trunk["phone_numbers"][0]
    renamed = (await http.patch(f"{url}/{number['id']}", json={"name": "x"})).json()
    await http.delete(f"{url}/{number['id']}")
    removed, changed, made = await history(http, trunk["id"])
    none: dict[str, Any] = {"added": [], "removed": [], "renamed": []}
    assert changed["phone_numbers"] == none | {"renamed": [renamed]}
    assert removed["phone_numbers"] == none | {"removed": [renamed]}
    assert made["phone_numbers"] == none | {"added": [number]}
    assert changed["changed_fields"] == removed["changed_fields"] == ["phone_numbers"]
    for revision in (removed, changed, made):
        assert faults("Revision", revision) == []


async def test_a_deleted_trunk_has_its_revisions_still(http: httpx.AsyncClient) -> None:
    trunk = await created(http, ip_based())
    assert (await http.delete(f"{TRUNKS}/{trunk['id']}")).status_code == 200
    last, first = await history(http, trunk["id"])
    assert (last["deleted"], first["deleted"]) == (True, False)
    assert last["method"] == "DeleteSipTrunk"
    keys = set(last["trunk"]) - {"etag", "updated_at"}
    assert {k: last["trunk"][k] for k in keys} == {k: alone(trunk)[k] for k in keys}
    assert faults("Revision", last) == []


async def test_revisions_are_listed_whole_and_page_by_page(http: httpx.AsyncClient) -> None:
    trunk = await created(http)
    for number in range(1, REVISIONS):
        await http.patch(f"{TRUNKS}/{trunk['id']}", json={"qualify_frequency": number})
    every = await history(http, trunk["id"])
    assert [r["revision"] for r in every] == list(range(REVISIONS, 0, -1))
    url, paged = f"{TRUNKS}/{trunk['id']}/revisions?page_size=3", []
    for expected in (3, 3, 1):
        response = await http.get(url)
        assert len(response.json()) == expected
        paged += response.json()
        url = response.links.get("next", {}).get("url", "")
    assert (url, paged) == ("", every)


@pytest.mark.parametrize("number", ["0", "-1", "x", "3", "01", "1.0", "1e0", "9" * 18, "9" * 40])
async def test_a_revision_that_is_not_there_is_404(http: httpx.AsyncClient, number: str) -> None:
    trunk = await created(http)
    found = problem(await http.get(f"{TRUNKS}/{trunk['id']}/revisions/{number}"))
    assert (found.status, found.reason) == (404, "REVISION_NOT_FOUND")


async def test_the_revisions_of_no_trunk_are_404(http: httpx.AsyncClient) -> None:
    for trunk_id in (ABSENT, "-", "x y"):
        for path, reason in (("", "TRUNK_NOT_FOUND"), ("/1", "REVISION_NOT_FOUND")):
            found = problem(await http.get(f"{TRUNKS}/{trunk_id}/revisions{path}"))
            assert (found.status, found.reason) == (404, reason)


@pytest.mark.parametrize("query", ["filter=x", "page_size=0", "order_by=id", "page_token=x"])
async def test_a_list_of_revisions_takes_its_own_parameters_alone(
    http: httpx.AsyncClient, query: str
) -> None:
    trunk = await created(http)
    found = problem(await http.get(f"{TRUNKS}/{trunk['id']}/revisions?{query}"))
    assert (found.status, found.fields) == (400, [query.partition("=")[0]])

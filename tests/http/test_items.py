"""Single gateways and addresses that come and go, and going back to a revision."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.http.clients import shared
from tests.http.trunks import ABSENT, TRUNKS, created, ip_based, problem, read, userpass

STALE = '"0-0"'


@pytest.fixture(scope="module")
async def http(postgres: str, template: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the module's gateway; each test minds its own trunks."""
    async with shared(postgres, template) as made:
        yield made


def places(trunk: dict[str, Any]) -> list[tuple[str, int, bool, int]]:
    keys = ("gateway_address", "port", "port_explicit", "priority")
    return [tuple(g[key] for key in keys) for g in trunk["gateways"]]


def addresses(trunk: dict[str, Any]) -> list[str]:
    return [i["ip_address"] for i in trunk["ip_identifiers"]]


async def done(http: httpx.AsyncClient, response: httpx.Response, changed: str) -> Any:
    """The trunk of a reply, which is what is stored."""
    assert response.status_code == 200, response.text
    assert response.headers["X-Changed-Fields"] == changed
    found = response.json()
    assert response.headers["ETag"] == found["etag"]
    assert await read(http, found["id"]) == found
    return found


async def test_gateways_come_and_go_without_touching_the_others(http: httpx.AsyncClient) -> None:
    trunk = await created(http)
    url = f"{TRUNKS}/{trunk['id']}/gateways"
    sent = [
        {"gateway_address": "b.example", "port": 5080, "priority": 2},
        {"gateway_address": "c.example", "port": 5060, "port_explicit": False, "priority": 3},
    ]
    added = await done(http, await http.post(url, json={"gateways": sent}), "gateways")
    assert places(added) == [
        ("sip.example.com", 5060, False, 1),
        ("b.example", 5080, True, 2),
        ("c.example", 5060, False, 3),
    ]
    assert added["gateways"][0] == trunk["gateways"][0]
    again = await done(http, await http.post(url, json={"gateways": added["gateways"]}), "")
    assert again == added
    ids = [g["id"] for g in added["gateways"]]
    query = {"gateway_ids": [ids[0], ids[2], ABSENT]}
    removed = await done(http, await http.delete(url, params=query), "gateways")
    assert removed["gateways"] == [added["gateways"][1]]
    last = problem(await http.delete(url, params={"gateway_ids": ids[1]}))
    assert (last.status, last.message) == (400, "At least one gateway is required")


async def test_addresses_come_and_go_without_touching_the_others(http: httpx.AsyncClient) -> None:
    trunk = await created(http, ip_based())
    url = f"{TRUNKS}/{trunk['id']}/ip-identifiers"
    sent = [{"ip_address": a} for a in ("203.0.113.5", "198.51.100.0/24", "2001:db8::/32")]
    added = await done(http, await http.post(url, json={"ip_identifiers": sent}), "ip_identifiers")
    assert addresses(added) == ["203.0.113.5", "198.51.100.0/24", "2001:db8::/32"]
    query = {"ip_addresses": ["198.51.100.0/24", "2001:0DB8:0::/32", "10.0.0.1"]}
    removed = await done(http, await http.delete(url, params=query), "ip_identifiers")
    assert addresses(removed) == ["203.0.113.5"]
    last = problem(await http.delete(url, params={"ip_addresses": "203.0.113.5"}))
    assert (last.status, last.message) == (400, "ip_identifiers are required for ip-based auth")
    written = await http.delete(f"{url}?ip_addresses=203.0.113.0/24")
    assert await done(http, written, "") == removed


async def test_a_trunk_goes_back_to_an_earlier_revision(http: httpx.AsyncClient) -> None:
    trunk = await created(http)
    url = f"{TRUNKS}/{trunk['id']}"
    await http.patch(url, json={"description": "x", "transport": "transport-tls"})
    response = await http.post(f"{url}:revert", json={"revision": 1})
    reverted = await done(http, response, "description,transport")
    moved = ("etag", "updated_at")
    assert {k: v for k, v in reverted.items() if k not in moved} == {
        k: v for k, v in trunk.items() if k not in moved
    }
    found = problem(await http.post(f"{url}:revert", json={"revision": 99}))
    assert (found.status, found.reason) == (404, "REVISION_NOT_FOUND")
    found = problem(await http.post(f"{TRUNKS}/{ABSENT}:revert", json={"revision": 1}))
    assert found.status == 404


def edits(trunk: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """Every edit of a trunk: method, path and body."""
    url = f"{TRUNKS}/{trunk['id']}"
    return [
        ("POST", f"{url}/gateways", {"gateways": [{"gateway_address": "b.example"}]}),
        ("DELETE", f"{url}/gateways?gateway_ids={ABSENT}", None),
        ("POST", f"{url}/ip-identifiers", {"ip_identifiers": [{"ip_address": "203.0.113.7"}]}),
        ("DELETE", f"{url}/ip-identifiers?ip_addresses=203.0.113.77", None),
        ("POST", f"{url}:revert", {"revision": 1}),
    ]


async def asked(
    http: httpx.AsyncClient, edit: tuple[str, str, Any], etag: str | None = None
) -> httpx.Response:
    method, path, sent = edit
    content: Any = {} if sent is None else {"json": sent}
    headers = {} if etag is None else {"If-Match": etag}
    return await http.request(method, path, headers=headers, **content)


async def test_an_edit_holds_to_the_etag(http: httpx.AsyncClient) -> None:
    trunk = await created(http)
    for edit in edits(trunk):
        before = await read(http, trunk["id"])
        assert problem(await asked(http, edit, STALE)).status == 412
        assert problem(await asked(http, edit, 'W/"0-0"')).status == 412
        assert problem(await asked(http, edit, "x")).status == 400
        if edit[0] == "POST":
            stale = problem(await http.post(edit[1], json=edit[2] | {"etag": STALE}))
            assert (stale.status, stale.reason) == (409, "ETAG_MISMATCH")
            both = await http.post(
                edit[1], json=edit[2] | {"etag": STALE}, headers={"If-Match": before["etag"]}
            )
            assert problem(both).status == 412
        assert await read(http, trunk["id"]) == before
        assert (await asked(http, edit, f'"1-1", {before["etag"]}')).status_code == 200


async def test_an_edit_of_no_trunk_is_404(http: httpx.AsyncClient) -> None:
    for edit in edits({"id": ABSENT}):
        for etag in (None, STALE, "*"):
            assert problem(await asked(http, edit, etag)).status == 404


@pytest.mark.parametrize(
    ("path", "body", "violations"),
    [
        ("/gateways", {}, [("gateways", "REQUIRED")]),
        ("/gateways", {"gateways": []}, [("gateways", "REQUIRED")]),
        ("/gateways", {"gateways": None}, [("gateways", "NOT_CLEARABLE")]),
        ("/gateways", {"gateways": {}}, [("gateways", "WRONG_TYPE")]),
        ("/gateways", {"gateways": ["b.example"]}, [("gateways[0]", "WRONG_TYPE")]),
        ("/gateways", {"gateways": [{"host": "x"}]}, [("gateways[0].host", "UNKNOWN_FIELD")]),
        (
            "/gateways",
            {"gateways": [{"gateway_address": "b.example", "port": 0}]},
            [("gateways[0].port", "OUT_OF_RANGE")],
        ),
        ("/gateways", {"gateway": {}}, [("gateway", "UNKNOWN_FIELD")]),
        ("/gateways", {"trunk_id": "x"}, [("trunk_id", "UNKNOWN_FIELD")]),
        (
            "/ip-identifiers",
            {"ip_identifiers": [{"ip_address": 5}, {"cidr": "x"}], "etag": 5},
            [
                ("ip_identifiers[0].ip_address", "WRONG_TYPE"),
                ("ip_identifiers[1].cidr", "UNKNOWN_FIELD"),
                ("etag", "WRONG_TYPE"),
            ],
        ),
        (":revert", {}, [("revision", "REQUIRED")]),
        (":revert", {"revision": None}, [("revision", "REQUIRED")]),
        (":revert", {"revision": "1"}, [("revision", "WRONG_TYPE")]),
        (":revert", {"revision": 1.5}, [("revision", "WRONG_TYPE")]),
        (":revert", {"revision": True}, [("revision", "WRONG_TYPE")]),
        (":revert", {"revision": -(10**40)}, [("revision", "OUT_OF_RANGE")]),
        (":revert", {"revision": 1, "to": 2}, [("to", "UNKNOWN_FIELD")]),
    ],
    ids=str,
)
async def test_a_body_that_is_wrong_is_400_by_its_keys(
    http: httpx.AsyncClient, path: str, body: Any, violations: list[tuple[str, str]]
) -> None:
    trunk = await created(http, userpass())
    found = problem(await http.post(f"{TRUNKS}/{trunk['id']}{path}", json=body))
    assert (found.status, found.violations) == (400, violations)
    assert await read(http, trunk["id"]) == trunk


@pytest.mark.parametrize(
    ("query", "violations"),
    [
        ("gateways", [("gateway_ids", "REQUIRED")]),
        ("gateways?gateway_ids=", [("gateway_ids[0]", "INVALID_FORM")]),
        ("gateways?gateway_ids=a&gateway_ids=a", [("gateway_ids[1]", "DUPLICATE")]),
        ("gateways?gateway_id=a", [("gateway_id", "UNKNOWN_PARAMETER")]),
        ("ip-identifiers", [("ip_addresses", "REQUIRED")]),
        ("ip-identifiers?ip_addresses=x", [("ip_addresses[0]", "INVALID_FORM")]),
        ("ip-identifiers?gateway_ids=x", [("gateway_ids", "UNKNOWN_PARAMETER")]),
    ],
)
async def test_a_list_in_the_query_that_is_wrong_is_400(
    http: httpx.AsyncClient, query: str, violations: list[tuple[str, str]]
) -> None:
    trunk = await created(http)
    found = problem(await http.delete(f"{TRUNKS}/{trunk['id']}/{query}"))
    assert found.status == 400
    assert [field for field, _ in violations] == found.fields
    if violations[0][1] != "INVALID_FORM":
        assert found.violations == violations

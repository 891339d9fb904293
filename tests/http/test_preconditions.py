"""ETag, If-Match, If-None-Match, the etag in a body."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.http.clients import shared
from tests.http.trunks import ABSENT, TRUNKS, created, problem, read

OTHER = '"0-0"'
HOLDS = {
    "the current one": "{etag}",
    "any": "*",
    "one of several": '"0-0", {etag}, "1-1"',
    "one of several without blanks": '"0-0",{etag}',
    "a weak one beside it": "W/{etag}, {etag}",
}
FAILS = {
    "another": '"0-0"',
    "none of several": '"0-0", "1-1"',
    "a weak one": "W/{etag}",
    "weak ones": 'W/{etag}, W/"0-0"',
    "one of another form": '"x"',
    "an empty one": '""',
    "one with a comma": '"a,b"',
}
MALFORMED = {
    "without quotes": "0-0",
    "with one quote": '"0-0',
    "without a comma": '"0-0" "1-1"',
    "weak in lower case": 'w/"0-0"',
    "any among others": '*, "0-0"',
    "empty": "",
}


@pytest.fixture(scope="module")
async def http(postgres: str, template: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the module's gateway; each test minds its own trunks."""
    async with shared(postgres, template) as made:
        yield made


def if_match(text: str, trunk: dict[str, Any]) -> dict[str, str]:
    return {"If-Match": text.format(etag=trunk["etag"])}


async def patch(
    http: httpx.AsyncClient, trunk: dict[str, Any], headers: dict[str, str], **body: Any
) -> httpx.Response:
    url = f"{TRUNKS}/{trunk['id']}"
    return await http.patch(url, json={"is_active": False} | body, headers=headers)


@pytest.mark.parametrize("text", HOLDS.values(), ids=HOLDS.keys())
async def test_if_match_that_holds_lets_an_update_and_a_delete_pass(
    http: httpx.AsyncClient, text: str
) -> None:
    trunk = await created(http)
    response = await patch(http, trunk, if_match(text, trunk))
    assert response.status_code == 200
    after = await read(http, trunk["id"])
    assert after["etag"] == response.headers["ETag"] != trunk["etag"]
    gone = await http.delete(f"{TRUNKS}/{trunk['id']}", headers=if_match(text, after))
    assert gone.status_code == 200
    assert (await http.get(f"{TRUNKS}/{trunk['id']}")).status_code == 404


@pytest.mark.parametrize("text", FAILS.values(), ids=FAILS.keys())
async def test_if_match_that_fails_is_412_and_nothing_is_written(
    http: httpx.AsyncClient, text: str
) -> None:
    trunk = await created(http)
    headers = if_match(text, trunk)
    gone = await http.delete(f"{TRUNKS}/{trunk['id']}", headers=headers)
    for response in (await patch(http, trunk, headers), gone):
        found = problem(response)
        assert (found.status, found.reason) == (412, "ETAG_MISMATCH")
    assert await read(http, trunk["id"]) == trunk


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED.keys())
async def test_if_match_that_is_no_list_of_etags_is_400(http: httpx.AsyncClient, text: str) -> None:
    trunk = await created(http)
    headers = if_match(text, trunk)
    gone = await http.delete(f"{TRUNKS}/{trunk['id']}", headers=headers)
    for response in (await patch(http, trunk, headers), gone):
        found = problem(response)
        assert (found.status, found.reason) == (400, "BAD_HEADER")
        assert "If-Match" in found.message
    assert await read(http, trunk["id"]) == trunk


async def test_if_match_in_two_lines_is_one_list(http: httpx.AsyncClient) -> None:
    trunk = await created(http)
    lines = [("If-Match", OTHER), ("If-Match", trunk["etag"])]
    url = f"{TRUNKS}/{trunk['id']}"
    response = await http.patch(url, json={"is_active": False}, headers=lines)
    assert response.status_code == 200


@pytest.mark.parametrize("text", ["*", OTHER, '"0-0", "1-1"'])
async def test_if_match_on_no_trunk_is_not_found(http: httpx.AsyncClient, text: str) -> None:
    response = await patch(http, {"id": ABSENT}, {"If-Match": text})
    assert problem(response).status == 404


@pytest.mark.parametrize("body", [{}, {"qualify_frequency": 60}], ids=["empty", "equal"])
async def test_if_match_is_judged_where_nothing_would_change(
    http: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    trunk = await created(http)
    url = f"{TRUNKS}/{trunk['id']}"
    stale = await http.patch(url, json=body, headers={"If-Match": OTHER})
    assert problem(stale).status == 412
    current = await http.patch(url, json=body, headers={"If-Match": trunk["etag"]})
    assert (current.status_code, current.headers["ETag"]) == (200, trunk["etag"])


@pytest.mark.parametrize("text", ["", "*"], ids=["alone", "beside If-Match: *"])
async def test_a_stale_etag_in_the_body_is_409(http: httpx.AsyncClient, text: str) -> None:
    trunk = await created(http)
    found = problem(await patch(http, trunk, {"If-Match": text} if text else {}, etag=OTHER))
    assert (found.status, found.reason) == (409, "ETAG_MISMATCH")
    assert await read(http, trunk["id"]) == trunk


async def test_the_current_etag_in_the_body_lets_an_update_pass(http: httpx.AsyncClient) -> None:
    trunk = await created(http)
    assert (await patch(http, trunk, {}, etag=trunk["etag"])).status_code == 200


@pytest.mark.parametrize("stale", ["header", "body"])
async def test_two_etags_must_both_be_the_current_one(http: httpx.AsyncClient, stale: str) -> None:
    trunk = await created(http)
    header, body = (OTHER, trunk["etag"]) if stale == "header" else (trunk["etag"], OTHER)
    found = problem(await patch(http, trunk, {"If-Match": header}, etag=body))
    assert found.reason == "ETAG_MISMATCH"
    assert found.status in (409, 412)
    assert await read(http, trunk["id"]) == trunk


async def test_of_two_updates_with_one_etag_the_second_is_refused(http: httpx.AsyncClient) -> None:
    trunk = await created(http)
    headers = {"If-Match": trunk["etag"]}
    assert (await patch(http, trunk, headers)).status_code == 200
    assert problem(await patch(http, trunk, headers, is_active=True)).status == 412
    assert (await read(http, trunk["id"]))["is_active"] is False


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
async def test_if_match_on_a_number_does_not_pass_unnoticed(
    http: httpx.AsyncClient, method: str
) -> None:
    """A number has no etag, so no If-Match but `*` can hold for it (RFC 9110 section 13.1.1)."""
    trunk = await created(http)
    url = f"{TRUNKS}/{trunk['id']}/numbers"
    number = (await http.post(url, json={"phone_number": f"+1555{len(method)}00"})).json()
    body: Any = {"json": {"name": "x"}} if method == "PATCH" else {}
    headers = {"If-Match": OTHER}
    response = await http.request(method, f"{url}/{number['id']}", headers=headers, **body)
    assert problem(response).status == 412
    assert (await http.get(url)).json() == [number]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "text", ["{etag}", "W/{etag}", "*", '"0-0", {etag}', '"0-0",W/{etag} , "1-1"']
)
async def test_a_version_that_the_caller_has_is_304(
    http: httpx.AsyncClient, method: str, text: str
) -> None:
    trunk = await created(http)
    headers = {"If-None-Match": text.format(etag=trunk["etag"])}
    response = await http.request(method, f"{TRUNKS}/{trunk['id']}", headers=headers)
    assert (response.status_code, response.content) == (304, b"")
    assert response.headers["ETag"] == trunk["etag"]


@pytest.mark.parametrize("text", [OTHER, 'W/"0-0"', '"0-0", "1-1"', '"a,b"'])
async def test_a_version_that_the_caller_has_not_is_sent(
    http: httpx.AsyncClient, text: str
) -> None:
    trunk = await created(http)
    response = await http.get(f"{TRUNKS}/{trunk['id']}", headers={"If-None-Match": text})
    assert (response.status_code, response.json()) == (200, trunk)


async def test_a_version_is_another_once_a_number_came_or_went(http: httpx.AsyncClient) -> None:
    trunk = await created(http)
    url = f"{TRUNKS}/{trunk['id']}"
    number = (await http.post(f"{url}/numbers", json={"phone_number": "+15550200"})).json()
    with_number = await http.get(url, headers={"If-None-Match": trunk["etag"]})
    assert with_number.json()["phone_numbers"] == [number]
    await http.delete(f"{url}/numbers/{number['id']}")
    without = await http.get(url, headers={"If-None-Match": with_number.headers["ETag"]})
    assert without.json()["phone_numbers"] == []

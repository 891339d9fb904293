"""Lists: arrays, filters, order, pages with a Link, the numbers that trunks are shown with."""

import itertools
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import httpx
import pytest

from tests.conftest import running
from tests.http.clients import client, copied
from tests.http.trunks import ABSENT, TRUNKS, created, ip_based, problem, read, userpass

TRUNKS_MADE = 12
NUMBERS_SHOWN_MAX = 1000
_digits = itertools.count(10_000)


@pytest.fixture(scope="module")
async def databases(postgres: str, template: str) -> AsyncIterator[str]:
    """The URL of the module's database."""
    async with copied(postgres, template) as url:
        yield url


@pytest.fixture(scope="module")
async def http(databases: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the module's gateway. Only `trunks` are of the provider `listed`."""
    async with (
        running(databases, http_address="127.0.0.1:0") as service,
        client(service.http_address) as made,
    ):
        yield made


@pytest.fixture(scope="module")
async def trunks(http: httpx.AsyncClient) -> list[dict[str, Any]]:
    """The trunks of the provider `listed`, in the order of their ids; each third is inactive."""
    made = []
    for number in range(TRUNKS_MADE):
        phone_numbers = [{"phone_number": f"+1{next(_digits)}"} for _ in range(number % 4)]
        body = userpass(name=f"T {number * 7 % 12:02}", provider="listed")
        trunk = await created(http, body | {"phone_numbers": phone_numbers})
        if number % 3 == 0:
            await http.patch(f"{TRUNKS}/{trunk['id']}", json={"is_active": False})
        made.append(await read(http, trunk["id"]))
    return made


async def listed(http: httpx.AsyncClient, path: str = TRUNKS, **parameters: Any) -> Any:
    if path == TRUNKS:
        parameters["filter"] = "provider=listed"
    response = await http.get(path, params=parameters)
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "application/json"
    assert "Link" not in response.headers or "page_size" in parameters
    return response.json()


async def followed(http: httpx.AsyncClient, path: str, **parameters: Any) -> list[list[Any]]:
    """The pages of a list, from Link to Link."""
    url = str(httpx.URL(path, params=parameters))
    pages = []
    while True:
        response = await http.get(url)
        assert response.status_code == 200, response.text
        pages.append(response.json())
        assert len(pages) < 100
        if "next" not in response.links:
            assert "Link" not in response.headers
            return pages
        url = response.links["next"]["url"]
        assert url.startswith(path + "?")


async def test_a_list_is_an_array_of_whole_trunks(
    http: httpx.AsyncClient, trunks: list[dict[str, Any]]
) -> None:
    assert await listed(http) == trunks
    assert [len(t["phone_numbers"]) for t in trunks] == [0, 1, 2, 3] * 3


async def test_a_list_of_nothing_is_an_empty_array(http: httpx.AsyncClient) -> None:
    for query in ("", "&page_size=5", "&is_active=true"):
        response = await http.get(f"{TRUNKS}?filter=provider%3Dnone{query}")
        assert (response.status_code, response.content) == (200, b"[]")


@pytest.mark.parametrize("value", [True, False])
async def test_is_active_chooses(
    http: httpx.AsyncClient, trunks: list[dict[str, Any]], *, value: bool
) -> None:
    chosen = [t for t in trunks if t["is_active"] is value]
    assert len(chosen) == (8 if value else 4)
    assert await listed(http, is_active=str(value).lower()) == chosen
    # The page after, too, is chosen from.
    query = {"is_active": str(value).lower(), "filter": "provider=listed", "page_size": 3}
    pages = await followed(http, TRUNKS, **query)
    assert list(itertools.chain(*pages)) == chosen


async def test_is_active_alone_chooses(
    http: httpx.AsyncClient, trunks: list[dict[str, Any]]
) -> None:
    inactive = (await http.get(TRUNKS, params={"is_active": "false"})).json()
    ours = [t["id"] for t in inactive if t["provider"] == "listed"]
    assert ours == [t["id"] for t in trunks if not t["is_active"]]
    assert {t["is_active"] for t in inactive} == {False}


@pytest.mark.parametrize(
    ("order_by", "key", "reverse"),
    [
        ("id", "id", False),
        ("id desc", "id", True),
        ("name", "name", False),
        ("name desc", "name", True),
        ("created_at", "created_at", False),
        ("created_at desc", "created_at", True),
    ],
)
async def test_order_by_sorts_over_all_pages(
    http: httpx.AsyncClient,
    trunks: list[dict[str, Any]],
    *,
    order_by: str,
    key: str,
    reverse: bool,
) -> None:
    expected = sorted(trunks, key=lambda t: t[key], reverse=reverse)
    assert await listed(http, order_by=order_by) == expected
    query = {"order_by": order_by, "filter": "provider=listed", "page_size": 5}
    pages = await followed(http, TRUNKS, **query)
    assert list(itertools.chain(*pages)) == expected


@pytest.mark.parametrize(
    ("page_size", "lengths"),
    [(1, [1] * 12), (5, [5, 5, 2]), (6, [6, 6]), (12, [12]), (999_999_999, [12])],
)
async def test_the_link_leads_from_page_to_page_to_the_end(
    http: httpx.AsyncClient, trunks: list[dict[str, Any]], page_size: int, lengths: list[int]
) -> None:
    pages = await followed(http, TRUNKS, filter="provider=listed", page_size=page_size)
    assert [len(page) for page in pages] == lengths
    assert list(itertools.chain(*pages)) == trunks


async def test_the_link_keeps_parameters_that_need_quoting(
    http: httpx.AsyncClient, trunks: list[dict[str, Any]]
) -> None:
    names = ["100 % & more; a=b #1", "100 % & more; a=b #2", "100 % & more; a=b ü"]
    for name in names:
        await created(http, ip_based(name=name))
    query = {"filter": 'name="100 % & more; a=b*"', "order_by": "name desc", "page_size": 1}
    pages = await followed(http, TRUNKS, **query)
    assert [[t["name"] for t in page] for page in pages] == [[n] for n in reversed(names)]


@pytest.mark.parametrize(
    ("query", "field", "reason"),
    [
        ("nope=1", "nope", "UNKNOWN_PARAMETER"),
        ("isActive=true", "isActive", "UNKNOWN_PARAMETER"),
        ("limit=5", "limit", "UNKNOWN_PARAMETER"),
        ("=1", "", "UNKNOWN_PARAMETER"),
        ("page_size=1&page_size=1", "page_size", "TWICE"),
        ("is_active=true&is_active=false", "is_active", "TWICE"),
        ("filter=is_active%3Dtrue&filter=", "filter", "TWICE"),
        ("is_active=1", "is_active", "WRONG_TYPE"),
        ("is_active=True", "is_active", "WRONG_TYPE"),
        ("is_active=", "is_active", "WRONG_TYPE"),
        ("is_active", "is_active", "WRONG_TYPE"),
        ("page_size=0", "page_size", "WRONG_TYPE"),
        ("page_size=-1", "page_size", "WRONG_TYPE"),
        ("page_size=", "page_size", "WRONG_TYPE"),
        ("page_size=1.0", "page_size", "WRONG_TYPE"),
        ("page_size=%D9%A5", "page_size", "WRONG_TYPE"),
        ("page_size=99999999999999999999", "page_size", "WRONG_TYPE"),
        ("page_token=x", "page_token", "BAD_PAGE_TOKEN"),
        ("page_token=%FF%00", "page_token", "BAD_PAGE_TOKEN"),
        ("order_by=provider", "order_by", "UNKNOWN_ORDER"),
        ("order_by=name;desc", "order_by", "UNKNOWN_ORDER"),
        ("filter=nope%3D1", "filter", "UNKNOWN_FIELD"),
        ("filter=name", "filter", "SYNTAX"),
        ("filter=%00", "filter", "CONTROL_CHARACTER"),
        ("is_active=true&filter=is_active%3Dfalse", "filter", "TWICE"),
        ("is_active=true&filter=OR%20name%3Da", "filter", "SYNTAX"),
    ],
)
async def test_a_parameter_that_is_wrong_is_400_by_its_name(
    http: httpx.AsyncClient, query: str, field: str, reason: str
) -> None:
    found = problem(await http.get(f"{TRUNKS}?{query}"))
    assert (found.status, found.violations) == (400, [(field, reason)])


async def test_a_page_token_of_another_list_is_refused(
    http: httpx.AsyncClient, trunks: list[dict[str, Any]]
) -> None:
    response = await http.get(TRUNKS, params={"page_size": 1, "filter": "provider=listed"})
    token = httpx.URL(response.links["next"]["url"]).params["page_token"]
    for other in ({}, {"filter": "provider=none"}, {"order_by": "name"}):
        found = problem(await http.get(TRUNKS, params={"page_token": token} | other))
        assert (found.status, found.fields) == (400, ["page_token"])


async def numbered(http: httpx.AsyncClient, url: str, count: int) -> dict[str, Any]:
    """A trunk with many numbers, which are written straight into the table."""
    trunk = await created(http, ip_based(provider="numbered"))
    connection = await asyncpg.connect(url)
    await connection.execute(
        "INSERT INTO phone_numbers"
        " (account_id, id, trunk_id, phone_number, name, created_at, updated_at)"
        " SELECT 'default', $1 || lpad(n::text, 6, '0'), $1, $2 || lpad(n::text, 6, '0'),"
        " 'n' || n, now(), now() FROM generate_series(1, $3) AS n",
        trunk["id"],
        f"+{next(_digits)}",
        count,
    )
    statement = "UPDATE trunks SET phone_number_count = $2, revision = revision + 1 WHERE id = $1"
    await connection.execute(statement, trunk["id"], count)
    await connection.close()
    return trunk


async def test_a_thousand_numbers_are_shown_and_more_are_said_to_be_there(
    http: httpx.AsyncClient, databases: str
) -> None:
    counts = (NUMBERS_SHOWN_MAX + 1, 600, NUMBERS_SHOWN_MAX, 0, 600, 2345, 1)
    trunks = [await numbered(http, databases, count) for count in counts]
    alone = [await read(http, trunk["id"]) for trunk in trunks]
    together = (await http.get(TRUNKS, params={"filter": "provider=numbered"})).json()
    assert together == alone
    for trunk, count in zip(alone, counts, strict=True):
        shown = [n["phone_number"] for n in trunk["phone_numbers"]]
        every = await listed(http, f"{TRUNKS}/{trunk['id']}/numbers")
        assert trunk["phone_number_count"] == count == len(every)
        assert trunk["phone_numbers_truncated"] is (count > NUMBERS_SHOWN_MAX)
        assert shown == [n["phone_number"] for n in every][:NUMBERS_SHOWN_MAX]
        assert {n["byot_trunk_id"] for n in every} <= {trunk["id"]}
    # What was read can be sent back although it does not show all.
    for trunk in alone:
        response = await http.patch(f"{TRUNKS}/{trunk['id']}", json=trunk)
        assert (response.status_code, response.json()) == (200, trunk)


async def test_the_numbers_of_a_trunk_are_listed_page_by_page(
    http: httpx.AsyncClient, databases: str
) -> None:
    trunk = await numbered(http, databases, 25)
    path = f"{TRUNKS}/{trunk['id']}/numbers"
    every = await listed(http, path)
    assert [n["name"] for n in every] == [f"n{n}" for n in range(1, 26)]
    pages = await followed(http, path, page_size=10)
    assert [len(page) for page in pages] == [10, 10, 5]
    assert list(itertools.chain(*pages)) == every


@pytest.mark.parametrize("query", ["is_active=true", "filter=name", "order_by=id", "page_size=x"])
async def test_a_list_of_numbers_takes_its_own_parameters_alone(
    http: httpx.AsyncClient, query: str
) -> None:
    trunk = await created(http)
    found = problem(await http.get(f"{TRUNKS}/{trunk['id']}/numbers?{query}"))
    assert (found.status, found.fields) == (400, [query.partition("=")[0]])


async def test_the_numbers_of_no_trunk_are_404_and_of_an_empty_one_an_empty_array(
    http: httpx.AsyncClient,
) -> None:
    trunk = await created(http)
    assert await listed(http, f"{TRUNKS}/{trunk['id']}/numbers") == []
    for trunk_id in (ABSENT, "-"):
        found = problem(await http.get(f"{TRUNKS}/{trunk_id}/numbers"))
        assert (found.status, found.reason) == (404, "TRUNK_NOT_FOUND")

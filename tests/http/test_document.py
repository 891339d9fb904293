"""What the OpenAPI document says, held against what the service answers."""

import hashlib
import importlib.resources
from typing import Any

import httpx
import pytest

from tests.http.document import faults
from trunkline.gateway.examples import BODIES, ERRORS
from trunkline.gateway.openapi import document

TRUNKS = "/sip-trunks/trunks"
USERPASS = BODIES["CreateSipTrunk"]["userpass"]
IP_BASED = BODIES["CreateSipTrunk"]["ip-based"]
NUMBER = BODIES["CreatePhoneNumber"]["number"]
JSON = {"Content-Type": "application/json"}


async def created(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Any:
    response = await http.post(path, json=body)
    assert response.status_code == 201, response.text
    return response.json()


async def test_the_document_is_served(http: httpx.AsyncClient) -> None:
    response = await http.get("/openapi.json", headers={"Authorization": ""})
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/json"
    assert response.json() == document()


async def test_the_page_is_found_with_a_trailing_slash(http: httpx.AsyncClient) -> None:
    response = await http.get("/docs/", follow_redirects=True)
    assert response.status_code == 200
    assert response.url.path == "/docs"
    assert response.headers["Content-Type"].startswith("text/html")


@pytest.mark.parametrize("coding", ["gzip", "identity"])
async def test_the_viewer_is_the_one_that_was_released(
    http: httpx.AsyncClient, coding: str
) -> None:
    viewer = importlib.resources.files("trunkline.gateway.viewer")
    for line in viewer.joinpath("SHA256SUMS").read_text("utf-8").splitlines():
        expected, name = line.split()
        response = await http.get(f"/docs/{name}", headers={"Accept-Encoding": coding})
        assert response.headers.get("Content-Encoding", "identity") == coding
        assert response.headers["Vary"] == "Accept-Encoding"
        assert hashlib.sha256(response.content).hexdigest() == expected


async def test_another_file_of_the_page_is_not_found(http: httpx.AsyncClient) -> None:
    response = await http.get("/docs/VERSION")
    assert response.status_code == 404
    assert response.json()["reason"] == "ROUTE_NOT_FOUND"
    assert faults("Error", response.json()) == []


def operations() -> dict[str, Any]:
    """The operations of the document by their ids."""
    paths = document()["paths"].values()
    return {o["operationId"]: o for verbs in paths for o in verbs.values()}


@pytest.mark.parametrize("method", BODIES)
def test_every_method_with_a_body_has_examples_that_its_schema_allows(method: str) -> None:
    content = operations()[method]["requestBody"]["content"]["application/json"]
    name = content["schema"]["$ref"].rpartition("/")[2]
    for example in BODIES[method].values():
        assert faults(name, example) == []


def test_every_body_has_examples() -> None:
    with_body = {name for name, operation in operations().items() if "requestBody" in operation}
    assert with_body == set(BODIES)


async def test_documented_bodies_of_numbers_are_taken(http: httpx.AsyncClient) -> None:
    trunk = await created(http, TRUNKS, USERPASS)
    numbers = f"{TRUNKS}/{trunk['id']}/numbers"
    for body in BODIES["CreatePhoneNumber"].values():
        number = await created(http, numbers, body)
        for change in BODIES["UpdatePhoneNumber"].values():
            response = await http.patch(f"{numbers}/{number['id']}", json=change)
            assert response.status_code == 200


@pytest.mark.parametrize("body", [USERPASS, IP_BASED], ids=["userpass", "ip-based"])
async def test_replies_have_the_documented_keys_and_no_others(
    http: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    trunk = await created(http, TRUNKS, body | {"phone_numbers": [NUMBER]})
    one = f"{TRUNKS}/{trunk['id']}"
    number = await created(http, f"{one}/numbers", {"phone_number": "+15550100"})
    read = (await http.get(one)).json()
    assert len(read["phone_numbers"]) == 2
    patched = (await http.patch(one, json={"is_active": False})).json()
    trunks = (await http.get(TRUNKS)).json()
    for reply in (trunk, read, patched, *trunks):
        assert faults("Trunk", reply) == []
    numbers = (await http.get(f"{one}/numbers")).json()
    assert len(numbers) == 2
    for reply in (number, *numbers):
        assert faults("Number", reply) == []
    assert faults("Message", (await http.delete(f"{one}/numbers/{number['id']}")).json()) == []
    assert faults("Message", (await http.delete(one)).json()) == []


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        (400, {"method": "PATCH", "json": {"qualify_frequency": 90000}}),
        (401, {"method": "GET", "headers": {"Authorization": "Bearer of-nothing"}}),
        (404, {"method": "GET", "url": f"{TRUNKS}/none"}),
        (409, {"method": "POST", "url": TRUNKS, "json": USERPASS}),
        (412, {"method": "PATCH", "json": {"name": "x"}, "headers": {"If-Match": '"1-0"'}}),
        (413, {"method": "PATCH", "content": b" " * ((1 << 20) + 1), "headers": JSON}),
        (415, {"method": "PATCH", "content": b"{}", "headers": {"Content-Type": "text/plain"}}),
        (422, {"method": "PATCH", "json": {"media_encryption": "sdes"}}),
        (431, {"method": "GET", "headers": {f"X-{i}": "x" for i in range(101)}}),
        (504, {"method": "GET", "headers": {"X-Request-Timeout": "0.0001"}}),
    ],
)
async def test_documented_errors_are_what_is_answered(
    http: httpx.AsyncClient, status: int, request_: dict[str, Any]
) -> None:
    trunk = await created(http, TRUNKS, USERPASS)
    response = await http.request(**{"url": f"{TRUNKS}/{trunk['id']}"} | request_)
    assert response.status_code == status
    assert response.json() == ERRORS[str(status)]
    assert faults("Error", response.json()) == []

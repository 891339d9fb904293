"""PATCH bodies that are of the wrong type, or no JSON object at all."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.http.clients import shared
from tests.http.trunks import GATEWAY, TRUNKS, created, problem, read


@pytest.fixture(scope="module")
async def http(postgres: str, template: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the module's gateway; each test minds its own trunks."""
    async with shared(postgres, template) as made:
        yield made


JSON = {"Content-Type": "application/json"}
BODY_BYTES_MAX = 1 << 20


async def assert_refused(
    http: httpx.AsyncClient, before: dict[str, Any], text: str | bytes, *fields: str
) -> list[str]:
    """A body is refused with 400 naming these fields alone, nothing is written; the reasons."""
    response = await http.patch(f"{TRUNKS}/{before['id']}", content=text, headers=JSON)
    found = problem(response)
    assert found.status == 400
    assert found.fields == list(fields)
    assert await read(http, before["id"]) == before
    return [reason for _, reason in found.violations]


def inside(path: str, value: str) -> str:
    """A body with a JSON text at a path such as `gateways[0].port`."""
    gateway = '{"gateway_address": "sip.example.com", "%s": %s}'
    shapes = {
        "gateways[0].gateway_address": '{"gateways": [{"gateway_address": %s}]}',
        "gateways[1].gateway_address": '{"gateways": [{"gateway_address": "a"}, '
        '{"gateway_address": %s}]}',
        "gateways[0]": '{"gateways": [%s]}',
        "ip_identifiers[0]": '{"ip_identifiers": [%s]}',
        "ip_identifiers[0].ip_address": '{"ip_identifiers": [{"ip_address": %s}]}',
    }
    if path in shapes:
        return shapes[path] % value
    if path.startswith("gateways[0]."):
        return '{"gateways": [' + gateway % (path.rpartition(".")[2], value) + "]}"
    return json.dumps({path: 0})[:-2] + value + "}"


INTEGERS = ("qualify_frequency", "gateways[0].port", "gateways[0].priority")
STRINGS = (
    "name",
    "description",
    "auth_username",
    "auth_password",
    "allow",
    "disallow",
    "provider",
    "gateways[0].gateway_address",
    "gateways[1].gateway_address",
    "ip_identifiers[0].ip_address",
)
WRONG = {
    INTEGERS: ('"60"', "60.0", "60.5", "6e1", "1e400", "true", "false", "[]", "{}", '[""]'),
    STRINGS: ("60", "6.5", "true", "[]", '["x"]', "{}", '{"x": "y"}'),
    ("transport", "media_encryption", "auth_type"): ("0", "1", "false", "[]", "{}", "1.5"),
    ("is_active", "direct_media"): ("0", "1", '"true"', '""', "1.0", "[]", "{}"),
    ("gateways", "ip_identifiers"): ("{}", '"x"', "5", "true", '{"0": {}}', "1.5"),
    ("gateways[0]", "ip_identifiers[0]"): ("null", '"x"', "5", "true", "[]", "[[]]", "1.5"),
}


@pytest.mark.parametrize(
    ("path", "values"),
    [(path, values) for paths, values in WRONG.items() for path in paths],
    ids=lambda case: case if isinstance(case, str) else "",
)
async def test_a_value_of_another_type_is_refused_by_its_path(
    http: httpx.AsyncClient, path: str, values: tuple[str, ...]
) -> None:
    before = await created(http)
    for value in values:
        assert await assert_refused(http, before, inside(path, value), path) == ["WRONG_TYPE"]


@pytest.mark.parametrize("path", ["transport", "media_encryption"])
@pytest.mark.parametrize("value", ["", "TLS", "UDP", "transport-TLS", "No", " no", "2", "x" * 99])
async def test_an_enum_takes_its_own_spellings_alone(
    http: httpx.AsyncClient, path: str, value: str
) -> None:
    before = await created(http)
    body = inside(path, json.dumps(value))
    assert await assert_refused(http, before, body, path) == ["UNKNOWN_VALUE"]


@pytest.mark.parametrize("path", INTEGERS)
@pytest.mark.parametrize("value", [1 << 31, -(1 << 31) - 1, 1 << 32, (1 << 63) + 60, 10**300])
async def test_a_huge_integer_is_out_of_range_and_not_cut_to_fit(
    http: httpx.AsyncClient, path: str, value: int
) -> None:
    before = await created(http)
    for number in (value, -value):
        reasons = await assert_refused(http, before, inside(path, str(number)), path)
        assert reasons == ["OUT_OF_RANGE"]


async def test_an_integer_of_thousands_of_digits_is_refused(http: httpx.AsyncClient) -> None:
    await assert_refused(http, await created(http), inside("qualify_frequency", "9" * 9999))


@pytest.mark.parametrize("path", [*STRINGS, "transport"])
@pytest.mark.parametrize("value", [r'"\ud800"', r'"a\udfffb"', r'"\udc00\ud800"'])
async def test_a_lone_surrogate_is_refused_by_its_path(
    http: httpx.AsyncClient, path: str, value: str
) -> None:
    await assert_refused(http, await created(http), inside(path, value), path)


@pytest.mark.parametrize(
    "body", [r'{"\ud800": 1}', r'{"gateways": [{"gateway_address": "a", "\udfff": 1}]}']
)
async def test_a_lone_surrogate_in_a_key_is_refused(http: httpx.AsyncClient, body: str) -> None:
    before = await created(http)
    response = await http.patch(f"{TRUNKS}/{before['id']}", content=body, headers=JSON)
    found = problem(response)
    assert (found.status, found.reason) == (400, "UNKNOWN_FIELD")
    assert r"\ud" in found.fields[0]


@pytest.mark.parametrize(
    "body",
    [
        r'{"phone_numbers": [{"phone_number": "\ud800"}]}',
        r'{"phone_numbers": "\ud800"}',
        r'{"id": "\ud800"}',
        r'{"etag": "\ud800"}',
    ],
)
async def test_a_lone_surrogate_in_an_echoed_key_is_refused(
    http: httpx.AsyncClient, body: str
) -> None:
    before = await created(http)
    response = await http.patch(f"{TRUNKS}/{before['id']}", content=body, headers=JSON)
    assert problem(response).status == 400


@pytest.mark.parametrize(
    ("body", "key"),
    [
        ('{"name": "a", "name": "b"}', "name"),
        ('{"name": "a", "name": "a"}', "name"),
        (r'{"name": "a", "n\u0061me": "b"}', "name"),
        ('{"nope": 1, "nope": 2}', "nope"),
        ('{"gateways": [{"gateway_address": "a", "gateway_address": "b"}]}', "gateway_address"),
        ('{"gateways": [{"gateway_address": "a", "port": 1, "port": 2}]}', "port"),
        ('{"phone_numbers": [{"phone_number": "1", "phone_number": "2"}]}', "phone_number"),
        ('{"codecs": {"deep": [{"x": 1, "x": 2}]}}', "x"),
    ],
)
async def test_a_key_twice_in_one_object_is_refused_by_name(
    http: httpx.AsyncClient, body: str, key: str
) -> None:
    before = await created(http)
    await assert_refused(http, before, body)
    response = await http.patch(f"{TRUNKS}/{before['id']}", content=body, headers=JSON)
    assert f'"{key}"' in problem(response).message


async def test_one_key_in_two_objects_is_taken(http: httpx.AsyncClient) -> None:
    before = await created(http)
    body = {"gateways": [GATEWAY, {"gateway_address": "b.example"}]}
    response = await http.patch(f"{TRUNKS}/{before['id']}", json=body)
    assert response.status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b'{"name"}',
        b"{'name': 'x'}",
        b'{"is_active": false,}',
        b'{"is_active": False}',
        b'{"is_active": false} {}',
        b'{"is_active": false}x',
        b'\xef\xbb\xbf{"is_active": false}',
        b'// note\n{"is_active": false}',
        b'{"qualify_frequency": 0x10}',
        b'{"qualify_frequency": 010}',
        b'{"qualify_frequency": +1}',
        b'{"qualify_frequency": NaN}',
        b'{"qualify_frequency": Infinity}',
        b'{"gateways": [{"port": -Infinity}]}',
        b'{"name": "a\nb"}',
        b'{"name": "\\x41"}',
        b'{"name": "\xff"}',
        b'{"name": "\xc0\x80"}',
        b'{"name": "\xed\xa0\x80"}',
        '{"is_active": false}'.encode("utf-16"),
        '{"is_active": false}'.encode("utf-32-le"),
        b"[]",
        b'[{"is_active": false}]',
        b'"is_active"',
        b"null",
        b"true",
        b"5",
    ],
)
async def test_a_body_that_is_no_json_object_is_refused(
    http: httpx.AsyncClient, body: bytes
) -> None:
    await assert_refused(http, await created(http), body)


@pytest.mark.parametrize("depth", [100, 990, 5_000, 100_000])
async def test_deep_nesting_is_answered(http: httpx.AsyncClient, depth: int) -> None:
    before = await created(http)
    statuses = []
    for start, opening, middle, end in (
        ("", "[", "", "]"),
        ('{"nope": ', "[[", "", "]]"),
        ('{"gateways": ', "[", "", "]"),
        ('{"codecs": ', '{"a":', "1", "}"),
    ):
        opened = start + opening * depth
        for text in (opened, opened + middle + end * depth + ("}" if start else "")):
            url = f"{TRUNKS}/{before['id']}"
            response = await http.patch(url, content=text, headers=JSON)
            statuses.append(response.status_code)
    # An output-only key is passed over, whatever is in it, as long as it can be read.
    assert statuses[:-1] == [400] * 7
    assert statuses[-1] in ((200,) if depth == 100 else (200, 400))
    assert await read(http, before["id"]) == before


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_of_just_a_mebibyte_is_read_and_a_larger_one_is_413(
    http: httpx.AsyncClient, *, chunked: bool
) -> None:
    before = await created(http)
    url = f"{TRUNKS}/{before['id']}"
    text = b'{"is_active": false}'

    def content(size: int) -> Any:
        body = text.ljust(size)
        parts = (body[i : i + 50_000] for i in range(0, size, 50_000))

        async def stream() -> Any:
            for part in parts:
                yield part

        return stream() if chunked else body

    for size in (BODY_BYTES_MAX + 1, 3 * BODY_BYTES_MAX):
        response = await http.patch(url, content=content(size), headers=JSON)
        assert problem(response).status == 413
        assert await read(http, before["id"]) == before
    response = await http.patch(url, content=content(BODY_BYTES_MAX), headers=JSON)
    assert (response.status_code, response.json()["is_active"]) == (200, False)


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "text/json", "json"],
)
async def test_a_body_of_another_content_type_is_415(
    http: httpx.AsyncClient, content_type: str
) -> None:
    before = await created(http)
    headers = {"Content-Type": content_type}
    for method, url in (("PATCH", f"{TRUNKS}/{before['id']}"), ("POST", TRUNKS)):
        response = await http.request(method, url, content=b"{}", headers=headers)
        assert problem(response).status == 415


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "application/json; charset=utf-8"},
        {"Content-Type": "Application/JSON"},
        {"Content-Type": 'application/json;charset="UTF-8"'},
        {},
    ],
    ids=str,
)
async def test_json_is_json_however_its_type_is_written(
    http: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    before = await created(http)
    url, body = f"{TRUNKS}/{before['id']}", b'{"is_active": false}'
    response = await http.patch(url, content=body, headers=headers)
    assert (response.status_code, response.json()["is_active"]) == (200, False)

"""What the keys and values of a PATCH body do."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.http.clients import shared
from tests.http.trunks import ABSENT, GATEWAY, TRUNKS, created, ip_based, problem, read, userpass
from tests.support import password


@pytest.fixture(scope="module")
async def http(postgres: str, template: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the module's gateway; each test minds its own trunks."""
    async with shared(postgres, template) as made:
        yield made


async def patched(http: httpx.AsyncClient, trunk_id: str, body: Any) -> dict[str, Any]:
    response = await http.patch(f"{TRUNKS}/{trunk_id}", json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    assert found == await read(http, trunk_id)
    assert response.headers["ETag"] == found["etag"]
    return found


async def assert_refused(
    http: httpx.AsyncClient, before: dict[str, Any], body: Any, *violations: tuple[str, str]
) -> str:
    """A body is refused for these reasons, and nothing of it is written; the message."""
    response = await http.patch(f"{TRUNKS}/{before['id']}", json=body)
    found = problem(response)
    assert (found.status, found.violations) == (400, list(violations))
    assert await read(http, before["id"]) == before
    return found.message


async def test_null_clears_the_description(http: httpx.AsyncClient) -> None:
    before = await created(http, userpass(description="to be gone"))
    after = await patched(http, before["id"], {"description": None})
    assert after["description"] is None
    assert after["etag"] != before["etag"]
    again = await patched(http, before["id"], {"description": None})
    assert again == after


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ("name", "NOT_CLEARABLE"),
        ("auth_username", "NOT_CLEARABLE"),
        ("auth_password", "NOT_CLEARABLE"),
        ("allow", "NOT_CLEARABLE"),
        ("transport", "NOT_CLEARABLE"),
        ("media_encryption", "NOT_CLEARABLE"),
        ("qualify_frequency", "NOT_CLEARABLE"),
        ("is_active", "NOT_CLEARABLE"),
        ("direct_media", "NOT_CLEARABLE"),
        ("gateways", "NOT_CLEARABLE"),
        ("ip_identifiers", "NOT_CLEARABLE"),
        ("provider", "IMMUTABLE"),
        ("auth_type", "IMMUTABLE"),
        ("phone_numbers", "IMMUTABLE"),
        ("id", "IMMUTABLE"),
    ],
)
async def test_null_is_refused_where_nothing_can_be_cleared(
    http: httpx.AsyncClient, field: str, reason: str
) -> None:
    before = await created(http, userpass(description="stays"))
    await assert_refused(http, before, {field: None, "description": None}, (field, reason))


@pytest.mark.parametrize(
    ("item", "field"),
    [
        ({"gateways": [{"gateway_address": None}]}, "gateways[0].gateway_address"),
        ({"ip_identifiers": [{"ip_address": None}]}, "ip_identifiers[0].ip_address"),
        ({"gateways": [GATEWAY, {}]}, "gateways[1].gateway_address"),
    ],
    ids=str,
)
async def test_null_for_what_a_list_entry_needs_is_as_if_it_were_absent(
    http: httpx.AsyncClient, item: dict[str, Any], field: str
) -> None:
    await assert_refused(http, await created(http), item, (field, "REQUIRED"))


async def test_an_empty_list_of_gateways_is_refused(http: httpx.AsyncClient) -> None:
    before = await created(http)
    message = await assert_refused(http, before, {"gateways": []}, ("gateways", "TOO_FEW"))
    assert message == "At least one gateway is required"


async def test_an_empty_list_of_identifiers_clears_them_on_a_userpass_trunk(
    http: httpx.AsyncClient,
) -> None:
    before = await created(http, userpass(ip_identifiers=[{"ip_address": "192.0.2.1"}]))
    after = await patched(http, before["id"], {"ip_identifiers": []})
    assert after["ip_identifiers"] == []


async def test_an_empty_list_of_identifiers_is_refused_on_an_ip_based_trunk(
    http: httpx.AsyncClient,
) -> None:
    before = await created(http, ip_based())
    violation = ("ip_identifiers", "TOO_FEW")
    message = await assert_refused(http, before, {"ip_identifiers": []}, violation)
    assert message == "ip_identifiers are required for ip-based auth"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"account_id": "other", "user_id": "other", "codecs": 5, "phone_number_count": "9"},
        {"created_at": None, "updated_at": 7, "auth_password_set": False},
        {"auth_password_changed_at": "x", "phone_numbers_truncated": True},
    ],
    ids=["empty", "account and counts", "times", "others"],
)
async def test_a_body_of_nothing_or_output_only_keys_changes_nothing(
    http: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    before = await created(http)
    assert await patched(http, before["id"], body) == before


async def test_an_empty_body_to_no_trunk_is_not_found(http: httpx.AsyncClient) -> None:
    response = await http.patch(f"{TRUNKS}/{ABSENT}", json={})
    assert problem(response).status == 404


async def test_output_only_keys_beside_a_change_are_passed_over(http: httpx.AsyncClient) -> None:
    before = await created(http)
    body = {"qualify_frequency": 7, "account_id": "other", "codecs": ["g729"]}
    body |= {"gateways": [GATEWAY | {"id": "other", "created_at": "never"}]}
    after = await patched(http, before["id"], body)
    moved = {"qualify_frequency", "etag", "updated_at"}
    assert {key for key in after if after[key] != before[key]} == moved


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"nope": 1}, "nope"),
        ({"qualifyFrequency": 1}, "qualifyFrequency"),
        ({"Name": "x"}, "Name"),
        ({"": 1}, ""),
        ({"name.first": 1}, "name.first"),
        ({"auth_password_sealed": "x"}, "auth_password_sealed"),
        ({"revision": 1}, "revision"),
        ({"update_mask": "name"}, "update_mask"),
        ({"gateways": [GATEWAY | {"weight": 1}]}, "gateways[0].weight"),
        ({"gateways": [GATEWAY, {"gateway_address": "b", "host": "c"}]}, "gateways[1].host"),
        ({"ip_identifiers": [{"ip_address": "192.0.2.1", "mask": 8}]}, "ip_identifiers[0].mask"),
    ],
    ids=str,
)
async def test_unknown_keys_are_refused_by_name(
    http: httpx.AsyncClient, body: dict[str, Any], field: str
) -> None:
    before = await created(http)
    sent = body | {"is_active": False}
    message = await assert_refused(http, before, sent, (field, "UNKNOWN_FIELD"))
    assert field.rpartition(".")[2] in message


@pytest.mark.parametrize("body", [{"provider": "plivo"}, {"auth_type": "userpass"}], ids=str)
async def test_an_immutable_key_with_the_stored_value_is_passed_over(
    http: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    before = await created(http)
    assert await patched(http, before["id"], body) == before


@pytest.mark.parametrize("body", [{"provider": "telnyx"}, {"auth_type": "ip-based"}], ids=str)
async def test_an_immutable_key_with_another_value_is_refused(
    http: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    before = await created(http)
    (field,) = body
    await assert_refused(http, before, body | {"is_active": False}, (field, "IMMUTABLE"))


async def test_the_id_may_be_echoed_and_not_be_another(http: httpx.AsyncClient) -> None:
    before, other = await created(http), await created(http)
    echo = {"id": before["id"], "user_id": before["user_id"]}
    assert await patched(http, before["id"], echo) == before
    await assert_refused(http, before, {"id": other["id"], "name": "x"}, ("id", "IMMUTABLE"))


@pytest.fixture
async def numbered(http: httpx.AsyncClient) -> AsyncIterator[dict[str, Any]]:
    """A trunk with NUMBERS, gone after the test."""
    trunk = await created(http, userpass(phone_numbers=NUMBERS))
    yield trunk
    await http.delete(f"{TRUNKS}/{trunk['id']}")


NUMBERS = [{"phone_number": "+919876543210", "name": "Support"}, {"phone_number": "15550100"}]


async def test_phone_numbers_that_are_the_stored_ones_are_passed_over(
    http: httpx.AsyncClient, numbered: dict[str, Any]
) -> None:
    before = numbered
    body = {"phone_numbers": before["phone_numbers"], "qualify_frequency": 5}
    after = await patched(http, before["id"], body)
    assert (after["qualify_frequency"], after["phone_numbers"]) == (5, before["phone_numbers"])
    shorter = {"phone_numbers": NUMBERS}
    assert await patched(http, before["id"], shorter) == after


@pytest.mark.parametrize(
    "numbers",
    [
        [],
        NUMBERS[:1],
        [*NUMBERS, {"phone_number": "15550199"}],
        [NUMBERS[0], {"phone_number": "15550199"}],
        [NUMBERS[0] | {"name": "Other"}, NUMBERS[1]],
        [{"phone_number": "+919876543210", "name": None}, NUMBERS[1]],
        [NUMBERS[0], NUMBERS[1], NUMBERS[1]],
        [NUMBERS[0], {"phone_number": 15550100}],
        [NUMBERS[0] | {"is_active": False}, NUMBERS[1]],
        ["+919876543210", "15550100"],
        [None, None],
        {"0": NUMBERS[0]},
        "15550100",
        7,
        True,
    ],
    ids=str,
)
async def test_phone_numbers_that_are_others_are_refused(
    http: httpx.AsyncClient, numbered: dict[str, Any], numbers: Any
) -> None:
    body = {"phone_numbers": numbers, "is_active": False}
    await assert_refused(http, numbered, body, ("phone_numbers", "IMMUTABLE"))


async def test_all_that_is_wrong_is_told_at_once(http: httpx.AsyncClient) -> None:
    before = await created(http)
    body = {"qualify_frequency": -1, "allow": "PCMU", "provider": "telnyx", "name": ""}
    body |= {"gateways": [{"gateway_address": "sip:x", "port": 0}]}
    found = problem(await http.patch(f"{TRUNKS}/{before['id']}", json=body))
    assert (found.status, found.reason) == (400, "SEVERAL_VIOLATIONS")
    paths = {"gateways[0].gateway_address", "gateways[0].port", *body} - {"gateways"}
    assert set(found.fields) == paths
    assert await read(http, before["id"]) == before


async def test_an_unknown_enum_value_is_told_with_what_else_is_wrong(
    http: httpx.AsyncClient,
) -> None:
    before = await created(http)
    body = {"name": "", "transport": "neither"}
    found = problem(await http.patch(f"{TRUNKS}/{before['id']}", json=body))
    assert set(found.violations) == {("name", "REQUIRED"), ("transport", "UNKNOWN_VALUE")}


async def test_a_password_is_taken_and_never_shown(http: httpx.AsyncClient) -> None:
    before = await created(http)
    after = await patched(http, before["id"], {"auth_password": password()})
    assert "auth_password" not in after
    assert after["auth_password_changed_at"] > before["auth_password_changed_at"]
    assert after["etag"] != before["etag"]

"""Trunks in the HTTP form: to send, to compare, and refusals read back."""

import json
import random
from dataclasses import dataclass
from typing import Any

import httpx

from tests.integration import random_trunks
from tests.support import password

TRUNKS = "/sip-trunks/trunks"
ABSENT = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
"""An id that no trunk has."""
GATEWAY = {"gateway_address": "sip.example.com", "priority": 1}
SPELLINGS = {
    "auth_type": {"USERPASS": "userpass", "IP_BASED": "ip-based"},
    "transport": {"UDP": "transport-udp", "TCP": "transport-tcp", "TLS": "transport-tls"},
    "media_encryption": {"NO": "no", "SDES": "sdes"},
}
_names = iter(range(1, 1 << 30))


def userpass(**fields: Any) -> dict[str, Any]:
    """The body of a valid create, with a name of its own."""
    return {
        "name": f"Acme {next(_names)}",
        "provider": "plivo",
        "auth_type": "userpass",
        "auth_username": "acme",
        "auth_password": password(),
        "gateways": [GATEWAY],
    } | fields


def ip_based(**fields: Any) -> dict[str, Any]:
    """The same for a trunk without credentials."""
    return {
        "name": f"Acme {next(_names)}",
        "provider": "twilio",
        "auth_type": "ip-based",
        "gateways": [GATEWAY],
        "ip_identifiers": [{"ip_address": "203.0.113.5"}],
    } | fields


def spelled(plain: dict[str, Any]) -> dict[str, Any]:
    """A trunk in the words of the protos as the HTTP form spells it."""
    return {
        key: SPELLINGS[key].get(value, "neither") if key in SPELLINGS else value
        for key, value in plain.items()
    }


def at_random(rng: random.Random) -> dict[str, Any]:
    """The body of a valid create, in any spelling that a caller may choose."""
    return spelled(random_trunks.trunk(rng, password()))


async def created(http: httpx.AsyncClient, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """A trunk that was created, as the reply to its GET."""
    response = await http.post(TRUNKS, json=body or userpass())
    assert response.status_code == 201, response.text
    return await read(http, response.json()["id"])


async def read(http: httpx.AsyncClient, trunk_id: str) -> dict[str, Any]:
    """A trunk as it is stored now."""
    response = await http.get(f"{TRUNKS}/{trunk_id}")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    assert response.headers["ETag"] == found["etag"]
    return found


def alone(trunk: dict[str, Any]) -> dict[str, Any]:
    """A trunk without its numbers."""
    numbers = ("phone_numbers", "phone_numbers_truncated")
    return {k: v for k, v in trunk.items() if k not in numbers}


@dataclass(frozen=True)
class Problem:
    """A refusal as a caller gets it."""

    status: int
    reason: str
    message: str
    violations: list[tuple[str, str]]
    """Field path and reason of each, in order."""

    @property
    def fields(self) -> list[str]:
        """The paths refused, in order."""
        return [field for field, _ in self.violations]


def problem(response: httpx.Response) -> Problem:
    """Read a refusal, and see that it has the shape that every refusal has."""
    assert response.status_code >= 400, response.text
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["X-Request-Id"]
    body = json.loads(response.content)
    assert list(body) == ["error", "message", "detail", "reason", "violations"]
    assert body["error"] == response.status_code
    assert isinstance(body["message"], str)
    assert body["message"]
    assert body["detail"] == body["message"]
    assert body["reason"]
    assert all(list(v) == ["field", "reason", "description"] for v in body["violations"])
    told = [(v["field"], v["reason"]) for v in body["violations"]]
    return Problem(body["error"], body["reason"], body["message"], told)

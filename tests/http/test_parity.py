"""The same operations through gRPC and through HTTP leave the same rows and the same errors."""

import json
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import asyncpg
import grpc
import httpx
import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.conftest import running
from tests.http.clients import client
from tests.http.trunks import ABSENT, SPELLINGS, TRUNKS, problem, spelled
from tests.integration import random_trunks
from tests.integration.reference_merge import ENUMS, IMMUTABLE, UPDATABLE
from tests.support import PhoneNumber, SipTrunk, connected, password, refusal

OPERATIONS = 350
STATUSES = {
    "INVALID_ARGUMENT": 400,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
}
NUMBERS_WRONG = ("", "+", "12", "1" * 16, "+1 555 0100", "abc", "\u0661\u0662\u0663\u0664")
STALE = '"0-0"'
EDITS = ("extend", "shrink", "revert")


@dataclass
class Twin:
    """One trunk, or number, as it is known on each side: through gRPC, and through HTTP."""

    grpc_id: str
    http_id: str
    numbers: "list[Twin]" = field(default_factory=list)


NOBODY = Twin(ABSENT, ABSENT)


@dataclass(frozen=True)
class Operation:
    """What is done: the call of the one side and the request of the other."""

    kind: str
    method: str
    request: Any
    verb: str
    path: str
    body: dict[str, Any] | None


def trunk_message(plain: dict[str, Any], nulls: list[str]) -> SipTrunk:
    return SipTrunk(**{k: v for k, v in plain.items() if k not in nulls})


def http_body(plain: dict[str, Any], nulls: list[str]) -> dict[str, Any]:
    return spelled(plain) | dict.fromkeys(nulls)


class Operations:
    """Makes operations at random, and keeps what they have made."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._password = password()
        self._digits = 0
        self._names: list[str] = []
        self.trunks: list[Twin] = []

    def next(self) -> tuple[Operation, Twin]:
        """An operation, and the trunk that it is on."""
        kinds = {"create": 3, "patch": 8, "delete": 1, "add": 4, "rename": 4, "remove": 1}
        kinds |= dict.fromkeys(EDITS, 1)
        kind = self._rng.choices(list(kinds), list(kinds.values()))[0]
        if not self.trunks:
            kind = "create"
        trunk = self._rng.choice([*self.trunks, NOBODY]) if kind != "create" else NOBODY
        operation: Operation = getattr(self, f"_{kind}")(trunk)
        return operation, trunk

    def _chance(self, of: float) -> bool:
        return self._rng.random() < of

    def _spoil(self, plain: dict[str, Any], fields: list[str]) -> None:
        """Put wrong values in some fields."""
        plain |= {f: random_trunks.invalid(self._rng, f, self._password) for f in fields}

    def _create(self, _: Twin) -> Operation:
        plain = random_trunks.trunk(self._rng, self._password)
        if self._chance(0.15) and self._names:
            plain["name"] = self._rng.choice(self._names)
        fields = [f for f in (*UPDATABLE, *IMMUTABLE) if f not in ENUMS]
        fault = self._rng.random()
        if fault < 0.25:
            self._spoil(plain, self._rng.sample(fields, self._rng.randint(1, 3)))
        elif fault < 0.35:
            # Alone: the gateway can't hand a word on that is no value.
            plain[self._rng.choice(list(ENUMS))] = 7
        elif fault < 0.45:
            del plain[self._rng.choice([f for f in plain if f not in ("allow", "disallow")])]
        self._names.append(str(plain.get("name", "x")))
        alone = 7 in (plain.get(f) for f in ENUMS)
        numbers = [self._number() for _ in range(0 if alone else self._rng.choice((0, 0, 1, 3)))]
        request = pb.CreateSipTrunkRequest(
            sip_trunk=trunk_message(plain, []),
            phone_numbers=[PhoneNumber(**number) for number in numbers],
        )
        body = http_body(plain, [])
        if numbers:
            body["phone_numbers"] = numbers
        return Operation("create", "CreateSipTrunk", request, "POST", TRUNKS, body)

    def _patch(self, trunk: Twin) -> Operation:
        fields = [f for f in (*UPDATABLE, *IMMUTABLE) if f not in ENUMS or self._chance(0.6)]
        names = self._rng.sample(fields, self._rng.choice((0, 1, 1, 2, 3, 6)))
        plain = {f: random_trunks.valid(self._rng, f, self._password) for f in names}
        if self._chance(0.8):
            plain = {k: v for k, v in plain.items() if k not in IMMUTABLE}
        if plain.get("name") and self._chance(0.2):
            plain["name"] = self._rng.choice(self._names)
        nulls: list[str] = []
        fault = self._rng.random()
        if fault < 0.2:
            self._spoil(plain, [f for f in names if f not in ENUMS][:3])
        elif fault < 0.3:
            plain = {self._rng.choice(list(ENUMS)): 7}
        elif fault < 0.5:
            nulls = self._rng.sample(names, min(len(names), 2))
            nulls = [f for f in nulls if f not in ("gateways", "ip_identifiers")]
        message = trunk_message(plain, nulls)
        message.id = trunk.grpc_id
        body = http_body(plain, nulls)
        if self._chance(0.1):
            message.etag = body["etag"] = STALE
        request = pb.UpdateSipTrunkRequest(sip_trunk=message)
        request.update_mask.paths.extend(dict.fromkeys([*plain, *nulls]))
        if not request.update_mask.paths:
            request.ClearField("update_mask")
        path = f"{TRUNKS}/{trunk.http_id}"
        return Operation("patch", "UpdateSipTrunk", request, "PATCH", path, body)

    def _delete(self, trunk: Twin) -> Operation:
        request = pb.DeleteSipTrunkRequest(id=trunk.grpc_id, force=True)
        path = f"{TRUNKS}/{trunk.http_id}"
        return Operation("delete", "DeleteSipTrunk", request, "DELETE", path, None)

    def _number(self) -> dict[str, Any]:
        self._digits += 1
        digits = self._rng.randint(1, self._digits) if self._chance(0.1) else self._digits
        plus = self._rng.choice(("", "+"))
        number: dict[str, Any] = {"phone_number": f"{plus}{10_000_000 + digits}"}
        if self._chance(0.1):
            number["phone_number"] = self._rng.choice(NUMBERS_WRONG)
        if self._chance(0.5):
            number["name"] = self._rng.choice(("", "Support", "Größe", " x", "x" * 101, "a\tb"))
        if self._chance(0.3):
            number["e164_check_enabled"] = self._chance(0.7)
        return number

    def _add(self, trunk: Twin) -> Operation:
        number = self._number()
        request = pb.CreatePhoneNumberRequest(
            trunk_id=trunk.grpc_id, phone_number=PhoneNumber(**number)
        )
        path = f"{TRUNKS}/{trunk.http_id}/numbers"
        return Operation("add", "CreatePhoneNumber", request, "POST", path, number)

    def _chosen(self, trunk: Twin) -> Twin:
        others = [n for t in self.trunks for n in t.numbers]
        known = trunk.numbers if self._chance(0.8) else others
        return self._rng.choice(known) if known else NOBODY

    def _rename(self, trunk: Twin) -> Operation:
        number = self._chosen(trunk)
        choices: list[dict[str, Any]] = [
            {"name": "Support"},
            {"name": "Verkauf"},
            {"name": ""},
            {"name": None},
            {"name": "x" * 101},
            {},
            {"phone_number": "+15550199"},
            {"e164_check_enabled": True},
            {"name": "a", "phone_number": None},
        ]
        body = self._rng.choice(choices)
        message = PhoneNumber(**{k: v for k, v in body.items() if v is not None})
        message.id = number.grpc_id
        request = pb.UpdatePhoneNumberRequest(trunk_id=trunk.grpc_id, phone_number=message)
        request.update_mask.paths.extend(body)
        path = f"{TRUNKS}/{trunk.http_id}/numbers/{number.http_id}"
        return Operation("rename", "UpdatePhoneNumber", request, "PATCH", path, body)

    def _remove(self, trunk: Twin) -> Operation:
        number = self._chosen(trunk)
        request = pb.DeletePhoneNumberRequest(trunk_id=trunk.grpc_id, id=number.grpc_id)
        path = f"{TRUNKS}/{trunk.http_id}/numbers/{number.http_id}"
        return Operation("remove", "DeletePhoneNumber", request, "DELETE", path, None)

    def _extend(self, trunk: Twin) -> Operation:
        name, method = self._rng.choice(
            [("gateways", "AddGateways"), ("ip_identifiers", "AddIpIdentifiers")]
        )
        make = random_trunks.invalid if self._chance(0.2) else random_trunks.valid
        body = {name: make(self._rng, name, self._password)}
        request = getattr(pb, f"{method}Request")(trunk_id=trunk.grpc_id, **body)
        path = f"{TRUNKS}/{trunk.http_id}/{name.replace('_', '-')}"
        return Operation("extend", method, request, "POST", path, body)

    def _shrink(self, trunk: Twin) -> Operation:
        some = random_trunks.valid(self._rng, "ip_identifiers", self._password)
        addresses = [one["ip_address"] for one in some]
        if self._chance(0.2):
            addresses.append("10.0.0.1/8")
        request = pb.RemoveIpIdentifiersRequest(trunk_id=trunk.grpc_id, ip_addresses=addresses)
        query = urlencode({"ip_addresses": addresses}, doseq=True)
        path = f"{TRUNKS}/{trunk.http_id}/ip-identifiers?{query}"
        return Operation("shrink", "RemoveIpIdentifiers", request, "DELETE", path, None)

    def _revert(self, trunk: Twin) -> Operation:
        revision = self._rng.choice((0, 1, 1, 1, 2, 3, 1 << 40))
        request = pb.RevertSipTrunkRequest(trunk_id=trunk.grpc_id, revision=revision)
        body = {"revision": revision}
        path = f"{TRUNKS}/{trunk.http_id}:revert"
        return Operation("revert", "RevertSipTrunk", request, "POST", path, body)

    def done(self, operation: Operation, trunk: Twin, reply: Any, body: dict[str, Any]) -> None:
        """Keep what an operation that succeeded has made, forget what it took away."""
        if operation.kind == "create":
            made = Twin(reply.id, body["id"])
            self.trunks.append(made)
        elif operation.kind == "delete":
            self.trunks.remove(trunk)
        elif operation.kind == "add":
            trunk.numbers.append(Twin(reply.id, body["id"]))
        elif operation.kind == "remove":
            gone = operation.request.id
            trunk.numbers[:] = [n for n in trunk.numbers if n.grpc_id != gone]


VOLATILE = {"id", "trunk_id", "created_at", "updated_at", "auth_password_sealed"}


async def rows(url: str) -> dict[str, list[dict[str, Any]]]:
    """Every row of trunks and numbers, without ids, times and sealed values."""
    connection = await asyncpg.connect(url)
    try:
        trunks = await connection.fetch("SELECT * FROM trunks ORDER BY account_id, name")
        numbers = await connection.fetch(
            "SELECT n.*, t.name AS trunk FROM phone_numbers AS n"
            " JOIN trunks AS t ON (t.account_id, t.id) = (n.account_id, n.trunk_id)"
            " ORDER BY n.digits"
        )
    finally:
        await connection.close()
    shown = []
    for row in trunks:
        found = {k: v for k, v in row.items() if k not in VOLATILE}
        found["gateways"] = entries(found["gateways"])
        found["auth_password_changed_at"] = row["auth_password_changed_at"] is not None
        found["sealed"] = row["auth_password_sealed"] is not None
        found["moved"] = row["updated_at"] != row["created_at"]
        shown.append(found)
    return {
        "trunks": shown,
        "numbers": [{k: v for k, v in row.items() if k not in VOLATILE} for row in numbers],
    }


async def history(url: str) -> list[tuple[Any, ...]]:
    """What every revision says of its call."""
    connection = await asyncpg.connect(url)
    try:
        found = await connection.fetch(
            "SELECT r.trunk ->> 'name', r.revision, r.method, r.token_id, r.request_id, r.changed,"
            " ARRAY(SELECT unnest(r.mask) ORDER BY 1), r.deleted"
            " FROM trunk_revisions AS r ORDER BY 1, 2, r.changed_at"
        )
    finally:
        await connection.close()
    return [tuple(row) for row in found]


def entries(text: str) -> list[Any]:
    return [{k: v for k, v in g.items() if k not in ("id", "created_at")} for g in json.loads(text)]


def equivalent(error: grpc.aio.AioRpcError, response: httpx.Response) -> str:
    """See that two refusals say the same; the reason."""
    ours, theirs = refusal(error), problem(response)
    status = STATUSES[ours.code]
    reasons = set(ours.violations.values())
    if reasons == {"SDES_NEEDS_TLS"}:
        status = 422
    assert (theirs.status, theirs.reason) == (status, ours.reason)
    assert theirs.violations == list(ours.violations.items())
    return ours.reason


def assert_same_reply(reply: Any, body: dict[str, Any]) -> None:
    """See that a reply has what the other side's has, but for ids and times."""
    for descriptor in reply.DESCRIPTOR.fields:
        name = descriptor.name
        if name in VOLATILE | {"etag", "gateways", "byot_trunk_id", "e164_check_enabled"}:
            continue
        if name not in body:
            assert not reply.HasField(name) if descriptor.has_presence else False, name
            continue
        value = random_trunks.plain(reply).get(name)
        if name == "ip_identifiers" or descriptor.name == "codecs":
            assert body[name] == (value or [])
        elif name in SPELLINGS:
            assert body[name] == SPELLINGS[name][str(value)]
        elif name != "auth_password_changed_at":
            assert body[name] == value, name


@pytest.mark.parametrize("seed", range(3))
async def test_the_same_operations_leave_the_same_rows_and_give_the_same_errors(
    database: str, empty_database: str, seed: int
) -> None:
    operations, ends = Operations(seed), Counter[str]()
    async with (
        running(database) as one,
        running(empty_database, http_address="127.0.0.1:0") as other,
        connected(one.grpc_address) as stub,
        client(other.http_address) as http,
    ):
        for _ in range(OPERATIONS):
            operation, trunk = operations.next()
            content: Any = {} if operation.body is None else {"json": operation.body}
            response = await http.request(operation.verb, operation.path, **content)
            try:
                reply = await getattr(stub, operation.method)(operation.request)
            except grpc.aio.AioRpcError as error:
                ends[equivalent(error, response)] += 1
                continue
            assert response.status_code in (200, 201), (response.text, operation)
            ends[f"{operation.kind} done"] += 1
            body = response.json()
            if operation.kind in ("create", "patch", "add", "rename", *EDITS):
                assert_same_reply(reply, body)
            operations.done(operation, trunk, reply, body)
        assert await rows(database) == await rows(empty_database)
        assert await history(database) == await history(empty_database)
    # That nothing was left out: every kind has succeeded, and been refused for many reasons.
    assert {f"{kind} done" for kind in ("create", "patch", "add", "rename", *EDITS)} <= set(ends)
    assert len(ends) > 15

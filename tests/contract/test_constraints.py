"""The rules over two fields stand twice: in `Rules.check` and in the schema's named constraints.

Trunks of every combination go past the service into PostgreSQL, which must take exactly those in
which `check` finds nothing, and must name a rule that `check` names.
"""

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest

from tests.support import KEYS, Gateway, IpIdentifier, SipTrunk, password
from trunkline import config, keys
from trunkline.codecs import Catalogue, CodecError
from trunkline.rules import Change, Rules
from trunkline.sealing import KeyRing
from trunkline.store.database import ConstraintError, Database
from trunkline.store.mutations import Mutation, Mutations
from trunkline.store.trunks import Edit, TrunkStore
from trunkline.ulids import Ulids

CATALOGUE = Catalogue(config.Settings().codec_names())
RULES = Rules(CATALOGUE)
REASONS = {
    "trunks_sdes_needs_tls": {"SDES_NEEDS_TLS"},
    "trunks_ip_based_needs_identifiers": {"TOO_FEW"},
    "trunks_userpass_needs_credentials": {"REQUIRED"},
    "trunks_ip_based_has_no_credentials": {"NOT_ON_IP_BASED"},
    "trunks_codec_left": {"NO_CODEC_LEFT"},
}
ACCOUNT = "acme"
CREATE = Mutation(ACCOUNT, "test", "CreateSipTrunk")
UPDATE = Mutation(ACCOUNT, "test", "UpdateSipTrunk")
CODEC_PAIRS = 8
TRANSITIONS = 400
_TOKENS = ["ulaw", "alaw", "g722", "!ulaw", "!alaw", "!g722", "all", "ulaw:20", "alaw:30", "ULAW"]


@dataclass(frozen=True)
class Row:
    """A merged trunk, in what the cross-field rules look at."""

    auth_type: str
    auth_username: str | None
    auth_password_sealed: bytes | None
    ip_identifiers: tuple[str, ...]
    transport: str
    media_encryption: str
    allow: str
    disallow: str

    def reasons(self) -> set[str]:
        """What `Rules.check` says of it."""
        trunk = SipTrunk(
            auth_type=SipTrunk.AuthType.Value(self.auth_type),
            auth_username=self.auth_username,
            auth_password_set=self.auth_password_sealed is not None,
            ip_identifiers=[IpIdentifier(ip_address=a) for a in self.ip_identifiers],
            transport=SipTrunk.Transport.Value(self.transport),
            media_encryption=SipTrunk.MediaEncryption.Value(self.media_encryption),
            allow=self.allow,
            disallow=self.disallow,
        )
        return {v.reason for v in RULES.check(trunk, Change())}

    def columns(self) -> dict[str, Any]:
        """Its columns."""
        return {
            "auth_type": self.auth_type,
            "auth_username": self.auth_username,
            "auth_password_sealed": self.auth_password_sealed,
            "auth_password_key_id": self.auth_password_sealed and "k1",
            "ip_identifiers": json.dumps([{"ip_address": a} for a in self.ip_identifiers]),
            "transport": self.transport,
            "media_encryption": self.media_encryption,
            "allow": self.allow,
            "allow_codecs": list(CATALOGUE.walk(self.allow)),
            "disallow": self.disallow,
            "disallow_codecs": list(CATALOGUE.removed(self.disallow)),
        }


def codecs(draw: random.Random, *, removal: bool) -> str:
    """A codec list that is valid by itself."""
    while True:
        sent = ",".join(draw.choices(_TOKENS, k=draw.randint(1, 4)))
        try:
            return CATALOGUE.normal(sent, removal=removal)
        except CodecError:
            continue


def rows(seed: int) -> Iterator[Row]:
    """Every combination of the enumerable values, each with several codec lists."""
    draw = random.Random(seed)
    for values in itertools.product(
        ("USERPASS", "IP_BASED"),
        (None, "acme"),
        (None, b"\x01sealed"),
        ((), ("203.0.113.5",)),
        ("UDP", "TCP", "TLS"),
        ("NO", "SDES"),
    ):
        for _ in range(CODEC_PAIRS):
            yield Row(*values, codecs(draw, removal=False), codecs(draw, removal=True))


async def verdict(connection: "asyncpg.Connection[Any]", statement: str, row: Row) -> str | None:
    """The constraint that refuses a row; None where PostgreSQL takes it. Nothing is kept."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(statement, ACCOUNT, *row.columns().values())
    except asyncpg.CheckViolationError as error:
        return error.constraint_name
    else:
        return None
    finally:
        await transaction.rollback()


@pytest.fixture
async def connection(database: str) -> Any:
    """A connection, with an account and a valid trunk `stored` in it."""
    connection = await asyncpg.connect(database)
    await connection.execute("INSERT INTO accounts (id) VALUES ($1)", ACCOUNT)
    await connection.execute(
        """INSERT INTO trunks (account_id, id, name, provider, auth_type, gateways, ip_identifiers,
                               created_at, updated_at)
           VALUES ($1, 'stored', 'stored', 'plivo', 'IP_BASED',
                   '[{"gateway_address": "sip.example.com", "priority": 1}]',
                   '[{"ip_address": "203.0.113.5"}]', now(), now())""",
        ACCOUNT,
    )
    yield connection
    await connection.close()


def _insert() -> str:
    columns = list(next(rows(0)).columns())
    values = ", ".join(f"${i}" for i in range(2, len(columns) + 2))
    return f"""INSERT INTO trunks (account_id, id, name, provider, gateways, created_at, updated_at,
                                   {", ".join(columns)})
               VALUES ($1, 'new', 'new', 'plivo',
                       '[{{"gateway_address": "sip.example.com", "priority": 1}}]', now(), now(),
                       {values})"""


def _update() -> str:
    columns = list(next(rows(0)).columns())
    values = ", ".join(f"{c} = ${i}" for i, c in enumerate(columns, 2))
    return f"UPDATE trunks SET {values} WHERE account_id = $1 AND id = 'stored'"


@pytest.mark.parametrize(
    ("statement", "seed"), [(_insert(), 1), (_update(), 2)], ids=["insert", "update"]
)
async def test_constraints_take_exactly_the_trunks_in_which_check_finds_nothing(
    connection: "asyncpg.Connection[Any]", statement: str, seed: int
) -> None:
    seen, taken = set(), 0
    for row in rows(seed):
        constraint = await verdict(connection, statement, row)
        reasons = row.reasons()
        if constraint is None:
            assert not reasons, row
            taken += 1
        else:
            assert REASONS[constraint] & reasons, (row, constraint, reasons)
            seen.add(constraint)
    assert seen == REASONS.keys()
    assert taken > 0


@pytest.mark.parametrize("reason", sorted(set().union(*REASONS.values())))
async def test_each_rule_that_check_alone_finds_broken_has_its_constraint(
    connection: "asyncpg.Connection[Any]", reason: str
) -> None:
    alone = [row for row in rows(3) if row.reasons() == {reason}]
    assert alone
    for row in alone:
        constraint = await verdict(connection, _insert(), row)
        assert constraint is not None, row
        assert reason in REASONS[constraint]


@pytest.fixture
async def store(database: str) -> Any:
    """A store with the account that the trunks are in."""
    opened = await Database.open(database, 2, 100)
    await opened.row("INSERT INTO accounts (id) VALUES ($1)", ACCOUNT)
    ring = KeyRing(keys.parsed(KEYS))
    mutations = Mutations(opened, ring, lambda: None)
    yield TrunkStore(opened, CATALOGUE, ring, Ulids(), mutations)
    await opened.close()


@pytest.mark.parametrize("auth_type", ["USERPASS", "IP_BASED"])
@pytest.mark.parametrize("credentials", list(itertools.product((False, True), repeat=2)))
@pytest.mark.parametrize("identified", [False, True])
async def test_constraints_judge_a_creation_as_check_judges_it(
    store: TrunkStore,
    auth_type: str,
    credentials: tuple[bool, bool],
    identified: bool,  # noqa: FBT001
) -> None:
    sent = SipTrunk(
        name="Acme",
        provider="plivo",
        auth_type=SipTrunk.AuthType.Value(auth_type),
        auth_username="acme" if credentials[0] else None,
        auth_password=password() if credentials[1] else None,
        gateways=[Gateway(gateway_address="sip.example.com")],
        ip_identifiers=[IpIdentifier(ip_address="203.0.113.5")] * identified,
    )
    change = RULES.creation(sent)
    assert not change.violations
    violations = RULES.check(RULES.merged(SipTrunk(), change), change)
    if not violations:
        made = await store.create(CREATE, change.values, [])
        assert made is not None
        assert made.auth_password_set == credentials[1]
        return
    with pytest.raises(ConstraintError) as error:
        await store.create(CREATE, change.values, [])
    assert REASONS[error.value.constraint or ""] & {v.reason for v in violations}


@pytest.mark.parametrize("auth_type", ["USERPASS", "IP_BASED"])
async def test_constraints_judge_a_change_of_a_stored_trunk_as_check_judges_the_merged_one(
    store: TrunkStore, auth_type: str
) -> None:
    draw, secret = random.Random(auth_type), password()
    sent = SipTrunk(
        name="Acme",
        provider="plivo",
        auth_type=SipTrunk.AuthType.Value(auth_type),
        gateways=[Gateway(gateway_address="sip.example.com")],
        ip_identifiers=[IpIdentifier(ip_address="203.0.113.5")],
    )
    if auth_type == "USERPASS":
        sent.auth_username, sent.auth_password = "acme", secret
    stored = await store.create(CREATE, RULES.creation(sent).values, [])
    assert stored is not None
    written = refused = 0
    for _ in range(TRANSITIONS):
        possible = {
            "auth_username": draw.choice([None, "acme", "other"]),
            "auth_password": secret,
            "ip_identifiers": draw.choice([[], [{"ip_address": "198.51.100.0/24"}]]),
            "transport": draw.choice(["UDP", "TCP", "TLS"]),
            "media_encryption": draw.choice(["NO", "SDES"]),
            "allow": codecs(draw, removal=False),
            "disallow": codecs(draw, removal=True),
        }
        names = draw.sample(sorted(possible), draw.randint(1, 3))
        change = Change(values={name: possible[name] for name in names})
        violations = RULES.check(RULES.merged(stored, change), change)
        if violations:
            with pytest.raises(ConstraintError) as error:
                await store.update(UPDATE, Edit(stored.id, None, change))
            assert REASONS[error.value.constraint or ""] & {v.reason for v in violations}
            refused += 1
        else:
            updated = await store.update(UPDATE, Edit(stored.id, None, change))
            assert updated is not None
            stored = updated.trunk
            written += 1
    assert written > TRANSITIONS / 10
    assert refused > TRANSITIONS / 10

import asyncio
from typing import Any

import pytest

from tests.integration.conftest import created, read, violations
from tests.support import Gateway, IpIdentifier, SipTrunk, ip_based, refused, update, userpass

SECURE: dict[str, Any] = {"transport": SipTrunk.TLS, "media_encryption": SipTrunk.SDES}


@pytest.mark.parametrize(
    ("stored", "sent", "refusal"),
    [
        ({}, {"media_encryption": SipTrunk.SDES}, {"media_encryption": "SDES_NEEDS_TLS"}),
        (SECURE, {"transport": SipTrunk.UDP}, {"transport": "SDES_NEEDS_TLS"}),
        (
            {},
            {"transport": SipTrunk.TCP, "media_encryption": SipTrunk.SDES},
            {"media_encryption": "SDES_NEEDS_TLS"},
        ),
        ({"disallow": "g722"}, {"allow": "g722"}, {"allow": "NO_CODEC_LEFT"}),
        ({"allow": "g722"}, {"disallow": "g722"}, {"disallow": "NO_CODEC_LEFT"}),
        ({}, {"allow": "g722", "disallow": "g722,ulaw"}, {"allow": "NO_CODEC_LEFT"}),
    ],
)
@pytest.mark.parametrize("masked", [True, False])
async def test_update_is_judged_on_the_trunk_as_it_would_be(
    stub: Any,
    stored: dict[str, Any],
    sent: dict[str, Any],
    refusal: dict[str, str],
    *,
    masked: bool,
) -> None:
    trunk = await created(stub, userpass(**stored))
    paths = [*sent, "description"] if masked else []
    error = await refused(stub.UpdateSipTrunk(update(trunk.id, *paths, description="lost", **sent)))
    assert (error.code, error.violations) == ("INVALID_ARGUMENT", refusal)
    assert await read(stub, trunk.id) == trunk


@pytest.mark.parametrize(
    ("stored", "sent"),
    [
        ({"transport": SipTrunk.TLS}, {"media_encryption": SipTrunk.SDES}),
        (SECURE, {"transport": SipTrunk.UDP, "media_encryption": SipTrunk.NO}),
        ({}, SECURE),
        ({"disallow": "g722", "allow": "ulaw,g722"}, {"allow": "g722,alaw"}),
        ({"allow": "g722"}, {"disallow": "ulaw"}),
        ({"allow": "g722"}, {"disallow": "g722", "allow": "ulaw,g722"}),
    ],
)
async def test_update_is_done_where_stored_values_make_it_valid(
    stub: Any, stored: dict[str, Any], sent: dict[str, Any]
) -> None:
    trunk = await created(stub, userpass(**stored))
    after = await stub.UpdateSipTrunk(update(trunk.id, *sent, **sent))
    assert {name: getattr(after, name) for name in sent} == sent


async def test_update_of_an_ip_based_trunk_leaves_it_an_identifier(stub: Any) -> None:
    trunk = await created(stub, ip_based())
    error = await refused(stub.UpdateSipTrunk(update(trunk.id, "ip_identifiers")))
    assert error.violations == {"ip_identifiers": "TOO_FEW"}
    assert await read(stub, trunk.id) == trunk


async def test_update_of_the_codec_lists_moves_the_offer(stub: Any) -> None:
    trunk = await created(stub)
    after = await stub.UpdateSipTrunk(
        update(trunk.id, "allow", "disallow", allow="opus,ulaw:20,alaw", disallow="alaw")
    )
    assert list(after.codecs) == ["opus", "ulaw:20"]
    after = await stub.UpdateSipTrunk(update(trunk.id, "disallow", disallow="all"))
    assert list(after.codecs) == ["opus", "ulaw:20", "alaw"]


async def test_update_lists_field_and_merged_violations_at_once(stub: Any) -> None:
    trunk = await created(stub, userpass(allow="g722"))
    error = await refused(
        stub.UpdateSipTrunk(
            update(
                trunk.id,
                name="",
                provider="another",
                disallow="g722",
                media_encryption=SipTrunk.SDES,
                gateways=[
                    Gateway(gateway_address="sip.example.com"),
                    Gateway(gateway_address="sip.example.net", port=0, priority=-1),
                ],
                ip_identifiers=[IpIdentifier(ip_address="192.0.2.1/24")],
            )
        )
    )
    assert error.violations == {
        "name": "REQUIRED",
        "provider": "IMMUTABLE",
        "disallow": "NO_CODEC_LEFT",
        "media_encryption": "SDES_NEEDS_TLS",
        "gateways[1].port": "OUT_OF_RANGE",
        "gateways[1].priority": "OUT_OF_RANGE",
        "ip_identifiers[0].ip_address": "INVALID_FORM",
    }
    assert error.reason == "SEVERAL_VIOLATIONS"


async def test_update_lists_at_most_50_violations_and_counts_the_rest(stub: Any) -> None:
    trunk = await created(stub)
    bad = [IpIdentifier() for _ in range(256)]
    error = await refused(
        stub.UpdateSipTrunk(update(trunk.id, "ip_identifiers", ip_identifiers=bad))
    )
    assert error.fields == [f"ip_identifiers[{n}].ip_address" for n in range(50)]
    assert error.metadata["violationsLeftOut"] == "206"
    assert "206 more" in error.message


async def test_update_lists_long_violations_within_4_kilobytes(stub: Any) -> None:
    trunk = await created(stub)
    bad = [Gateway(gateway_address=f"{n}{'ü!' * 120}", port=0) for n in range(32)]
    error = await refused(stub.UpdateSipTrunk(update(trunk.id, "gateways", gateways=bad)))
    found = violations(error)
    assert error.details.ByteSize() <= 4096
    assert 10 < len(found) <= 50
    assert int(error.metadata["violationsLeftOut"]) == 64 - len(found)


async def test_gateways_keep_their_ids_while_address_and_port_stay(stub: Any) -> None:
    before = await created(
        stub,
        userpass(
            gateways=[
                Gateway(gateway_address="a.example.com"),
                Gateway(gateway_address="b.example.com", port=5080),
                Gateway(gateway_address="c.example.com"),
            ]
        ),
    )
    ids = {g.gateway_address: (g.id, g.created_at.ToDatetime()) for g in before.gateways}
    after = await stub.UpdateSipTrunk(
        update(
            before.id,
            "gateways",
            gateways=[
                Gateway(gateway_address="d.example.com"),
                Gateway(gateway_address="C.example.com.", priority=7),
                Gateway(gateway_address="b.example.com", port=5081),
                Gateway(gateway_address="a.example.com", priority=0),
            ],
        )
    )
    now = {g.gateway_address: (g.id, g.created_at.ToDatetime()) for g in after.gateways}
    assert (now["a.example.com"], now["c.example.com"]) == (
        ids["a.example.com"],
        ids["c.example.com"],
    )
    assert now["b.example.com"][0] not in {i for i, _ in ids.values()}
    assert len({i for i, _ in now.values()}) == 4


async def test_a_gateway_that_gains_a_port_is_another(stub: Any) -> None:
    before = await created(stub)
    after = await stub.UpdateSipTrunk(
        update(
            before.id, "gateways", gateways=[Gateway(gateway_address="sip.example.com", port=5060)]
        )
    )
    assert after.gateways[0].id != before.gateways[0].id


async def test_the_id_of_a_gateway_is_not_the_caller_s_to_choose(stub: Any) -> None:
    before = await created(stub)
    mine = Gateway(gateway_address="other.example.com", id=before.gateways[0].id)
    mine.created_at.FromSeconds(1)
    after = await stub.UpdateSipTrunk(update(before.id, "gateways", gateways=[mine]))
    assert after.gateways[0].id != before.gateways[0].id
    assert after.gateways[0].created_at.ToDatetime() >= before.created_at.ToDatetime()


async def test_gateways_are_in_the_order_of_priority_then_position(stub: Any) -> None:
    wanted = [("c", 5), ("a", 1), ("d", 0), ("b", 1), ("f", 65535), ("e", 5)]
    gateways = [Gateway(gateway_address=f"{n}.example.com", priority=p) for n, p in wanted]
    gateways.append(Gateway(gateway_address="g.example.com"))  # priority 1 by default
    before = await created(stub)
    after = await stub.UpdateSipTrunk(update(before.id, "gateways", gateways=gateways))
    assert "".join(g.gateway_address[0] for g in after.gateways) == "dabgcef"
    assert after == await read(stub, before.id)


async def test_a_change_of_order_alone_is_a_change(stub: Any) -> None:
    both = [Gateway(gateway_address="a.example.com"), Gateway(gateway_address="b.example.com")]
    before = await created(stub, userpass(gateways=both))
    after = await stub.UpdateSipTrunk(update(before.id, "gateways", gateways=both[::-1]))
    assert [g.gateway_address for g in after.gateways] == ["b.example.com", "a.example.com"]
    assert [g.id for g in after.gateways] == [g.id for g in before.gateways][::-1]
    assert after.etag != before.etag


@pytest.mark.parametrize(
    "gateways",
    [
        [Gateway(gateway_address="a.example"), Gateway(gateway_address="A.example.")],
        [
            Gateway(gateway_address="192.0.2.1", port=5080, priority=1),
            Gateway(gateway_address="::ffff:192.0.2.1", port=5080, priority=2),
        ],
        [Gateway(gateway_address="[2001:db8::1]"), Gateway(gateway_address="2001:DB8:0::1")],
    ],
)
async def test_update_to_one_address_and_port_twice_is_refused(
    stub: Any, gateways: list[Gateway]
) -> None:
    trunk = await created(stub)
    error = await refused(stub.UpdateSipTrunk(update(trunk.id, "gateways", gateways=gateways)))
    assert (error.code, error.violations) == ("INVALID_ARGUMENT", {"gateways[1]": "DUPLICATE"})


async def test_concurrent_flips_of_two_fields_of_one_rule_never_break_it(stub: Any) -> None:
    """Writers of one field each, without etags, meet in the database alone."""
    trunk = await created(stub, userpass(transport=SipTrunk.TLS))
    flips: list[dict[str, Any]] = [
        {"transport": SipTrunk.UDP},
        {"transport": SipTrunk.TLS},
        {"media_encryption": SipTrunk.SDES},
        {"media_encryption": SipTrunk.NO},
    ]

    async def flip(sent: dict[str, Any]) -> None:
        for _ in range(12):
            call = stub.UpdateSipTrunk(update(trunk.id, *sent, **sent))
            answer = (await asyncio.gather(call, return_exceptions=True))[0]
            if isinstance(answer, SipTrunk):
                secure = answer.media_encryption != SipTrunk.SDES
                assert secure or answer.transport == SipTrunk.TLS
            else:
                error = await refused(call)
                assert error.code == "INVALID_ARGUMENT"
                assert error.fields
                assert set(error.fields) <= {"transport", "media_encryption"}

    await asyncio.gather(*(flip(sent) for sent in flips))

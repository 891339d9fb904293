"""Plain trunks, masks and patches made at random, in every spelling that a caller may choose."""

import itertools
import random
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.message import Message

from tests.integration.reference_merge import (
    BOOLEANS,
    CODECS,
    ENUMS,
    IGNORED,
    IMMUTABLE,
    UPDATABLE,
)

Plain = dict[str, Any]

_numbers = itertools.count(1)
_WORDS = (
    "Acme",
    "Zürich",
    "Ångström",
    "東京",
    "Ho\u0302tel",
    "e\u0301cole",
    "a-b_c",
    "O'Neil",
    "🚀",
)
_HOSTS = (
    "sip.example.com",
    "SIP.Example.COM",
    "sip.example.com.",
    "_sip._udp.Example.NET.",
    "xn--bcher-kva.example",
    "localhost",
    "a" * 63 + ".example",
    "192.0.2.1",
    "2001:DB8::1",
    "[2001:db8:0:0:0:0:0:2]",
    "[2001:0DB8::3]",
    "::ffff:192.0.2.7",
    "[::FFFF:c000:0208]",
)
_HOSTS_WRONG = (
    "",
    "sip:sip.example.com",
    "sip.example.com:5060",
    "[2001:db8::1]:5060",
    "fe80::1%eth0",
    "010.0.0.1",
    "1.2.3",
    "256.1.1.1",
    "sip.example.123",
    "-a.example",
    "a-.example",
    "a..example",
    "a b.example",
    "bücher.example",
    "a" * 64 + ".example",
    ".".join(["a" * 60] * 5),
    "2001:db8::zz",
    "sip.example.com\n",
)
_RANGES = (
    "203.0.113.5",
    "203.0.113.5/32",
    "198.51.100.0/24",
    "10.0.0.0/8",
    "2001:DB8::5",
    "2001:db8:0:0::6/128",
    "2001:db8:1::/48",
    "2001:2000::/19",
    "::ffff:203.0.113.9",
    "::ffff:203.0.113.64/122",
)
_RANGES_WRONG = (
    "",
    "203.0.113.5/24",
    "0.0.0.0/0",
    "10.0.0.0/7",
    "2001:db8::1/64",
    "2000::/18",
    "224.0.0.1",
    "169.254.1.1",
    "fe80::1",
    "ff02::1",
    "::",
    "0.0.0.0",
    "203.0.113.0/255.255.255.0",
    "203.0.113.5/",
    "010.0.0.1",
    "sip.example.com",
    "::ffff:203.0.113.9/120",
)
_UNKNOWN_PATHS = (
    "",
    "nope",
    "Name",
    "qualifyFrequency",
    " name",
    "name.first",
    "gateways.port",
    "gateways.0",
    "gateways.*.port",
    "ip_identifiers.ip_address",
    "name,description",
)


def plain(message: Message) -> dict[str, Any]:
    """A message as a plain dictionary: what is present, enum values as names."""
    found: dict[str, Any] = {}
    for descriptor in message.DESCRIPTOR.fields:
        value = getattr(message, descriptor.name)
        if descriptor.is_repeated:
            found[descriptor.name] = [plain(v) if isinstance(v, Message) else v for v in value]
        elif descriptor.has_presence and not message.HasField(descriptor.name):
            continue
        elif isinstance(value, Message):
            found[descriptor.name] = (value.seconds, value.nanos)  # type: ignore[attr-defined]
        elif descriptor.enum_type:
            found[descriptor.name] = descriptor.enum_type.values_by_number[value].name
        else:
            found[descriptor.name] = value
    return found


def trunk(rng: random.Random, password: str) -> Plain:
    """A valid trunk for a create: some fields sent, the rest left to their defaults."""
    plain: Plain = {field: valid(rng, field, password) for field in IMMUTABLE}
    for field in UPDATABLE:
        if rng.random() < 0.6:
            plain[field] = valid(rng, field, password)
    plain |= {"name": valid(rng, "name", ""), "gateways": valid(rng, "gateways", "")}
    if plain["auth_type"] == "USERPASS":
        plain |= {"auth_username": words(rng, 128), "auth_password": password}
    else:
        plain.pop("auth_username", None)
        plain.pop("auth_password", None)
        plain["ip_identifiers"] = ranges(rng, rng.randint(1, 5))
    if plain.get("media_encryption") == "SDES":
        plain["transport"] = "TLS"
    if "disallow" in plain:
        # Of what stays allowed, one codec is never taken out.
        plain["allow"] = f"{plain.get('allow', 'alaw')},!gsm,gsm"
        plain["disallow"] = spelled(rng, rng.sample(CODECS[:-1], 2))
    return plain


def change(rng: random.Random, stored: Plain, password: str) -> tuple[list[str] | None, Plain]:
    """A mask and a patch: the mask of any kind, the patch with right and wrong values.

    At most three values are wrong, so that the error need not leave any out.
    """
    sendable = [*UPDATABLE, *IMMUTABLE]
    sent = rng.sample(sendable, rng.choice((0, 1, 1, 2, 2, 3, 5, 8, len(sendable))))
    wrong = set(rng.sample(sent, min(len(sent), rng.choice((0, 0, 0, 1, 2, 3)))))
    patch: Plain = {}
    for field in sent:
        if field in wrong and (field not in IMMUTABLE or rng.random() < 0.5):
            patch[field] = invalid(rng, field, password)
        elif field in wrong:
            patch[field] = valid(rng, field, password)
        elif field in IMMUTABLE or (rng.random() < 0.25 and field in stored):
            patch[field] = stored[field]
        elif field in ("auth_username", "auth_password") and stored["auth_type"] == "IP_BASED":
            if rng.random() < 0.2:
                patch[field] = valid(rng, field, password)
        else:
            patch[field] = valid(rng, field, password)
    patch = {field: own(value) for field, value in patch.items()}
    kind = rng.random()
    if kind < 0.2:
        return (None if rng.random() < 0.5 else []), patch
    if kind < 0.35:
        if rng.random() < 0.7:
            patch = {f: own(stored[f]) for f in sendable if f in stored} | patch
        return ["*"] * rng.randint(1, 2), patch
    mask = [field for field in patch if rng.random() < 0.8]
    if rng.random() < 0.3:
        mask += rng.sample(sendable, rng.randint(1, 3))
    if rng.random() < 0.3:
        mask += rng.sample(IGNORED, rng.randint(1, 3))
    if rng.random() < 0.2:
        mask += mask[:2]
    if rng.random() < 0.1:
        mask.append(rng.choice((*_UNKNOWN_PATHS, "*")))
    rng.shuffle(mask)
    return mask, patch


def own(value: Any) -> Any:
    """A stored value as it may be sent: without what the server adds to list entries."""
    if not isinstance(value, list):
        return value
    return [{k: v for k, v in item.items() if k not in ("id", "created_at")} for item in value]


def valid(rng: random.Random, field: str, password: str) -> Any:
    """A value that a field takes."""
    if field in BOOLEANS:
        return rng.random() < 0.5
    if field in ENUMS:
        return rng.choice(ENUMS[field])
    makers: dict[str, Callable[[], Any]] = {
        "name": lambda: f"{words(rng, 80)} {next(_numbers)}",
        "provider": lambda: words(rng, 64),
        "description": lambda: rng.choice(
            ("", "two\nlines\tand a tab ", words(rng, 500), "é" * 500)
        ),
        "auth_username": lambda: words(rng, 128),
        "auth_password": lambda: password,
        "gateways": lambda: gateways(rng, rng.choice((1, 1, 2, 3, 6))),
        "ip_identifiers": lambda: ranges(rng, rng.choice((0, 1, 2, 3, 6))),
        "allow": lambda: spelled(rng, [*rng.sample(CODECS, rng.randint(1, 4)), *_end(rng)]),
        "disallow": lambda: rng.choice(("all", spelled(rng, rng.sample(CODECS, 2)))),
        "qualify_frequency": lambda: rng.choice((0, 1, 60, 86400, rng.randint(0, 86400))),
    }
    return makers[field]()


def invalid(rng: random.Random, field: str, password: str) -> Any:
    """A value that a field refuses; of a boolean, which has none, any."""
    if field in BOOLEANS:
        return rng.random() < 0.5
    if field in ENUMS:
        return rng.choice((0, 7, -1))
    if field == "gateways":
        return _spoiled(rng, gateways(rng, rng.choice((1, 2, 3))), "gateway_address", _HOSTS_WRONG)
    if field == "ip_identifiers":
        return _spoiled(rng, ranges(rng, rng.choice((1, 2, 3))), "ip_address", _RANGES_WRONG)
    most = {"name": 100, "provider": 64, "auth_username": 128, "auth_password": 256}.get(field, 0)
    good = password if field == "auth_password" else "good"
    labels = ("", f" {good}", f"{good}\u3000", f"{good}\0", f"a{good}\x7fb", good + "x" * most)
    choices: dict[str, Sequence[Any]] = {
        "description": ("x" * 501, "bell\a", "nul\0", "x" * 5000),
        "allow": ("", "PCMU", "ulaw,,alaw", "ulaw:9", "ulaw:301", "!ulaw", "ulaw;alaw", "!ulaw:20"),
        "disallow": ("", "nope", "all:20", "ulaw,", "ulaw alaw"),
        "qualify_frequency": (-1, 86401, 2**31 - 1, -(2**31)),
    }
    return rng.choice(choices.get(field, labels))


def gateways(rng: random.Random, count: int) -> list[Plain]:
    """Gateways, no two of which have the same address."""
    made = []
    for _ in range(count):
        number = next(_numbers)
        one: Plain = {
            "gateway_address": f"{rng.choice(('H', 'h'))}{number}.{rng.choice(_HOSTS[:6])}"
        }
        if rng.random() < 0.5:
            one["port"] = rng.choice((1, 5060, 5061, 65535))
        if rng.random() < 0.5:
            one["priority"] = rng.choice((0, 1, 2, 65535))
        made.append(one)
    # Any spelling of one host at most, so that no two are the same.
    made[0]["gateway_address"] = rng.choice(_HOSTS)
    return made


def ranges(rng: random.Random, count: int) -> list[Plain]:
    """Identifiers, no two of which are the same."""
    made = [{"ip_address": f"198.18.{rng.randint(0, 255)}.{i}{_host(rng)}"} for i in range(count)]
    return [{"ip_address": rng.choice(_RANGES)}, *made[1:]] if made else []


def words(rng: random.Random, most: int) -> str:
    """A label, in a normal form of Unicode that is chosen at random."""
    text = " ".join(rng.sample(_WORDS, rng.randint(1, 3)))
    text += "x" * (rng.choice((0, 0, 0, most)) - len(unicodedata.normalize("NFC", text)))
    return unicodedata.normalize(rng.choice(("NFC", "NFD")), text)


def spelled(rng: random.Random, codecs: Sequence[str]) -> str:
    """A codec list in any case, with and without blanks."""
    tokens = [rng.choice((str.lower, str.upper, str.title))(codec) for codec in codecs]
    if rng.random() < 0.3:
        tokens[0] += f":{rng.choice((10, 20, 300))}"
    return rng.choice((",", ", ", " , ")).join(tokens)


def _end(rng: random.Random) -> Sequence[str]:
    return rng.choice(((), (), ("all",), ("all", "!g722"), ("!gsm", "gsm:30")))


def _host(rng: random.Random) -> str:
    return rng.choice(("", "", "/32"))


def _spoiled(
    rng: random.Random, made: list[Plain], address: str, wrong: Sequence[str]
) -> list[Plain]:
    kind = rng.random()
    one = rng.choice(made)
    if kind < 0.5:
        one[address] = rng.choice(wrong)
    elif kind < 0.6:
        del one[address]
    elif kind < 0.8 and address == "gateway_address":
        one |= rng.choice(({"port": 0}, {"port": 65536}, {"priority": -1}, {"priority": 65536}))
    elif kind < 0.9:
        made.append(one | {address: one[address].swapcase()})
    else:
        made += [dict(one)] * (33 if address == "gateway_address" else 257)
    return made

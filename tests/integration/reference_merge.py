"""What UpdateSipTrunk is to do, written slowly and plainly.

Trunks are plain dictionaries: enum values stand as names (as numbers where there is no name),
absent fields are not there. Only the standard library is imported, so that no fault of the service
can hide in what judges it.
"""

import copy
import ipaddress
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

BOOLEANS = (
    "media_encryption_optimistic",
    "direct_media",
    "rtp_symmetric",
    "force_rport",
    "ice_support",
    "inbound_enabled",
    "outbound_leading_plus_enabled",
    "is_active",
)
ENUMS = {
    "auth_type": ("USERPASS", "IP_BASED"),
    "transport": ("UDP", "TCP", "TLS"),
    "media_encryption": ("NO", "SDES"),
}
UPDATABLE = (
    "name",
    "description",
    "auth_username",
    "auth_password",
    "gateways",
    "ip_identifiers",
    "allow",
    "disallow",
    "transport",
    "media_encryption",
    "qualify_frequency",
    *BOOLEANS,
)
IMMUTABLE = ("provider", "auth_type")
IGNORED = (
    "id",
    "etag",
    "account_id",
    "auth_password_set",
    "auth_password_changed_at",
    "phone_number_count",
    "codecs",
    "created_at",
    "updated_at",
)
LISTS = ("gateways", "ip_identifiers")
REPLACED_BY = {
    "description": None,
    "auth_username": None,
    "allow": "ulaw,alaw",
    "disallow": "all",
    "transport": "UDP",
    "media_encryption": "NO",
    "qualify_frequency": 60,
    "media_encryption_optimistic": False,
    "direct_media": False,
    "rtp_symmetric": True,
    "force_rport": True,
    "ice_support": False,
    "inbound_enabled": False,
    "outbound_leading_plus_enabled": True,
}
CODECS = ("ulaw", "alaw", "g722", "opus", "g729", "gsm")
NOW = "now"


class FaultError(Exception):
    """A value breaks a rule; `paths` says where."""

    def __init__(self, *paths: str) -> None:
        super().__init__(paths)
        self.paths = set(paths)


def named(mask: Sequence[str] | None, patch: Mapping[str, Any]) -> set[str]:
    """The fields that an update may touch: nothing else of the trunk may change."""
    if not mask:
        fields = {field for field, value in patch.items() if value != []}
    elif "*" in mask:
        fields = {*UPDATABLE, *IMMUTABLE}
    else:
        fields = set(mask)
    return fields & {*UPDATABLE, *IMMUTABLE}


def merge(
    stored: Mapping[str, Any], mask: Sequence[str] | None, patch: Mapping[str, Any]
) -> dict[str, Any] | set[str]:
    """The trunk after an update, or the paths of everything that is wrong with it.

    A gateway that is new has no `id` in the result; where the password was set,
    `auth_password_changed_at` is NOW. `etag` and `updated_at` are left as they were.
    """
    faults: set[str] = set()
    full = bool(mask) and set(mask or ()) == {"*"}
    if mask and not full and set(mask) - {*UPDATABLE, *IMMUTABLE, *IGNORED}:
        faults.add("update_mask")
        if "*" in mask:
            return faults
    merged = dict(copy.deepcopy(stored))
    for field in named(mask, patch):
        present = field in patch and patch[field] != []
        try:
            if field in IMMUTABLE:
                if present and normal(field, patch[field]) != stored[field]:
                    raise FaultError(field)
                if not present and not full:
                    raise FaultError(field)
            elif present or field in LISTS:
                merged[field] = normal(field, patch.get(field, []))
            elif full and field in ("auth_password", "is_active"):
                pass
            elif full and field in REPLACED_BY:
                merged[field] = REPLACED_BY[field]
            elif field == "description":
                merged[field] = None
            else:
                raise FaultError(field)
        except FaultError as fault:
            faults |= fault.paths
    faults |= together(merged, named(mask, patch), {path.split("[")[0] for path in faults})
    if faults:
        return faults
    if merged.pop("auth_password", None) is not None:
        merged |= {"auth_password_set": True, "auth_password_changed_at": NOW}
    merged["codecs"] = offer(merged["allow"], merged["disallow"])
    identities = {(g["gateway_address"], g.get("port")): g for g in stored["gateways"]}
    for gateway in merged["gateways"]:
        before = identities.get((gateway["gateway_address"], gateway.get("port")), {})
        gateway |= {k: before[k] for k in ("id", "created_at") if k in before}
    return {field: value for field, value in merged.items() if value is not None}


def together(trunk: Mapping[str, Any], touched: set[str], faulty: set[str]) -> set[str]:
    """The faults that only two fields show, each on a field that the update names."""
    found = set()
    if trunk["auth_type"] == "USERPASS":
        if trunk.get("auth_username") is None:
            found.add("auth_username")
    else:
        found |= {f for f in ("auth_username", "auth_password") if trunk.get(f) is not None}
        if not trunk["ip_identifiers"]:
            found.add("ip_identifiers")
    keys_readable = trunk["media_encryption"] == "SDES" and trunk["transport"] != "TLS"
    if keys_readable and not faulty & {"media_encryption", "transport"}:
        found.add("media_encryption" if "media_encryption" in touched else "transport")
    if not offer(trunk["allow"], trunk["disallow"]) and not faulty & {"allow", "disallow"}:
        found.add("allow" if "allow" in touched else "disallow")
    return found


def normal(field: str, value: Any) -> Any:
    """A value as it is stored, or a FaultError."""
    if field in BOOLEANS:
        return value
    if field in ENUMS:
        return one_of(field, value)
    if field == "qualify_frequency":
        return number(field, value, 0, 86400)
    if field == "description":
        return text(field, value, 0, 500, "\t\n")
    if field in ("allow", "disallow"):
        return codec_list(field, value)
    if field in LISTS:
        return items(field, value)
    return label(field, value)


def label(field: str, value: str) -> str:
    """A text of one line without a blank at either end."""
    most = {"name": 100, "provider": 64, "auth_username": 128, "auth_password": 256}[field]
    if value != value.strip():
        raise FaultError(field)
    return text(field, value, 1, most, "")


def text(field: str, value: str, least: int, most: int, controls: str) -> str:
    """A text in NFC without other control characters than those given."""
    value = unicodedata.normalize("NFC", value)
    if not least <= len(value) <= most:
        raise FaultError(field)
    if any(unicodedata.category(c) == "Cc" and c not in controls for c in value):
        raise FaultError(field)
    return value


def one_of(field: str, value: str | int) -> str | int:
    """An enum value that has a name."""
    if value not in ENUMS[field]:
        raise FaultError(field)
    return value


def number(path: str, value: int, least: int, most: int) -> int:
    """A number within bounds."""
    if not least <= value <= most:
        raise FaultError(path)
    return value


def items(field: str, value: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A list with every item in normal form, in the order in which it is stored."""
    least, most = {"gateways": (1, 32), "ip_identifiers": (0, 256)}[field]
    if not least <= len(value) <= most:
        raise FaultError(field)
    found: list[dict[str, Any]] = []
    faults: set[str] = set()
    seen = set()
    for position, item in enumerate(value):
        path, one = f"{field}[{position}]", dict(item)
        try:
            if field == "gateways":
                one["gateway_address"] = host(path, item.get("gateway_address", ""))
                one.setdefault("priority", 1)
            else:
                one["ip_address"] = ip_range(path, item.get("ip_address", ""))
            key = (one.get("gateway_address"), one.get("port"), one.get("ip_address"))
            if key in seen:
                faults.add(path)
            seen.add(key)
        except FaultError as fault:
            faults |= fault.paths
        for part, low, high in (("port", 1, 65535), ("priority", 0, 65535)):
            if part in one and not low <= one[part] <= high:
                faults.add(f"{path}.{part}")
        found.append(one)
    if faults:
        raise FaultError(*faults)
    return sorted(found, key=lambda one: one.get("priority", 0))


def host(path: str, value: str) -> str:
    """A gateway's address in normal form."""
    fault = FaultError(f"{path}.gateway_address")
    try:
        if value.startswith("[") and value.endswith("]"):
            return ip(ipaddress.IPv6Address(value[1:-1]))
        if ":" in value:
            return ip(ipaddress.IPv6Address(value))
        labels = value.removesuffix(".").split(".")
        if labels[-1].isdigit():
            return str(ipaddress.IPv4Address(value))
    except ValueError:
        raise fault from None
    if len(".".join(labels)) > 253:
        raise fault
    for one in labels:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,63}", one, re.ASCII):
            raise fault
        if one.startswith("-") or one.endswith("-"):
            raise fault
    return ".".join(labels).lower()


def ip(address: ipaddress.IPv6Address) -> str:
    """An IPv6 address; one that stands for an IPv4 address as that."""
    if address.scope_id:
        raise ValueError
    return str(address.ipv4_mapped or address)


def ip_range(path: str, value: str) -> str:
    """An IP identifier in normal form."""
    fault = FaultError(f"{path}.ip_address")
    _, slash, prefix = value.partition("/")
    if "%" in value or (slash and not prefix.isdecimal()):
        raise fault
    try:
        range_ = ipaddress.ip_network(value, strict=True)
    except ValueError:
        raise fault from None
    first, length = range_.network_address, range_.prefixlen
    if isinstance(first, ipaddress.IPv6Address) and first.ipv4_mapped and length >= 96:
        range_ = ipaddress.ip_network((first.ipv4_mapped, length - 96))
    first, length = range_.network_address, range_.prefixlen
    if length < (8 if first.version == 4 else 19):
        raise fault
    single = length == first.max_prefixlen
    if first.is_multicast or first.is_link_local or (first.is_unspecified and single):
        raise fault
    return str(first) if single else str(range_)


def codec_list(field: str, value: str) -> str:
    """A codec list in normal form, which for `allow` leaves something."""
    tokens = [token.strip().lower() for token in value.split(",")]
    for token in tokens:
        name, colon, packet = token.removeprefix("!").partition(":")
        if token == "all":
            continue
        if name not in CODECS or (colon and token.startswith("!")):
            raise FaultError(field)
        if colon and not (packet.isdecimal() and 10 <= int(packet) <= 300):
            raise FaultError(field)
    if field == "allow" and not walk(",".join(tokens)):
        raise FaultError(field)
    return ",".join(tokens)


def walk(value: str) -> list[str]:
    """What the tokens of a codec list leave, in order."""
    left: list[str] = []
    for token in value.split(","):
        if token.startswith("!"):
            left = [one for one in left if one.partition(":")[0] != token[1:]]
        else:
            added = CODECS if token == "all" else [token]
            names = [one.partition(":")[0] for one in left]
            left += [one for one in added if one.partition(":")[0] not in names]
    return left


def offer(allow: str, disallow: str) -> list[str]:
    """The effective codecs."""
    removed = [] if disallow == "all" else [one.partition(":")[0] for one in walk(disallow)]
    return [one for one in walk(allow) if one.partition(":")[0] not in removed]

"""Normal forms of the addresses that a trunk holds: gateways and IP identifiers. Pure."""

import ipaddress
import re
from ipaddress import IPv4Address, IPv6Address

import idna

HOST_CHARACTERS_MAX = 253
LABEL_CHARACTERS_MAX = 63
IPV4_PREFIX_MIN = 8
IPV6_PREFIX_MIN = 19
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?", re.ASCII)
_PREFIX = re.compile(r"[0-9]{1,3}", re.ASCII)
_MAPPED_BITS = 96
_BROADCAST = (1 << 32) - 1
_NO_RANGE = "is not an IPv4 or IPv6 address or CIDR range"

Address = IPv4Address | IPv6Address


class AddressError(ValueError):
    """An address that can't be used; the message says why and, where it can, the right form."""


def gateway(text: str) -> str:
    """The normal form of a gateway's address: a host name or an IP address.

    Lower case, no trailing dot, no brackets; IPv6 compressed (RFC 5952), IPv4-mapped as IPv4.

    Raises:
        AddressError: it is neither, or no call could be sent there.
    """
    if not text:
        raise AddressError("is required")
    if len(text) > HOST_CHARACTERS_MAX + 2:
        raise AddressError(f"has {len(text)} characters; at most {HOST_CHARACTERS_MAX}")
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if ":" in bare or bare is not text:
        return str(_usable(_ipv6(bare, text)))
    if _looks_like_ipv4(bare):
        return str(_usable(_ipv4(bare)))
    return _host(bare)


def ip_range(text: str) -> str:
    """The normal form of an IP identifier: an address, or an aligned CIDR range.

    Raises:
        AddressError: it is neither, too wide, or holds addresses that send no calls.
    """
    if not text:
        raise AddressError("is required")
    address, slash, prefix = text.partition("/")
    if "%" in address:
        raise AddressError("has a zone id, which means nothing on another machine")
    if slash and not _PREFIX.fullmatch(prefix):
        raise AddressError('has no number of bits after the "/"')
    try:
        first = ipaddress.ip_address(address)
    except ValueError:
        raise AddressError(_NO_RANGE) from None
    bits = int(prefix) if slash else first.max_prefixlen
    if bits > first.max_prefixlen:
        raise AddressError(_NO_RANGE)
    if isinstance(first, IPv6Address) and first.ipv4_mapped and bits >= _MAPPED_BITS:
        first, bits = first.ipv4_mapped, bits - _MAPPED_BITS
    widest = IPV4_PREFIX_MIN if first.version == 4 else IPV6_PREFIX_MIN
    if bits < widest:
        raise AddressError(f"is wider than the /{widest} allowed for IPv{first.version}")
    beyond = first.max_prefixlen - bits
    base, shown = _range(first, beyond)
    _refuse_special(base, beyond)
    if base != first:
        raise AddressError(f"has host bits set; the range is {shown}")
    return shown


def containing(address: Address) -> list[str]:
    """Every identifier, in normal form, that would contain an address."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    widest = IPV4_PREFIX_MIN if address.version == 4 else IPV6_PREFIX_MIN
    prefixes = range(widest, address.max_prefixlen + 1)
    return [_range(address, address.max_prefixlen - p)[1] for p in prefixes]


def _range(address: Address, beyond: int) -> tuple[Address, str]:
    """The first address of the range with so many bits beyond its prefix, and its normal form."""
    if not beyond:
        return address, str(address)
    base = type(address)(int(address) >> beyond << beyond)
    return base, f"{base}/{address.max_prefixlen - beyond}"


def _refuse_special(base: Address, beyond: int) -> None:
    last = int(base) | (1 << beyond) - 1
    for what, special in (
        ("multicast", base.is_multicast),
        ("link-local", base.is_link_local),
        ("unspecified", base.is_unspecified),
        ("broadcast", base.version == 4 and last == _BROADCAST),
    ):
        if special:
            raise AddressError(f"is {what}: no carrier sends from there")


def _looks_like_ipv4(text: str) -> bool:
    last = text.rstrip(".").rpartition(".")[2]
    return bool(last) and all(c in "0123456789" for c in last)


def _ipv4(text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except ValueError:
        raise AddressError(
            "ends in a number but is not an IPv4 address:"
            " four numbers of 0 to 255 without leading zeros"
        ) from None


def _ipv6(bare: str, text: str) -> Address:
    if "%" in bare:
        raise AddressError("has a zone id, which means nothing on another machine")
    if "://" in text or text.lower().startswith(("sip:", "sips:")):
        raise AddressError("has a scheme; give the host alone")
    try:
        address = IPv6Address(bare)
    except ValueError:
        host, _, port = text.rpartition(":")
        if host and port.isdigit() and ":" not in host.strip("[]"):
            raise AddressError("has a port; give it in the field port") from None
        if text.startswith("[") and "]:" in text:
            raise AddressError("has a port; give it in the field port") from None
        raise AddressError("is not an IPv6 address") from None
    return address.ipv4_mapped or address


def _usable(address: Address) -> Address:
    if address.is_unspecified or address.is_multicast or str(address) == "255.255.255.255":
        raise AddressError("is not an address that a call can be sent to")
    return address


def _host(text: str) -> str:
    if "/" in text or "@" in text:
        raise AddressError("is a URI or a path; give the host alone")
    host = text.removesuffix(".")
    if not host.isascii():
        raise AddressError(_a_label_hint(host))
    host = host.lower()
    if len(host) > HOST_CHARACTERS_MAX:
        raise AddressError(f"has {len(host)} characters; at most {HOST_CHARACTERS_MAX}")
    for label in host.split("."):
        if not label:
            raise AddressError("has an empty label")
        if len(label) > LABEL_CHARACTERS_MAX:
            raise AddressError(f"has a label of more than {LABEL_CHARACTERS_MAX} characters")
        if not _LABEL.fullmatch(label):
            raise AddressError(
                "is not a host name: labels of letters, digits, hyphens inside and underscores"
            )
    return host


def _a_label_hint(host: str) -> str:
    try:
        a_label = idna.encode(host, uts46=True).decode("ascii")
    except idna.IDNAError:
        return "is not a host name"
    return f"is an internationalised name; give its A-label form, {a_label}"

"""Reads what a list asks for: page size, token, order and filter (AIP-158, AIP-160). Pure."""

import base64
import contextlib
import hashlib
import ipaddress
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from trunkline import addresses
from trunkline.errors import InvalidError, Violation, quoted

FILTER_CHARACTERS_MAX = 1000
TOKEN_CHARACTERS_MAX = 1024
ORDERS = ("id", "name", "created_at")
_DIGEST_BYTES = 12
_TERM = re.compile(
    r"""\s*(?P<name>[A-Za-z_.]+)\s*(?P<operator><=|>=|!=|[=<>:])\s*
    (?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<bare>[^\s"]+))""",
    re.VERBOSE,
)
_AND = re.compile(r"\s+AND\s+")
_NUMBER = re.compile(r"\+?[0-9]{1,15}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Order:
    """What a list is sorted by; the id breaks ties, in the same direction."""

    field: str
    descending: bool


BY_ID = Order("id", descending=False)


@dataclass(frozen=True, slots=True)
class Condition:
    """One comparison of a filter: its name, and the value that it compares with."""

    name: str
    value: Any


def size(asked: int, default: int, most: int) -> int:
    """The number of items of a page. 0 means the default, more than the most is the most.

    Raises:
        InvalidError: it is negative.
    """
    if asked < 0:
        raise _invalid("page_size", "OUT_OF_RANGE", f"is {asked}; it must not be negative")
    return min(asked or default, most)


def order(text: str) -> Order:
    """The order asked for.

    Raises:
        InvalidError: it is none of the orders offered.
    """
    words = text.split()
    name, direction = (words or ["id"])[0], words[1:]
    if name not in ORDERS or direction not in ([], ["asc"], ["desc"]):
        offered = ", ".join(ORDERS)
        raise _invalid(
            "order_by",
            "UNKNOWN_ORDER",
            f'{quoted(text)} is not one of {offered}, with or without " desc"',
        )
    return Order(name, direction == ["desc"])


def token(binding: tuple[str, ...], last: tuple[str | datetime, str]) -> str:
    """A page token: where the page ended, bound to the arguments of the list."""
    value, last_id = last
    text = value.isoformat() if isinstance(value, datetime) else value
    body = f"{text}\n{last_id}".encode()
    return base64.urlsafe_b64encode(_digest(binding, body) + body).decode().rstrip("=")


def after(
    text: str, binding: tuple[str, ...], order: Order = BY_ID
) -> tuple[str | datetime, str] | None:
    """The order's value and the id where the page before ended; None for the first page.

    Raises:
        InvalidError: not a token of this list with these arguments.
    """
    if not text:
        return None
    try:
        raw = base64.urlsafe_b64decode(text[:TOKEN_CHARACTERS_MAX] + "=" * (-len(text) % 4))
    except ValueError:
        raw = b""
    digest, body = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:]
    value, separator, last_id = body.partition(b"\n")
    if separator and b"\0" not in body and digest == _digest(binding, body):
        with contextlib.suppress(ValueError):
            known = value.decode()
            by_time = order.field == "created_at"
            return datetime.fromisoformat(known) if by_time else known, last_id.decode()
    raise _invalid(
        "page_token",
        "BAD_PAGE_TOKEN",
        "is not the next_page_token of this list with the same filter and order",
    )


def conditions(text: str) -> tuple[Condition, ...]:
    """The comparisons of a filter, sorted by name.

    Raises:
        InvalidError: it can't be read, with the position; or a name or value is not known.
    """
    if len(text) > FILTER_CHARACTERS_MAX:
        raise _invalid(
            "filter", "TOO_LONG", f"has {len(text)} characters; at most {FILTER_CHARACTERS_MAX}"
        )
    if "\0" in text:
        raise _invalid("filter", "CONTROL_CHARACTER", "has a NUL character")
    found: dict[str, Condition] = {}
    position, end = 0, len(text.rstrip())
    while position < end:
        if found:
            joint = _AND.match(text, position)
            if not joint:
                raise _unreadable(text, position, '" AND " and another comparison, or the end')
            position = joint.end()
        term = _TERM.match(text, position)
        if not term:
            raise _unreadable(text, position, 'a comparison such as provider="twilio"')
        condition = _condition(term, text)
        if term["name"] in found:
            raise _invalid(
                "filter",
                "TWICE",
                f"compares {term['name']} twice (at character {term.start('name') + 1})",
            )
        found[term["name"]] = condition
        position = term.end()
    return tuple(found[name] for name in sorted(found))


def _condition(term: re.Match[str], text: str) -> Condition:
    name, operator = term["name"], term["operator"]
    at = f" (at character {term.start('name') + 1})"
    if name not in _VALUES:
        known = ", ".join(_VALUES)
        raise _invalid("filter", "UNKNOWN_FIELD", f"{quoted(name)} is not one of {known}{at}")
    if operator != "=":
        raise _invalid("filter", "UNKNOWN_OPERATOR", f'{name} takes "=", not "{operator}"{at}')
    try:
        return _VALUES[name](name, term["quoted"], term["bare"])
    except ValueError as error:
        shown = quoted(term["quoted"] if term["quoted"] is not None else term["bare"])
        at = f" (at character {term.end('operator') + 1} of {len(text)})"
        raise _invalid("filter", "BAD_VALUE", f"{name}={shown}: {error}{at}") from None


def _plain(quoted_: str | None, bare: str | None) -> str:
    return re.sub(r"\\(.)", r"\1", quoted_) if quoted_ is not None else bare or ""


def _boolean(name: str, quoted_: str | None, bare: str | None) -> Condition:
    if quoted_ is not None or bare not in ("true", "false"):
        raise ValueError("it is true or false, without quotes")
    return Condition(name, bare == "true")


def _text(name: str, quoted_: str | None, bare: str | None) -> Condition:
    return Condition(name, unicodedata.normalize("NFC", _plain(quoted_, bare)))


def _name(name: str, quoted_: str | None, bare: str | None) -> Condition:
    raw = quoted_ if quoted_ is not None else bare or ""
    unescaped_stars = re.findall(r"(?<!\\)(?:\\\\)*\*", raw)
    if not unescaped_stars:
        return _text(name, quoted_, bare)
    if len(unescaped_stars) > 1 or not raw.endswith("*"):
        raise ValueError('a "*" stands once, at the end; write "\\*" for the character')
    return _text("name_prefix", raw[:-1], None)


def _number(name: str, quoted_: str | None, bare: str | None) -> Condition:
    text = _plain(quoted_, bare)
    if not _NUMBER.fullmatch(text):
        raise ValueError('it is an optional "+" and digits')
    return Condition(name, text.lstrip("+"))


def _gateway(name: str, quoted_: str | None, bare: str | None) -> Condition:
    return Condition(name, addresses.gateway(_plain(quoted_, bare)))


def _source(name: str, quoted_: str | None, bare: str | None) -> Condition:
    text = _plain(quoted_, bare)
    try:
        address = ipaddress.ip_address("" if "%" in text else text)
    except ValueError:
        raise ValueError("it is an IPv4 or IPv6 address") from None
    return Condition(name, addresses.containing(address))


_VALUES: Mapping[str, Callable[[str, str | None, str | None], Condition]] = {
    "is_active": _boolean,
    "provider": _text,
    "name": _name,
    "phone_number": _number,
    "gateway_address": _gateway,
    "source_ip": _source,
}


def _digest(binding: tuple[str, ...], body: bytes) -> bytes:
    hashed = hashlib.blake2b(body, digest_size=_DIGEST_BYTES, person=b"trunkline page")
    for part in binding:
        hashed.update(b"\0" + part.encode())
    return hashed.digest()


def _unreadable(text: str, position: int, expected: str) -> InvalidError:
    rest = text[position:].lstrip()
    at = len(text) - len(text[position:].lstrip()) + 1
    return _invalid(
        "filter", "SYNTAX", f"at character {at}, {quoted(rest)} stands where {expected} is expected"
    )


def _invalid(field: str, reason: str, description: str) -> InvalidError:
    return InvalidError([Violation(field, reason, description)])

"""The statements that list a page of an account's trunks, made of conditions and an order.

Trunks are found in the page's order, row by row, or, for a gateway or an address, by an index over
what is in their lists. Of a value that many trunks have, the first finds a page sooner; of one that
few have, the second. PostgreSQL can't tell them apart: to it the account and what a list has in it
are independent, and a value that is on no list of frequent ones is as frequent as the least of
those. So for these conditions the statement itself decides, when it runs. It looks at the next
SAMPLE trunks; where SAMPLE_HITS of them fit it looks at up to WALK_MAX, and where no page has come
of that, it takes the index. Its parameters are hidden from the planner, so that it plans once.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from trunkline.pages import Condition, Order

SAMPLE, SAMPLE_HITS, WALK_MAX = 32, 2, 2000

# Type and test of each condition.
_CONDITIONS = {
    "is_active": ("boolean", "t.is_active = {0}"),
    "provider": ("text", "t.provider = {0}"),
    "name": ("text", "t.name = {0}"),
    # The end is above every name with the prefix: no name is as long as the run of last characters.
    "name_prefix": ("text", "t.name >= {0} AND t.name < {0} || repeat(U&'\\+10FFFF', 101)"),
    "phone_number": (
        "text",
        "t.id = (SELECT trunk_id FROM phone_numbers WHERE account_id = {account} AND digits = {0})",
    ),
    # The keys carry the account, see the schema.
    "gateway_address": ("text[]", "trunk_gateway_keys(t.account_id, t.gateways) && {0}"),
    "source_ip": ("text[]", "trunk_ip_keys(t.account_id, t.ip_identifiers) && {0}"),
}
_KEYED = {"gateway_address", "source_ip"}
_ONE = {"name", "phone_number"}
"""What one trunk fits at most: there is nothing to decide then."""
# Names with a prefix may be few or many too, and PostgreSQL can tell. There must be no plan that it
# would keep: the parameter is true, which a plan for these values leaves out, and one for any takes
# to be dear.
_PLANNED_EACH_TIME = "({0}::boolean OR (SELECT count(*) > 0 FROM generate_series(1, 1000000000)))"
_TYPES = {"id": "text", "name": "text", "created_at": "timestamptz"}


def statement(select: str, conditions: Sequence[Condition], order: Order, *, later: bool) -> str:
    """The text for a page, the first one or a later one; its parameters are `arguments`.

    Args:
        select: the output columns, of `t`.
        conditions: what each trunk fits.
        order: the order.
        later: whether it begins after a trunk.
    """
    names = [condition.name for condition in conditions]
    decides = bool(_KEYED & set(names)) and not _ONE & set(names)
    types = ["text", *(_CONDITIONS[name][0] for name in names)]
    types += ["boolean"] if _planned_each_time(conditions) else []
    types += [_TYPES[field] for field in _sort_fields(order)] if later else []
    types.append("bigint")
    holders = [f"${i}::{t}" for i, t in enumerate(types, 1)]
    asked = ", ".join(f"{holder} AS a{i}" for i, holder in enumerate(holders, 1))
    if decides:
        holders = [f"(SELECT a{i} FROM asked)" for i in range(1, len(types) + 1)]
    account, most = holders[0], holders[-1]
    tests = [
        (name, _CONDITIONS[name][1].format(holder, account=account))
        for name, holder in zip(names, holders[1:], strict=False)
    ]
    place = 1 + len(names)
    if _planned_each_time(conditions):
        tests.append(("", _PLANNED_EACH_TIME.format(holders[place])))
        place += 1
    direction, beyond = ("DESC", "<") if order.descending else ("ASC", ">")
    sort = [f"t.{field}" for field in _sort_fields(order)]
    after = f"({', '.join(sort)}) {beyond} ({', '.join(holders[place:-1])})" if later else "true"
    by = ", ".join(f"{field} {direction}" for field in sort)
    fits = " AND ".join(test for _, test in tests) or "true"
    if decides:
        return _deciding(select, asked, (account, after, by, fits, most))
    return (
        f"SELECT {select} FROM trunks AS t WHERE t.account_id = {account} AND {fits} AND {after}"
        f" ORDER BY {by} LIMIT {most}"
    )


def arguments(
    account_id: str,
    conditions: Sequence[Condition],
    order: Order,
    after: tuple[str | datetime, str] | None,
    most: int,
) -> list[Any]:
    """The parameters: of `after`, the order's value and the id of the last trunk before."""
    found: list[Any] = [account_id, *(_value(account_id, condition) for condition in conditions)]
    if _planned_each_time(conditions):
        found.append(True)
    if after:
        found += after if order.field != "id" else after[1:]
    return [*found, most]


def _deciding(select: str, asked: str, parts: tuple[str, str, str, str, str]) -> str:
    account, after, by, fits, most = parts
    walk = f"FROM trunks AS t WHERE t.account_id = {account} AND {after} ORDER BY {by}"
    return f"""
WITH asked AS MATERIALIZED (
  SELECT {asked}
), sample AS MATERIALIZED (
  SELECT {fits} AS fits {walk} LIMIT {SAMPLE}
), walked AS MATERIALIZED (
  SELECT t.*
    FROM (SELECT t.* {walk} LIMIT CASE
      WHEN (SELECT count(*) FILTER (WHERE fits) FROM sample) < {SAMPLE_HITS} THEN 0
      ELSE {WALK_MAX} END) AS t
   WHERE {fits} LIMIT {most}
), found AS (
  SELECT * FROM walked WHERE (SELECT count(*) FROM walked) = {most}
  UNION ALL
  (SELECT t.* FROM trunks AS t
    WHERE {fits} AND {after} AND (SELECT count(*) FROM walked) < {most}
    ORDER BY {by} LIMIT {most})
)
SELECT {select} FROM found AS t ORDER BY {by}"""


def _sort_fields(order: Order) -> list[str]:
    return ["id"] if order.field == "id" else [order.field, "id"]


def _planned_each_time(conditions: Sequence[Condition]) -> bool:
    names = {condition.name for condition in conditions}
    return "name_prefix" in names and not _KEYED & names


def _value(account_id: str, condition: Condition) -> Any:
    """What a condition compares with: of keys, those of the account."""
    if condition.name not in _KEYED:
        return condition.value
    values = condition.value if isinstance(condition.value, list) else [condition.value]
    return [f"{account_id} {value}" for value in values]

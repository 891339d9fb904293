"""The statements that read trunks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from siptrunk.v1 import sip_trunk_pb2
from trunkline import pages, rows
from trunkline.store import listing
from trunkline.store.database import Database

SipTrunk = sip_trunk_pb2.SipTrunk

FETCH_ROWS_MAX = 100


@dataclass(frozen=True, slots=True)
class StatePage:
    """A page of trunks as they are at an instant.

    Attributes:
        trunks: in the order of account and id.
        revisions: of each of them.
        position: where the feed stood: every change up to there shows in the trunks.
        unnumbered: the revisions of those whose last change shows too, but is not in the feed yet.
    """

    trunks: Sequence[sip_trunk_pb2.SipTrunk]
    revisions: Sequence[int]
    position: int
    unnumbered: Mapping[tuple[str, str], int]


# The first row has the position alone.
_STATE_PAGE = """
SELECT {select}, s.position, (t.account_id, t.id) IN (SELECT account_id, trunk_id FROM feed_pending)
       AS unnumbered
  FROM feed_state AS s
  LEFT JOIN LATERAL (
    SELECT NULL::trunks AS row, 0 AS place
    UNION ALL
    (SELECT t, 1 FROM trunks AS t WHERE {where} AND ($3::boolean IS NULL OR t.is_active = $3)
      ORDER BY t.account_id, t.id LIMIT $4)
  ) AS x ON true
  LEFT JOIN LATERAL (SELECT (x.row).*) AS t ON true
 ORDER BY x.place, t.account_id, t.id"""


class TrunkReads:
    """The trunks of every account, each call in one of them but for the operator's."""

    def __init__(self, database: Database, reader: rows.TrunkReader) -> None:
        self._database = database
        self._reader = reader
        self._get = f"SELECT {reader.select} FROM trunks AS t WHERE t.account_id = $1 AND t.id = $2"

    async def get(self, account_id: str, trunk_id: str) -> sip_trunk_pb2.SipTrunk | None:
        """The trunk, None where the account has none of this id."""
        row = await self._database.row(self._get, account_id, trunk_id)
        return self._reader.trunk(row) if row else None

    async def list_page(
        self,
        account_id: str,
        conditions: Sequence[pages.Condition],
        order: pages.Order,
        after: tuple[str | datetime, str] | None,
        most: int,
    ) -> list[sip_trunk_pb2.SipTrunk]:
        """The trunks after a position, at most FETCH_ROWS_MAX of them.

        Args:
            account_id: whose trunks.
            conditions: all of which hold for each.
            order: the order.
            after: the order's value and the id of the last trunk before.
            most: how many are wanted.
        """
        text = listing.statement(self._reader.select, conditions, order, later=after is not None)
        most = min(most, FETCH_ROWS_MAX)
        asked = listing.arguments(account_id, conditions, order, after, most)
        found = await self._database.rows(text, *asked)
        return [self._reader.trunk(row) for row in found]

    async def state_page(
        self,
        account_id: str | None,
        after: tuple[str, str],
        most: int,
        *,
        is_active: bool | None,
    ) -> StatePage:
        """Trunks after an account and an id, with where the feed stood at the same instant.

        Args:
            account_id: whose trunks, None for everybody's.
            after: the account and the id of the last trunk before.
            most: how many.
            is_active: only those that are, or are not; None for all.
        """
        if account_id is None:
            where, arguments = "(t.account_id, t.id) > ($1, $2)", [*after]
        else:
            where, arguments = "t.account_id = $1 AND t.id > $2", [account_id, after[1]]
        found = await self._database.rows(
            _STATE_PAGE.format(select=self._reader.select, where=where),
            *arguments,
            is_active,
            most,
        )
        first, *rest = found
        return StatePage(
            [self._reader.trunk(row) for row in rest],
            [row["revision"] for row in rest],
            first["position"],
            {(row["account_id"], row["id"]): row["revision"] for row in rest if row["unnumbered"]},
        )

    async def named(self, account_id: str, names: Sequence[str]) -> dict[str, str]:
        """The ids of the trunks that have some names, by name."""
        found = await self._database.rows(
            "SELECT name, id FROM trunks WHERE account_id = $1 AND name = ANY ($2::text[])",
            account_id,
            names,
        )
        return {row["name"]: row["id"] for row in found}

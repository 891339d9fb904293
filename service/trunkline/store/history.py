"""The statements that read revisions, and the one that forgets them."""

import asyncpg

from siptrunk.v1 import sip_trunk_pb2, sip_trunk_revision_pb2
from trunkline import rows
from trunkline.store.database import Database

SipTrunk = sip_trunk_pb2.SipTrunk
SipTrunkRevision = sip_trunk_revision_pb2.SipTrunkRevision

FETCH_ROWS_MAX = 100
_REVISION_MAX = (1 << 63) - 1
# The row before has what the changed fields were before. Looked up row by row: the planner, which
# takes a trunk to have one revision, would go through all of them for each.
_SELECT = """
SELECT r.*, b.trunk AS trunk_before
  FROM trunk_revisions AS r
  LEFT JOIN LATERAL (
    SELECT p.trunk FROM trunk_revisions AS p
     WHERE p.account_id = r.account_id AND p.trunk_id = r.trunk_id AND p.revision = r.revision - 1
    OFFSET 0
  ) AS b ON true
 WHERE r.account_id = $1 AND r.trunk_id = $2"""

# Goes by the feed, oldest first, so that each change is looked at once: what a forgotten change had
# replaced was not current at any time that is still remembered.
_FORGET = """
WITH turn AS MATERIALIZED (
  SELECT pg_try_advisory_xact_lock(hashtextextended('trunkline history', 0)) AS ours
), oldest AS MATERIALIZED (
  SELECT f.* FROM feed AS f, turn WHERE turn.ours ORDER BY f.position LIMIT {most}
), old AS (
  DELETE FROM feed AS f
   WHERE f.position = ANY (ARRAY(SELECT o.position FROM oldest AS o
                                  WHERE o.numbered_at < now() - make_interval(days => $1)))
  RETURNING f.*
), gone AS (
  -- Looked up trunk by trunk, and deleted by their place: the planner, which can't know how few
  -- they are, would read the whole table.
  DELETE FROM trunk_revisions WHERE ctid = ANY (ARRAY(
    SELECT r.ctid FROM old CROSS JOIN LATERAL (
      SELECT s.ctid, s.revision, s.deleted FROM trunk_revisions AS s
       WHERE s.account_id = old.account_id AND s.trunk_id = old.trunk_id
         AND s.revision <= old.revision OFFSET 0
    ) AS r
     WHERE r.revision < old.revision OR r.deleted))
), floor AS (
  UPDATE feed_state SET floor = greatest(floor, (SELECT max(position) FROM old))
   WHERE EXISTS (SELECT FROM old)
)
SELECT count(*) FROM old"""


class HistoryStore:
    """The revisions of the trunks of every account, each call in one of them."""

    def __init__(self, database: Database, reader: rows.TrunkReader) -> None:
        self._database = database
        self._reader = reader

    async def list_page(
        self, account_id: str, trunk_id: str, before: int | None, most: int
    ) -> list[sip_trunk_revision_pb2.SipTrunkRevision]:
        """The revisions of a trunk below a number, the newest first, at most FETCH_ROWS_MAX."""
        found = await self._database.rows(
            f"{_SELECT} AND r.revision < coalesce($3, {_REVISION_MAX})"
            " ORDER BY r.revision DESC LIMIT $4",
            account_id,
            trunk_id,
            before,
            min(most, FETCH_ROWS_MAX),
        )
        return [self._revision(row) for row in found]

    async def get(
        self, account_id: str, trunk_id: str, revision: int
    ) -> sip_trunk_revision_pb2.SipTrunkRevision | None:
        """One revision, None where there is none, or it is forgotten."""
        row = await self._database.row(
            f"{_SELECT} AND r.revision = $3", account_id, trunk_id, revision
        )
        return self._revision(row) if row else None

    async def forget(self, days: int, most: int) -> int:
        """Forget changes that are older than some days, at most so many; how many there were."""
        row = await self._database.row(_FORGET.format(most=int(most)), days)
        return int(row[0]) if row else 0

    def _revision(self, row: asyncpg.Record) -> sip_trunk_revision_pb2.SipTrunkRevision:
        found = SipTrunkRevision(
            trunk_id=row["trunk_id"],
            revision=row["revision"],
            changed_at=row["changed_at"],
            token_id=row["token_id"] or "",
            request_id=row["request_id"] or "",
            method=row["method"] or "",
            changed_fields=row["changed"],
            sip_trunk=self._reader.snapshot(row["trunk"]),
            phone_numbers=rows.number_changes(row["numbers"]),
            deleted=row["deleted"],
        )
        found.update_mask.paths.extend(row["mask"])
        if not row["mask"]:
            found.ClearField("update_mask")
        if row["trunk_before"] is not None and not row["deleted"]:
            found.before.CopyFrom(
                rows.only(self._reader.snapshot(row["trunk_before"]), row["changed"])
            )
        return found

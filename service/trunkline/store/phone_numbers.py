"""The statements on phone numbers. Each locks the trunk first, so that count and etag stay true."""

from collections.abc import Sequence
from datetime import UTC, datetime

from siptrunk.v1 import phone_number_pb2
from trunkline import rows
from trunkline.errors import PreconditionError
from trunkline.store.database import ConstraintError, Database
from trunkline.ulids import Ulids

PhoneNumber = phone_number_pb2.PhoneNumber
_SELECT = rows.select_list(PhoneNumber.DESCRIPTOR, "n")

_TRUNK = """
trunk AS MATERIALIZED (
  SELECT account_id, id FROM trunks WHERE account_id = $1 AND id = $2 FOR UPDATE
)"""
_TOUCHED = """
touched AS (
  UPDATE trunks AS t
     SET phone_number_count = t.phone_number_count + {delta},
         revision = t.revision + 1,
         updated_at = greatest(now(), t.updated_at + interval '1 microsecond')
    FROM n
   WHERE t.account_id = $1 AND t.id = $2
)"""

_CREATE = f"""
WITH {_TRUNK}, n AS (
  INSERT INTO phone_numbers (account_id, trunk_id, id, phone_number, name, created_at, updated_at)
  SELECT trunk.account_id, trunk.id, $3, $4, $5, $6::timestamptz, $6 FROM trunk
  RETURNING *
), {_TOUCHED.format(delta="1")}
SELECT {_SELECT} FROM n"""

_GET = f"""
SELECT {_SELECT} FROM phone_numbers AS n WHERE account_id = $1 AND trunk_id = $2 AND id = $3"""

_LIST = f"""
SELECT {_SELECT} FROM phone_numbers AS n
 WHERE account_id = $1 AND trunk_id = $2 AND id > $3 ORDER BY account_id, trunk_id, id LIMIT $4"""

_LIST_OF_SEVERAL = f"""
SELECT {_SELECT} FROM phone_numbers AS n
 WHERE account_id = $1 AND trunk_id = ANY($2::text[]) AND (trunk_id, id) > ($3, $4)
 ORDER BY trunk_id, id LIMIT $5"""

_UPDATE = f"""
WITH {_TRUNK}, stored AS MATERIALIZED (
  SELECT n.* FROM phone_numbers AS n JOIN trunk ON n.trunk_id = trunk.id
   WHERE n.account_id = $1 AND n.id = $3 FOR UPDATE OF n
), n AS (
  UPDATE phone_numbers AS p
     SET name = $4, updated_at = greatest(now(), p.updated_at + interval '1 microsecond')
    FROM stored AS s
   WHERE p.account_id = $1 AND p.id = s.id AND s.name IS DISTINCT FROM $4
  RETURNING p.*
), {_TOUCHED.format(delta="0")}
SELECT {_SELECT} FROM n
UNION ALL
SELECT {_SELECT} FROM stored AS n WHERE NOT EXISTS (SELECT FROM n AS changed)"""

_DELETE = f"""
WITH {_TRUNK}, n AS (
  DELETE FROM phone_numbers AS p USING trunk
   WHERE p.account_id = $1 AND p.trunk_id = trunk.id AND p.id = $3
  RETURNING p.id
), {_TOUCHED.format(delta="(-1)")}
SELECT id FROM n"""


class PhoneNumberStore:
    """The phone numbers of every account, each call in one of them."""

    def __init__(self, database: Database, ids: Ulids) -> None:
        self._database = database
        self._ids = ids

    async def create(
        self, account_id: str, trunk_id: str, phone_number: str, name: str | None
    ) -> phone_number_pb2.PhoneNumber | None:
        """Add a number; None where there is no such trunk.

        Raises:
            ExistsError: the account has the number already.
            PreconditionError: the trunk has as many numbers as one may have.
        """
        try:
            row = await self._database.row(
                _CREATE,
                account_id,
                trunk_id,
                self._ids.new(),
                phone_number,
                name,
                datetime.now(UTC),
            )
        except ConstraintError as error:
            if error.constraint != "trunks_phone_number_count":
                raise
            raise PreconditionError(
                "TOO_MANY_PHONE_NUMBERS", "the trunk has as many phone numbers as one may have"
            ) from None
        return rows.number(row) if row else None

    async def get(
        self, account_id: str, trunk_id: str, number_id: str
    ) -> phone_number_pb2.PhoneNumber | None:
        """The number, None where the trunk has none of this id."""
        row = await self._database.row(_GET, account_id, trunk_id, number_id)
        return rows.number(row) if row else None

    async def list_page(
        self, account_id: str, trunk_id: str, after: str, most: int
    ) -> list[phone_number_pb2.PhoneNumber]:
        """The numbers after an id, in the order in which they were added."""
        found = await self._database.rows(_LIST, account_id, trunk_id, after, most)
        return [rows.number(row) for row in found]

    async def list_page_of_several(
        self, account_id: str, trunk_ids: Sequence[str], after: tuple[str, str], most: int
    ) -> list[phone_number_pb2.PhoneNumber]:
        """The numbers of several trunks after a trunk's and a number's id, in that order."""
        found = await self._database.rows(
            _LIST_OF_SEVERAL, account_id, trunk_ids, after[0], after[1], most
        )
        return [rows.number(row) for row in found]

    async def trunk_exists(self, account_id: str, trunk_id: str) -> bool:
        """Whether the account has the trunk."""
        row = await self._database.row(
            "SELECT 1 FROM trunks WHERE account_id = $1 AND id = $2", account_id, trunk_id
        )
        return row is not None

    async def rename(
        self, account_id: str, trunk_id: str, number_id: str, name: str | None
    ) -> phone_number_pb2.PhoneNumber | None:
        """Set or clear a number's name; None where the trunk has no such number."""
        row = await self._database.row(_UPDATE, account_id, trunk_id, number_id, name)
        return rows.number(row) if row else None

    async def delete(self, account_id: str, trunk_id: str, number_id: str) -> bool:
        """Remove a number; whether there was one."""
        return await self._database.row(_DELETE, account_id, trunk_id, number_id) is not None

"""Runs the statements that write trunks."""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import asyncpg

from siptrunk.v1 import sip_trunk_pb2
from trunkline import rows, rules
from trunkline.codecs import Catalogue
from trunkline.sealing import KeyRing
from trunkline.store import updates
from trunkline.store.database import Database
from trunkline.store.mutations import Earlier, Mutation, Mutations
from trunkline.store.reads import TrunkReads
from trunkline.store.updates import COLUMNS, FIXED, SECRETS
from trunkline.turns import in_turns
from trunkline.ulids import Ulids

SipTrunk = sip_trunk_pb2.SipTrunk

BATCH_MAX = 100
_PLACES = {column.name: place for place, column in enumerate([*COLUMNS, *FIXED])}


@dataclass(frozen=True, slots=True)
class Updated:
    """What became of an update.

    Attributes:
        trunk: as it now is.
        fits: whether the etag held and immutable fields were equal; nothing is written where not.
        changed: the names of the fields that changed.
    """

    trunk: sip_trunk_pb2.SipTrunk
    fits: bool
    changed: Sequence[str]


@dataclass(frozen=True, slots=True)
class Deleted:
    """What became of a delete: the trunk's etag, its numbers, and whether it is gone."""

    etag: str
    phone_number_count: int
    done: bool


@dataclass(frozen=True, slots=True)
class Edit:
    """One update of several: the trunk, the etag that it must have, and the change."""

    trunk_id: str
    etag: str | None
    change: rules.Change


_ONE_BATCH = "SELECT pg_advisory_xact_lock(hashtextextended('batch ' || $1::text, 0))"
Judge = Callable[[Mapping[str, sip_trunk_pb2.SipTrunk]], Awaitable[Sequence[Edit]]]


class TrunkStore(TrunkReads):
    """The trunks of every account, each call in one of them.

    Args:
        database: where they are.
        catalogue: the codecs of the deployment.
        ring: seals the secrets that are written.
        ids: makes identifiers.
        mutations: runs what changes something.
    """

    def __init__(
        self,
        database: Database,
        catalogue: Catalogue,
        ring: KeyRing,
        ids: Ulids,
        mutations: Mutations,
    ) -> None:
        super().__init__(database, rows.TrunkReader(catalogue.offer))
        self._catalogue = catalogue
        self._ring = ring
        self._ids = ids
        self._mutations = mutations
        self._update = updates.update(self._reader.select)
        self._create = updates.create(self._reader.select)
        self._locked = updates.locked(self._reader.select, BATCH_MAX)

    async def create(
        self, mutation: Mutation, values: dict[str, rules.Value], numbers: Sequence[dict[str, Any]]
    ) -> sip_trunk_pb2.SipTrunk | None:
        """Write a trunk and its first numbers.

        Raises:
            ExistsError: its name, or a number, is taken.
        """
        trunk_id, now = self._ids.new(), datetime.now(UTC)
        account_id = mutation.account_id
        arguments = [
            *mutation.arguments(trunk_id, self._ring),
            now,
            [self._ids.new() for _ in numbers],
            [n["phone_number"] for n in numbers],
            [n["name"] for n in numbers],
            *self._values(
                account_id,
                trunk_id,
                values,
                made=not mutation.validate_only,
            ),
        ]

        async def work() -> sip_trunk_pb2.SipTrunk | None:
            row = await self._database.row(self._create, *arguments, trial=mutation.validate_only)
            return self._reader.trunk(row) if row else None

        made = await self._mutations.once(mutation, work)
        if isinstance(made, Earlier):
            return (await self._earlier(account_id, made))[0].trunk
        return made

    async def update(self, mutation: Mutation, edit: Edit) -> Updated | None:
        """Apply a change where it makes a difference, the etag holds and immutables are equal.

        Raises:
            ConstraintError: the merged trunk breaks a rule; nothing is written.
            ExistsError: the name is taken; nothing is written.

        Returns:
            None where the account has no such trunk.
        """
        arguments = self._update_arguments(mutation, edit)

        async def work() -> Updated | None:
            row = await self._database.row(self._update, *arguments, trial=mutation.validate_only)
            return self._updated(row) if row else None

        updated = await self._mutations.once(mutation, work)
        if isinstance(updated, Earlier):
            return (await self._earlier(mutation.account_id, updated))[0]
        return updated

    async def edit(
        self, mutation: Mutation, trunk_ids: Sequence[str], judge: Judge, *, renames: bool = False
    ) -> list[Updated] | None:
        """Update trunks, all or none, under row locks held while `judge` looks at them.

        Args:
            mutation: the call.
            trunk_ids: at most BATCH_MAX.
            judge: given the trunks that there are, by id, says what to do with them in which
                order, or raises; nothing is written then.
            renames: whether names may change, in which batches would wait for each other in no
                order: then an account's go one after the other.

        Raises:
            ExistsError: a name is taken; nothing is written.

        Returns:
            None where the account has none of the trunks.
        """

        async def work() -> list[asyncpg.Record] | None:
            async with self._database.transaction(trial=mutation.validate_only) as connection:
                who = mutation.arguments(trunk_ids[0], self._ring)
                if renames:
                    await connection.execute(_ONE_BATCH, mutation.account_id)
                found = await connection.fetch(self._locked, *who, trunk_ids)
                stored = {t.id: t for t in await in_turns(map(self._reader.trunk, found))}
                if not stored:
                    return None
                edits = await judge(stored)
                each = mutation.forgetful()
                made = (self._update_arguments(each, edit) for edit in edits)
                written = await connection.fetchmany(self._update, await in_turns(made))
                assert all(row["fits"] for row in written)  # the judge has seen these very rows
                answer = [[row["id"], row["revision"], row["changed"]] for row in written]
                if mutation.remembers:
                    kept = json.dumps({"trunks": answer})
                    await connection.execute(updates.REMEMBER, *who, kept)
                return written

        written = await self._mutations.once(mutation, work)
        if isinstance(written, Earlier):
            return await self._earlier(mutation.account_id, written)
        if written is None:
            return None
        return await in_turns(map(self._updated, written))

    async def edited_before(self, mutation: Mutation) -> list[Updated] | None:
        """What the same call was answered with before; None where it was not made."""
        if not mutation.remembers:
            return None
        earlier = await self._mutations.earlier(mutation)
        return await self._earlier(mutation.account_id, earlier) if earlier else None

    async def delete(
        self, mutation: Mutation, trunk_id: str, etag: str | None, *, force: bool
    ) -> Deleted | None:
        """Delete a trunk where the etag holds and it has no numbers, or `force` is given."""
        revision, updated_at = rows.etag_parts(etag) if etag else (None, None)
        who = mutation.arguments(trunk_id, self._ring)

        async def work() -> Deleted | None:
            row = await self._database.row(
                updates.DELETE, *who, revision, updated_at, force, trial=mutation.validate_only
            )
            if row is None:
                return None
            now_is = rows.etag(row["revision"], row["updated_at"])
            return Deleted(now_is, row["phone_number_count"], row["done"])

        deleted = await self._mutations.once(mutation, work)
        if isinstance(deleted, Earlier):
            return Deleted("", deleted.answer["count"], done=True)
        return deleted

    async def _earlier(self, account_id: str, earlier: Earlier) -> list[Updated]:
        answer = earlier.answer["trunks"]
        found = await self._database.rows(
            "SELECT r.trunk FROM unnest($2::text[], $3::bigint[]) WITH ORDINALITY"
            " AS a(trunk_id, revision, position)"
            " JOIN trunk_revisions AS r ON r.account_id = $1 AND r.trunk_id = a.trunk_id"
            " AND r.revision = a.revision ORDER BY a.position",
            account_id,
            [trunk_id for trunk_id, _, _ in answer],
            [revision for _, revision, _ in answer],
        )
        return [
            Updated(self._reader.snapshot(row["trunk"]), fits=True, changed=changed)
            for row, (_, _, changed) in zip(found, answer, strict=True)
        ]

    def _updated(self, row: asyncpg.Record) -> Updated:
        return Updated(self._reader.trunk(row), row["fits"], row["changed"])

    def _update_arguments(self, mutation: Mutation, edit: Edit) -> list[Any]:
        revision, updated_at = rows.etag_parts(edit.etag) if edit.etag else (None, None)
        trunk_id, change, account_id = edit.trunk_id, edit.change, mutation.account_id
        made = not mutation.validate_only
        values = change.values | change.expected
        named = list(values)
        return [
            *mutation.arguments(trunk_id, self._ring),
            named,
            updates.bits_of(named),
            revision,
            updated_at,
            *self._values(account_id, trunk_id, values, made=made),
        ]

    def _values(
        self, account_id: str, trunk_id: str, values: Mapping[str, rules.Value], *, made: bool
    ) -> list[Any]:
        """Values for COLUMNS and FIXED; None for what is not given."""
        found: dict[str, Any] = {}
        for name, value in values.items():
            if name == "gateways":
                found[name] = self._gateways(value, made=made)
            elif isinstance(value, list):
                found[name] = json.dumps(value)
            else:
                found[name] = value
        if isinstance(allow := values.get("allow"), str):
            found["allow_codecs"] = list(self._catalogue.walk(allow))
        if isinstance(disallow := values.get("disallow"), str):
            found["disallow_codecs"] = list(self._catalogue.removed(disallow))
        for f in SECRETS:
            if isinstance(secret := found.pop(f.name, None), str):
                found[f"{f.name}_sealed"] = self._ring.seal(secret, account_id, trunk_id, f.name)
                found[f"{f.name}_key_id"] = self._ring.newest
        row: list[Any] = [None] * len(_PLACES)
        for name, column in found.items():
            row[_PLACES[name]] = column
        return row

    def _gateways(self, items: rules.Value, *, made: bool) -> str:
        """Gateways with what those among them get that are `new`; nothing in a trial."""
        now = datetime.now(UTC)
        assert isinstance(items, list)
        return json.dumps(
            [
                i | {"new": {"id": self._ids.new(), "created_at": now} if made else {}}
                for i in items
            ],
            default=datetime.isoformat,
        )

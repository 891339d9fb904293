"""One trunk as a caller may think of it: what each operation does to it, done in turn."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple, TypeAlias

from siptrunk.v1 import sip_trunk_pb2
from tests.model.checker import Operation

GATEWAYS_MAX = 32
PRIORITY_DEFAULT = 1


class Place(NamedTuple):
    """What a gateway is told by: as long as it stays, so does its id."""

    address: str
    port: int | None


class Gateway(NamedTuple):
    """A gateway of a trunk."""

    id: str
    place: Place
    priority: int


class Wanted(NamedTuple):
    """A gateway that a caller sends; without a priority, it has the default if it is new."""

    place: Place
    priority: int | None


@dataclass(frozen=True, slots=True)
class Values:
    """The fields that the model knows."""

    description: str | None = None
    qualify_frequency: int = 60
    is_active: bool = True
    gateways: tuple[Gateway, ...] = ()
    ip_identifiers: tuple[str, ...] = ()

    @classmethod
    def of(cls, trunk: sip_trunk_pb2.SipTrunk) -> "Values":
        """Those of a trunk that the service has shown."""
        return cls(
            trunk.description if trunk.HasField("description") else None,
            trunk.qualify_frequency,
            trunk.is_active,
            tuple(
                Gateway(
                    g.id,
                    Place(g.gateway_address, g.port if g.HasField("port") else None),
                    g.priority,
                )
                for g in trunk.gateways
            ),
            tuple(i.ip_address for i in trunk.ip_identifiers),
        )

    def changed(self, other: "Values") -> frozenset[str]:
        """The names of the fields in which they differ."""
        names = (f.name for f in fields(self))
        return frozenset(n for n in names if getattr(self, n) != getattr(other, n))


def revision_of(etag: str) -> int:
    """The revision in an etag."""
    return int(etag.strip('"').partition("-")[0], 16)


@dataclass(frozen=True, slots=True)
class Create:
    """CreateSipTrunk."""

    values: Values


@dataclass(frozen=True, slots=True)
class Get:
    """GetSipTrunk."""


@dataclass(frozen=True, slots=True)
class Delete:
    """DeleteSipTrunk."""

    etag: int | None = None


@dataclass(frozen=True, slots=True)
class Revert:
    """RevertSipTrunk."""

    revision: int
    etag: int | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """UpdateSipTrunk: values by field, where `gateways` is what is wanted."""

    values: tuple[tuple[str, object], ...]
    gateways: tuple[Wanted, ...] | None = None
    etag: int | None = None


@dataclass(frozen=True, slots=True)
class AddGateways:
    """AddGateways."""

    gateways: tuple[Wanted, ...]
    etag: int | None = None


@dataclass(frozen=True, slots=True)
class RemoveGateways:
    """RemoveGateways."""

    ids: frozenset[str]
    etag: int | None = None


@dataclass(frozen=True, slots=True)
class AddIps:
    """AddIpIdentifiers."""

    addresses: tuple[str, ...]
    etag: int | None = None


@dataclass(frozen=True, slots=True)
class RemoveIps:
    """RemoveIpIdentifiers."""

    addresses: frozenset[str]
    etag: int | None = None


Change: TypeAlias = (
    Delete | Revert | Update | AddGateways | RemoveGateways | AddIps | RemoveIps | Create
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A call.

    Attributes:
        call: what it asks for.
        ids: the ids that the service gave to gateways that the call brought, by their place:
            no model can foresee them.
        revision: the one that it made, where nobody was told and the stored history is asked.
    """

    call: Change | Get
    ids: Mapping[Place, str] = field(default_factory=dict)
    revision: int | None = None


@dataclass(frozen=True, slots=True)
class Shown:
    """The trunk came back; `changed` where the answer says what changed."""

    values: Values
    revision: int
    changed: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Gone:
    """The trunk was deleted."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The call was refused, by its reason; nothing was written."""

    reason: str
    revision: int | None = None
    """The current one, where the reason is a stale etag."""


Answer: TypeAlias = Shown | Gone | Refused
NO_TRUNK = Refused("TRUNK_NOT_FOUND")
TOO_FEW, TOO_MANY = Refused("TOO_FEW"), Refused("TOO_MANY")


class Trunk(NamedTuple):
    """A state: the values, None where there is no trunk, and the revision.

    `kept` has the values at those revisions that some call of the history goes back to. No other
    ones, so that states which differ in their past alone, and never will in more, are the same.
    """

    values: Values | None
    revision: int
    kept: tuple[tuple[int, Values | None], ...] = ()
    wanted: frozenset[int] = frozenset()

    def then(self, values: Values | None) -> "Trunk":
        """The next revision."""
        revision, kept = self.revision + 1, self.kept
        if revision in self.wanted:
            kept = (*kept, (revision, values))
        return Trunk(values, revision, kept, self.wanted)


def absent(history: Iterable[Operation]) -> Trunk:
    """The state before a history."""
    calls = (one.what.call for one in history)
    return Trunk(None, 0, (), frozenset(c.revision for c in calls if isinstance(c, Revert)))


def step(state: Trunk, operation: Operation) -> Sequence[Trunk]:
    """The model: what an operation leaves, if it can end as it did."""
    after, answer = apply(state, operation.what)
    if not operation.known:
        return [after] if operation.what.revision in (None, after.revision) else []
    told = operation.answer
    if isinstance(told, Shown) and told.changed is None and isinstance(answer, Shown):
        answer = replace(answer, changed=None)
    return [after] if answer == told else []


def hope(state: Trunk, operation: Operation) -> bool:
    """Whether an operation may still end as it did: revisions only rise."""
    told = operation.answer
    if isinstance(told, Shown):
        made = isinstance(operation.what.call, Create)
        most = told.revision - bool(told.changed)
        return state.revision <= most and (made or state.values is not None)
    if isinstance(told, Refused) and told.revision is not None:
        return state.revision <= told.revision and state.values is not None
    return not isinstance(told, Gone) or state.values is not None


def apply(state: Trunk, asked: Asked) -> tuple[Trunk, Answer]:
    """What a call does, and what it is answered with."""
    call, values = asked.call, state.values
    if isinstance(call, Create):
        assert state.revision == 0
        after = state.then(_given(call.values, asked.ids))
        assert after.values is not None
        return after, Shown(after.values, after.revision)
    if values is None:
        return state, NO_TRUNK
    if isinstance(call, Get):
        return state, Shown(values, state.revision)
    if call.etag is not None and call.etag != state.revision:
        return state, Refused("ETAG_MISMATCH", state.revision)
    if isinstance(call, Delete):
        return state.then(None), Gone()
    wanted = _wanted(state, values, asked)
    if isinstance(wanted, Refused):
        return state, wanted
    changed = values.changed(wanted)
    after = state.then(wanted) if changed else state
    return after, Shown(wanted, after.revision, changed)


def _wanted(state: Trunk, values: Values, asked: Asked) -> Values | Refused:
    """The values that a change leads to."""
    call = asked.call
    if isinstance(call, Revert):
        return dict(state.kept).get(call.revision) or Refused("REVISION_NOT_FOUND")
    if isinstance(call, AddIps):
        new = tuple(a for a in call.addresses if a not in values.ip_identifiers)
        return replace(values, ip_identifiers=values.ip_identifiers + new)
    if isinstance(call, RemoveIps):
        kept = tuple(a for a in values.ip_identifiers if a not in call.addresses)
        return replace(values, ip_identifiers=kept)
    if isinstance(call, Update):
        wanted = replace(values, **dict(call.values))  # type: ignore[arg-type]
        if call.gateways is None:
            return wanted
        return _listed(wanted, [_made(values, w, asked.ids) for w in call.gateways])
    if isinstance(call, RemoveGateways):
        return _listed(values, [g for g in values.gateways if g.id not in call.ids])
    assert isinstance(call, AddGateways)
    gateways = list(values.gateways)
    for one in call.gateways:
        position = next((i for i, g in enumerate(gateways) if g.place == one.place), None)
        if position is None:
            gateways.append(_made(values, one, asked.ids))
        elif one.priority is not None:
            gateways[position] = gateways[position]._replace(priority=one.priority)
    return _listed(values, gateways)


def _listed(values: Values, gateways: list[Gateway]) -> Values | Refused:
    if not gateways:
        return TOO_FEW
    if len(gateways) > GATEWAYS_MAX:
        return TOO_MANY
    return replace(values, gateways=tuple(sorted(gateways, key=lambda g: g.priority)))


def _made(values: Values, one: Wanted, ids: Mapping[Place, str]) -> Gateway:
    """A gateway that is wanted: with the id that it has, else with the one that it was given."""
    known = next((g.id for g in values.gateways if g.place == one.place), None)
    priority = PRIORITY_DEFAULT if one.priority is None else one.priority
    return Gateway(known or ids.get(one.place, ""), one.place, priority)


def _given(values: Values, ids: Mapping[Place, str]) -> Values:
    gateways = (g._replace(id=ids.get(g.place, g.id)) for g in values.gateways)
    return replace(values, gateways=tuple(gateways))

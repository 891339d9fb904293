"""Whether a history of concurrent operations could have come from one that did them in turn.

The search of Wing and Gong, with Lowe's memory: an operation may take effect at any instant
between its invocation and its return. What the search has placed already, and the state that it
has come to, are kept together, so that no such pair is searched from twice. One history is that of
one object, since histories of different objects are independent (Herlihy and Wing).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

STEPS_MAX = 1_000_000


class State(Protocol):
    """A state of the model: equal ones are the same."""

    def __hash__(self) -> int: ...

    def __eq__(self, other: object, /) -> bool: ...


S = TypeVar("S", bound=State)
Model = Callable[[S, "Operation"], Sequence[S]]
"""The states that an operation may leave, given the one before; none where it can't end so.

Of one whose outcome is not known, those that it may leave where it takes effect.
"""
Hope = Callable[[S, "Operation"], bool]
"""Whether an operation whose outcome is known may still be placed, after a state or later ones.

Without it, operations whose outcome is not known would be tried in every order of theirs.
"""


@dataclass(frozen=True, slots=True)
class Operation:
    """One call, as its caller saw it.

    Attributes:
        invoked: when, by a clock that only counts.
        returned: when it was answered; infinity where its outcome is not known. Such an operation
            may take effect at any time after it was invoked, or never.
        what: what was asked.
        answer: what came back; None where the outcome is not known.
    """

    invoked: float
    returned: float
    what: Any
    answer: Any = None

    @property
    def known(self) -> bool:
        """Whether its outcome is known."""
        return self.returned != math.inf


@dataclass(frozen=True, slots=True)
class Verdict(Generic[S]):
    """What a search found.

    Attributes:
        order: operations in the order of a history that did them in turn: all whose outcome is
            known where there is one, else the most that could be placed.
        state: where that order leads.
        stuck: operations of which one would have had to be next, and none could.
    """

    order: Sequence[Operation]
    state: S
    stuck: Sequence[Operation]

    @property
    def linearizable(self) -> bool:
        """Whether there is such an order."""
        return not self.stuck

    def __str__(self) -> str:
        if self.linearizable:
            return f"{len(self.order)} operations in order"
        last = "\n  ".join(str(one) for one in self.order[-6:])
        stuck = "\n  ".join(str(one) for one in self.stuck)
        return (
            f"after {len(self.order)} operations, the last of which are\n  {last}\n"
            f"which lead to\n  {self.state}\nnone of these can be next:\n  {stuck}"
        )


class _Entry:
    """A call or a return in the list of what is not placed yet, in the order of time."""

    __slots__ = ("next", "number", "operation", "previous", "returns")

    def __init__(self, number: int, operation: Operation | None) -> None:
        self.number, self.operation = number, operation
        self.returns: _Entry | None = None
        self.previous: _Entry = self
        self.next: _Entry | None = None

    def lift(self) -> None:
        """Take it out."""
        self.previous.next = self.next
        if self.next is not None:
            self.next.previous = self.previous

    def unlift(self) -> None:
        """Put it back where it was; the last one taken out is the first to be put back."""
        self.previous.next = self
        if self.next is not None:
            self.next.previous = self


def check(history: Iterable[Operation], model: Model[S], hope: Hope[S], start: S) -> Verdict[S]:
    """Search for an order in which a model does a history's operations in turn.

    Raises:
        RuntimeError: it takes more than STEPS_MAX steps.
    """
    head = _entries(history)
    state, placed, seen = start, 0, set[tuple[int, S]]()
    way = [_Stop(None, start, _choices(head, start, model, hope))]
    order, stuck = list[Operation](), list[Operation]()
    for _ in range(STEPS_MAX):
        if not any(one.known for one in _next_of(head)):
            return Verdict(_order(way), state, ())
        for entry, after in way[-1].choices:
            reached = (placed | 1 << entry.number, after)
            if reached in seen:
                continue
            seen.add(reached)
            placed, state = reached
            _place(entry)
            way.append(_Stop(entry, after, _choices(head, after, model, hope)))
            break
        else:
            if not stuck or len(way) > len(order) + 1:
                order, stuck, furthest = _order(way), _next_of(head), state
            last = way.pop()
            if last.entry is None:
                return Verdict(order, furthest, stuck)
            placed &= ~(1 << last.entry.number)
            _unplace(last.entry)
            state = way[-1].state
    raise RuntimeError(f"no verdict within {STEPS_MAX} steps")


def overlapping(history: Iterable[Operation]) -> int:
    """How many pairs of operations with a known outcome were under way at the same time."""
    moments = sorted(
        moment for one in history if one.known for moment in ((one.invoked, 1), (one.returned, -1))
    )
    pairs = under_way = 0
    for _, step in moments:
        if step > 0:
            pairs += under_way
        under_way += step
    return pairs


class _Stop(Generic[S]):
    """A stop on the way of the search: what was placed last, where it led, what is left to try."""

    __slots__ = ("choices", "entry", "state")

    def __init__(
        self, entry: _Entry | None, state: S, choices: "Iterator[tuple[_Entry, S]]"
    ) -> None:
        self.entry, self.state, self.choices = entry, state, choices


def _choices(
    head: _Entry, state: S, model: Model[S], hope: Hope[S]
) -> "Iterator[tuple[_Entry, S]]":
    """What could be next, and where it would lead: what is most likely first."""
    calls = _calls(head)
    soon = [call.operation for call in calls if call.returns is not None]
    if not all(hope(state, one) for one in soon if one is not None):
        return
    # What nobody has heard of comes last, and of that, what was begun last comes first.
    calls.sort(key=lambda call: call.number if call.returns is not None else math.inf)
    known = len(soon)
    for call in calls[:known] + calls[known:][::-1]:
        assert call.operation is not None
        for after in model(state, call.operation):
            # If it leaves all as it is, and nobody heard of it, it may as well never have been.
            if call.returns is not None or after != state:
                yield call, after


def _order(way: "Sequence[_Stop[S]]") -> list[Operation]:
    return [stop.entry.operation for stop in way if stop.entry and stop.entry.operation]


def _entries(history: Iterable[Operation]) -> _Entry:
    moments = list[tuple[float, _Entry]]()
    for number, one in enumerate(sorted(history, key=lambda o: (o.invoked, o.returned))):
        call = _Entry(number, one)
        moments.append((one.invoked, call))
        if one.known:
            call.returns = _Entry(number, None)
            moments.append((one.returned, call.returns))
    head = last = _Entry(-1, None)
    for _, entry in sorted(moments, key=lambda m: m[0]):
        last.next, entry.previous = entry, last
        last = entry
    return head


def _place(call: _Entry) -> None:
    call.lift()
    if call.returns is not None:
        call.returns.lift()


def _unplace(call: _Entry) -> None:
    if call.returns is not None:
        call.returns.unlift()
    call.unlift()


def _calls(head: _Entry) -> list[_Entry]:
    """The calls that could be next as far as time goes: those before the first return."""
    found, entry = list[_Entry](), head.next
    while entry is not None and entry.operation is not None:
        found.append(entry)
        entry = entry.next
    return found


def _next_of(head: _Entry) -> list[Operation]:
    return [call.operation for call in _calls(head) if call.operation is not None]

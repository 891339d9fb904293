"""The checker itself: bent histories that it must refuse, and good ones that it must not."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.model.checker import Operation, Verdict, check, overlapping
from tests.model.trunk import (
    AddIps,
    Answer,
    Asked,
    Change,
    Create,
    Delete,
    Get,
    Gone,
    Refused,
    Revert,
    Shown,
    Trunk,
    Update,
    Values,
    absent,
    apply,
    hope,
    step,
)

FIRST = Values()
CALLERS = 6


def asked(call: Change | Get) -> Asked:
    return Asked(call)


def described(text: str, etag: int | None = None) -> Asked:
    return Asked(Update((("description", text),), etag=etag))


def shown(revision: int, description: str | None = None, **more: Any) -> Shown:
    return Shown(replace(FIRST, description=description, **more), revision)


CREATED = Operation(0, 1, asked(Create(FIRST)), shown(1))


def checked(history: Sequence[Operation]) -> Verdict[Trunk]:
    return check(history, step, hope, absent(history))


def verdict(*operations: Operation) -> bool:
    return checked([CREATED, *operations]).linearizable


def test_one_call_after_the_other_is_in_order() -> None:
    assert verdict(
        Operation(2, 3, described("a"), shown(2, "a")),
        Operation(4, 5, asked(Get()), shown(2, "a")),
        Operation(6, 7, described("a"), shown(2, "a")),
        Operation(8, 9, asked(Revert(1)), shown(3)),
        Operation(10, 11, asked(Delete(etag=3)), Gone()),
        Operation(12, 13, asked(Get()), Refused("TRUNK_NOT_FOUND")),
    )


def test_calls_at_the_same_time_may_be_in_either_order() -> None:
    for first, second in ((2, 3), (3, 2)):
        assert verdict(
            Operation(2, 10, described("a"), shown(first, "a")),
            Operation(3, 11, described("b"), shown(second, "b")),
        )


def test_a_read_during_a_write_may_see_either_state() -> None:
    for read in (shown(1), shown(2, "a")):
        assert verdict(
            Operation(2, 10, described("a"), shown(2, "a")),
            Operation(3, 4, asked(Get()), read),
        )


def test_a_lost_update_is_found() -> None:
    # Each did its own on the first revision: the one's description is gone.
    both = replace(FIRST, qualify_frequency=30)
    assert not verdict(
        Operation(2, 10, described("a"), shown(2, "a")),
        Operation(3, 11, Asked(Update((("qualify_frequency", 30),))), Shown(both, 3)),
    )


def test_a_stale_read_is_found() -> None:
    assert not verdict(
        Operation(2, 3, described("a"), shown(2, "a")),
        Operation(4, 5, asked(Get()), shown(1)),
    )


def test_two_reads_that_see_a_write_come_and_go_are_found() -> None:
    assert not verdict(
        Operation(2, 10, described("a"), shown(2, "a")),
        Operation(3, 4, asked(Get()), shown(2, "a")),
        Operation(5, 6, asked(Get()), shown(1)),
    )


def test_a_write_that_is_done_twice_is_found() -> None:
    assert not verdict(
        Operation(2, 3, described("a"), shown(2, "a")),
        Operation(4, 5, described("b"), shown(3, "b")),
        Operation(6, 7, asked(Get()), shown(4, "a")),
    )


def test_a_revision_that_goes_back_is_found() -> None:
    assert not verdict(
        Operation(2, 3, described("a"), shown(2, "a")),
        Operation(4, 5, described("b"), shown(3, "b")),
        Operation(6, 7, described("a"), shown(2, "a")),
    )


def test_a_revision_that_is_passed_over_is_found() -> None:
    assert not verdict(Operation(2, 3, described("a"), shown(3, "a")))


def test_an_effect_before_its_invocation_is_found() -> None:
    assert not verdict(
        Operation(2, 3, asked(Get()), shown(2, "a")),
        Operation(4, 5, described("a"), shown(2, "a")),
    )


def test_an_effect_of_a_call_without_an_answer_before_its_invocation_is_found() -> None:
    assert not verdict(
        Operation(2, 3, asked(Get()), shown(2, "a")),
        Operation(4, math.inf, described("a")),
    )


def test_an_acknowledged_write_that_is_missing_is_found() -> None:
    assert not verdict(
        Operation(2, 3, described("a"), shown(2, "a")),
        Operation(4, 5, described("b"), shown(2, "b")),
    )


def test_two_writers_that_both_succeed_with_one_etag_are_found() -> None:
    assert not verdict(
        Operation(2, 10, described("a", etag=1), shown(2, "a")),
        Operation(3, 11, described("b", etag=1), shown(3, "b")),
    )
    assert verdict(
        Operation(2, 10, described("a", etag=1), shown(2, "a")),
        Operation(3, 11, described("b", etag=1), Refused("ETAG_MISMATCH", 2)),
    )


def test_an_etag_that_is_refused_though_it_holds_is_found() -> None:
    assert not verdict(Operation(2, 3, described("a", etag=1), Refused("ETAG_MISMATCH", 1)))


def test_a_trunk_that_comes_back_is_found() -> None:
    assert not verdict(
        Operation(2, 3, asked(Delete()), Gone()),
        Operation(4, 5, asked(Get()), shown(1)),
    )


def test_a_wrong_word_on_what_changed_is_found() -> None:
    for changed, right in ((frozenset({"description"}), True), (frozenset[str](), False)):
        answer = replace(shown(2, "a"), changed=changed)
        assert verdict(Operation(2, 3, described("a"), answer)) == right


def test_a_call_without_an_answer_may_have_been_done_now_later_or_never() -> None:
    unknown = Operation(2, math.inf, described("a"))
    assert verdict(unknown, Operation(3, 4, asked(Get()), shown(1)))
    assert verdict(unknown, Operation(3, 4, asked(Get()), shown(2, "a")))
    assert verdict(
        unknown,
        Operation(3, 4, described("b"), shown(2, "b")),
        Operation(5, 6, asked(Get()), shown(3, "a")),
    )


def test_a_call_without_an_answer_is_not_done_twice() -> None:
    assert not verdict(
        Operation(2, math.inf, described("a")),
        Operation(3, 4, asked(Get()), shown(2, "a")),
        Operation(5, 6, described("b"), shown(3, "b")),
        Operation(7, 8, asked(Get()), shown(4, "a")),
    )


def test_a_verdict_names_what_could_not_be_next() -> None:
    late = Operation(4, 5, asked(Get()), shown(1))
    found = checked([CREATED, Operation(2, 3, described("a"), shown(2, "a")), late])
    assert found.stuck == [late]
    assert len(found.order) == 2
    assert "Get()" in str(found)


def test_pairs_that_overlap_are_counted() -> None:
    def one(start: float, end: float) -> Operation:
        return Operation(start, end, None)

    assert overlapping([one(0, 2), one(1, 4), one(3, 5)]) == 2
    assert overlapping([one(0, 1), one(2, 3)]) == 0
    assert overlapping([one(0, 9), one(1, 2), one(3, math.inf), one(4, 8)]) == 2


def drawn(rng: random.Random, revision: int, number: int) -> Asked:
    etag = rng.choice((None, None, max(1, revision - rng.randrange(2))))
    choice = rng.randrange(6)
    if choice == 0:
        return asked(Get())
    if choice == 1:
        return asked(Revert(rng.randint(1, revision), etag))
    if choice == 2:
        return asked(AddIps((f"192.0.2.{number % 250}",), etag))
    if choice == 3:
        return Asked(Update((("qualify_frequency", rng.randrange(3)),), etag=etag))
    return described(f"n={number}", etag)


def made(rng: random.Random, length: int) -> list[Operation]:
    """A history of callers at one trunk, each of whose calls takes effect at some instant.

    Some of the answers are lost.
    """
    clock, history = 1.0, [CREATED]
    state = apply(Trunk(None, 0, (), frozenset(range(length))), CREATED.what)[0]
    waiting = dict[int, tuple[float, Asked, Answer | None]]()
    number = 0
    while number < length or waiting:
        clock += 1
        caller = rng.randrange(CALLERS)
        if caller not in waiting:
            if number < length:
                waiting[caller] = clock, drawn(rng, state.revision, number), None
                number += 1
            continue
        invoked, what, answer = waiting[caller]
        if answer is None and rng.random() < 0.03:  # it never arrived
            history.append(Operation(invoked, math.inf, what))
            del waiting[caller]
        elif answer is None:
            state, answer = apply(state, what)
            waiting[caller] = invoked, what, answer
        elif rng.random() < 0.03:  # it was done, and the answer lost
            history.append(Operation(invoked, math.inf, what))
            del waiting[caller]
        else:
            history.append(Operation(invoked, clock, what, answer))
            del waiting[caller]
    return history


@pytest.mark.parametrize("seed", range(12))
def test_a_good_history_of_many_callers_is_in_order(seed: int) -> None:
    history = made(random.Random(seed), 400)
    assert overlapping(history) > 400
    found = checked(history)
    assert found.linearizable, str(found)
    assert replay(found.order, absent(history)) == found.state


def replay(order: Sequence[Operation], state: Trunk) -> Trunk:
    for one in order:
        (state,) = step(state, one)
    return state


@pytest.mark.parametrize("seed", range(12))
def test_a_good_history_with_one_answer_bent_is_not(seed: int) -> None:
    """One write that was acknowledged is shown with a revision too high or too low."""
    rng = random.Random(seed)
    history = made(rng, 400)
    writes = [
        i
        for i, one in enumerate(history)
        if isinstance(one.answer, Shown) and one.answer.changed and i > 50
    ]
    place = rng.choice(writes)
    answer = history[place].answer
    bent = replace(answer, revision=answer.revision + rng.choice((-1, 1)))
    history[place] = replace(history[place], answer=bent)
    assert not checked(history).linearizable

"""What `trunkline secrets` makes of keys and counts."""

from trunkline.cli.secrets import Key, free, table


def rows(found: list[Key]) -> list[tuple[str, str, bool, bool]]:
    return [(key.key_id, key.state, key.in_ring, key.newest) for key in found]


def test_keys_of_the_ring_come_first_and_then_those_that_are_missing() -> None:
    found = table(["k3", "k1"], [], {"k1": 4, "k2": 5, "k0": 6}, {"k3": 7, "k9": 8})
    assert rows(found) == [
        ("k3", "newest", True, True),
        ("k1", "older", True, False),
        ("k0", "missing", False, False),
        ("k2", "missing", False, False),
        ("k9", "missing", False, False),
    ]
    assert [(key.secrets, key.answers) for key in found] == [(0, 7), (4, 0), (6, 0), (5, 0), (0, 8)]
    assert str(found[1]) == "k1  older  secrets=4  answers=0"


def test_a_key_that_is_not_the_databases_is_wrong_wherever_it_stands() -> None:
    assert rows(table(["k2", "k1"], ["k1"], {}, {}))[1] == ("k1", "wrong", True, False)
    assert rows(table(["k2", "k1"], ["k2"], {}, {}))[0] == ("k2", "wrong", True, True)


def test_only_older_keys_of_the_ring_are_free_to_go() -> None:
    found = table(["k3", "k2", "k1"], [], {"k3": 1}, {"k2": 9, "k0": 1})
    first, second = free(found, 24)
    assert first.startswith("k2 may be taken out of the keys once no answers are kept under it: 9 ")
    assert "each for 24 hours" in first
    assert second.startswith("k1 may be taken out of the keys; ")
    assert list(free(table(["k3"], [], {"k3": 1}, {}), 24)) == []

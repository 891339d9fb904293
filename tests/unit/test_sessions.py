"""The hosts of a database's URL."""

import pytest

from trunkline.store.sessions import hosts_of


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("postgresql://u@db/t", [{}]),
        ("postgresql://u@/t?host=%2Frun", [{}]),
        ("postgresql:///t", [{}]),
        ("postgresql://u:p%2C@a,b/t", [{"host": "a"}, {"host": "b"}]),
        ("postgresql://u@a:1,b:2/t", [{"host": "a", "port": 1}, {"host": "b", "port": 2}]),
        ("postgresql://u@[::1]:1,[::2]/t", [{"host": "::1", "port": 1}, {"host": "::2"}]),
        (
            "postgresql://u@a,b/t?port=1,2",
            [{"host": "a", "port": 1}, {"host": "b", "port": 2}],
        ),
        (
            "postgresql://u@/t?host=%2Frun%2Fpg,127.0.0.1&port=5432",
            [{"host": "/run/pg", "port": 5432}, {"host": "127.0.0.1", "port": 5432}],
        ),
    ],
)
def test_each_host_of_a_url_is_named_with_its_port(
    url: str, hosts: list[dict[str, object]]
) -> None:
    """One host alone is left to the driver, which knows more ways to name it."""
    assert hosts_of(url) == hosts


@pytest.mark.parametrize("hosts", ["[::1,b", "a,[::1]x"])
def test_a_host_that_cannot_be_read_is_refused(hosts: str) -> None:
    with pytest.raises(ValueError, match="host"):
        hosts_of(f"postgresql://u@/t?host={hosts}")

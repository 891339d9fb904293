"""Who is in a large database: which trunks, in which accounts, with which ids and values.

All of it follows from a trunk's number, in SQL (`filling.py`) as in Python, so that a load
generator can name any of a million trunks without a list of them.
"""

import hashlib
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

ACCOUNTS_MAX = 1000
TRUNKS_PER_ACCOUNT_MIN = 10
"""On the average: a small database has so many fewer accounts."""
PEER_TRUNKS = 190
"""About how many trunks the peer account has, in a database of any size."""
WIDE_NUMBERS = 20_000
WIDE_BATCH = 1000
OFTEN_CHANGES = 2000
"""Of the trunk in the middle of the largest account."""
SPREAD, SPREAD_MODULUS = 2_654_435_761, 1 << 32
"""A trunk's number by the one, modulo the other, spreads the trunks of an account evenly."""
PROVIDERS, CARRIERS, RANGES = 7, 5, 4
INACTIVE_EVERY = 10


@dataclass(frozen=True)
class Population:
    """The trunks 0 to `trunks` - 1, and the wide one, whose number is `trunks`.

    The account in place k (from 1) has a share of the trunks in proportion to 1/k. The trunks of an
    account are not next to each other in the order in which they were made, as it would be.
    """

    trunks: int
    bounds: list[float] = field(init=False)

    def __post_init__(self) -> None:
        shares = list(accumulate(1 / k for k in range(1, self.accounts + 1)))
        bounds = [float(round(s / shares[-1] * SPREAD_MODULUS)) for s in shares[:-1]]
        object.__setattr__(self, "bounds", bounds)

    @property
    def accounts(self) -> int:
        """How many there are."""
        return max(1, min(ACCOUNTS_MAX, self.trunks // TRUNKS_PER_ACCOUNT_MIN))

    @property
    def peer(self) -> int:
        """The account of about PEER_TRUNKS trunks, which also has the wide one."""
        ends = [0.0, *self.bounds, float(SPREAD_MODULUS)]
        sizes = [(b - a) / SPREAD_MODULUS * self.trunks for a, b in pairwise(ends)]
        return min(range(self.accounts), key=lambda k: abs(sizes[k] - PEER_TRUNKS))

    def account(self, n: int) -> int:
        """The account of a trunk, from 0, the largest first."""
        if n == self.trunks:
            return self.peer
        return bisect_right(self.bounds, n * SPREAD % SPREAD_MODULUS)

    def of_account(self, account: int) -> list[int]:
        """The trunks of an account, the oldest first."""
        found = [n for n in range(self.trunks) if self.account(n) == account]
        return [*found, self.trunks] if account == self.peer else found

    def middle(self, account: int) -> int:
        """The trunk in the middle of an account; of the largest the one that is changed often."""
        found = self.of_account(account)
        return found[len(found) // 2]


def account_id(account: int) -> str:
    """The id of an account."""
    return f"a-{account:04}"


def trunk_id(n: int) -> str:
    """The id of a trunk, of a ULID's form: it rises with `n`, and half of it is noise."""
    noise = hashlib.md5(str(n).encode(), usedforsecurity=False).hexdigest()[:16]
    return f"01{n:08X}{noise.upper()}"


def name(n: int) -> str:
    """The name of a trunk."""
    return f"Site {n}"


def number(n: int) -> str:
    """The first phone number of a trunk."""
    return f"+1{n:010}"


def own_gateway(n: int) -> str:
    """The gateway that no other trunk has."""
    return f"gw{n}.example.com"


def own_address(n: int) -> str:
    """The IP identifier that no other trunk has."""
    return f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}"


CARRIER, RANGE_ADDRESS, PROVIDER = "sip1.example.net", "203.0.113.70", "provider1"
"""A gateway, an address and a provider that a fifth, a fourth and a seventh of all trunks have."""

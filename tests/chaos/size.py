"""How much the tests under faults do: little in a pipeline, more where there is time."""

import os
from typing import TypeVar

T = TypeVar("T")
_SIZES = ("ci", "full")


def sized(ci: T, full: T) -> T:
    """One of two amounts, by TRUNKLINE_TEST_SIZE: `ci` (the default) or `full`."""
    size = os.environ.get("TRUNKLINE_TEST_SIZE", "ci")
    if size not in _SIZES:
        raise ValueError(f"TRUNKLINE_TEST_SIZE is none of {', '.join(_SIZES)}")
    return full if size == "full" else ci

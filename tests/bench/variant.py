"""`trunkline serve` with parts of the update's statement left out, to measure what they cost.

    python -m tests.bench.variant no-history serve
    python -m tests.bench.variant no-idempotency serve
    python -m tests.bench.variant neither serve

Only the text of the update's statement differs from the service's; every line of Python runs as
there. It is for measuring: without these parts there is no history, no feed, no safe retry.
"""

import sys

from trunkline.cli.main import main
from trunkline.store import updates

NO_HISTORY, NO_IDEMPOTENCY, NEITHER = "no-history", "no-idempotency", "neither"
_CALL = (
    "SELECT $1::text, $2::text, $3::text, $4::text, $5::text, $6::bytea, $7::text"  # their types
)


def leave_out_history() -> None:
    """No row in `trunk_revisions`, none in `feed_pending`."""
    # The mask is a parameter that is used nowhere else: its type must still be told.
    vars(updates)["revised"] = lambda *_, mask="1", **__: f"revised AS (SELECT {mask})"


def leave_out_idempotency() -> None:
    """No look at `requests`, no row in it."""
    vars(updates)["CLAIM"] = f"claim AS (SELECT true AS free FROM ({_CALL}) AS call)"
    vars(updates)["GO"] = "true"
    vars(updates)["remembered"] = lambda *_: "remembered AS (SELECT 1)"


if __name__ == "__main__":
    which = sys.argv[1]
    if which in (NO_HISTORY, NEITHER):
        leave_out_history()
    if which in (NO_IDEMPOTENCY, NEITHER):
        leave_out_idempotency()
    sys.exit(main(sys.argv[2:]))

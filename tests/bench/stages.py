"""`trunkline serve` whose updates end early with a trunk that was made before, by stage.

    python -m tests.bench.stages boundary serve

What comes before the stage's end runs as in the service, on the same calls, so the difference
between two stages is what lies between them. A profiler can't tell: a function that costs 1 us in a
loop costs 3 to 5 us where other work has emptied the caches, and a sampled thread may only wait.
"""

import sys
from typing import Any

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.bench import calls
from trunkline.cli.main import main
from trunkline.store.trunks import TrunkStore, Updated
from trunkline.trunks.trunks import TrunkMethods

BOUNDARY, RULES, ARGUMENTS, STATEMENT = "boundary", "rules", "arguments", "statement"
STAGES = (BOUNDARY, RULES, ARGUMENTS, STATEMENT)

_MADE = calls.first(0)
_MADE.id, _MADE.etag = calls.floor_ids(1)[0], '"1-60d5d5d5d5d5d"'
_MADE.ClearField("auth_password")
_MADE.codecs.extend(["ulaw", "alaw"])
_DONE = Updated(_MADE, fits=True, changed=["qualify_frequency"])


async def _answer(_: Any, __: pb.UpdateSipTrunkRequest, ___: Any) -> Any:
    return _MADE


async def _done(*_: Any) -> Updated:
    return _DONE


async def _told_what_to_do(store: Any, mutation: Any, edit: Any) -> Updated:
    store._update_arguments(mutation, edit)
    return _DONE


def end_at(stage: str) -> None:
    """Have every update end once a stage is through.

    Args:
        stage: `boundary`: who calls is known, the call is counted and will be logged; `rules`: the
            mask is planned and what is named is judged; `arguments`: those of the statement are
            made; `statement`: it has run, but its row is not made a trunk.
    """
    patches: dict[str, tuple[type, str, Any]] = {
        BOUNDARY: (TrunkMethods, "UpdateSipTrunk", _answer),
        RULES: (TrunkStore, "update", _done),
        ARGUMENTS: (TrunkStore, "update", _told_what_to_do),
        STATEMENT: (TrunkStore, "_updated", lambda *_: _DONE),
    }
    setattr(*patches[stage])


if __name__ == "__main__":
    end_at(sys.argv[1])
    sys.exit(main(sys.argv[2:]))

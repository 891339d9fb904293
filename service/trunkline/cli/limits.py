"""The limits that callers meet and that are no settings, by name, for `trunkline config`."""

from dataclasses import dataclass

from trunkline import config, errors, feed, interceptors, masks
from trunkline.store import database, trunks
from trunkline.trunks import items, numbers
from trunkline.trunks import trunks as methods


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit: its name, how much it is, and of what."""

    name: str
    value: float
    meaning: str


LIMITS = (
    Limit("MESSAGE_BYTES_MAX", config.MESSAGE_BYTES_MAX, "bytes of a request, gRPC or HTTP"),
    Limit("METADATA_BYTES_MAX", config.METADATA_BYTES_MAX, "bytes of the metadata of a call"),
    Limit("MASK_PATHS_MAX", masks.PATHS_MAX, "paths in an update mask"),
    Limit(
        "CALLS_OF_CONNECTION_MAX",
        config.STREAMS_PER_CONNECTION_MAX,
        "calls and streams at once on a connection; more wait at the client",
    ),
    Limit("WATCHERS_OF_ACCOUNT_MAX", feed.WATCHERS_OF_ACCOUNT_MAX, "watches at once of an account"),
    Limit(
        "CALL_SECONDS_MAX", int(interceptors.CALL_SECONDS_MAX), "seconds of a call, without streams"
    ),
    Limit(
        "DEADLINE_SECONDS_MIN",
        interceptors.DEADLINE_SECONDS_MIN,
        "seconds that a call has to have left when it comes",
    ),
    Limit("STATEMENT_SECONDS_MAX", database.STATEMENT_SECONDS_MAX, "seconds of a statement"),
    Limit("LOCK_SECONDS_MAX", database.LOCK_SECONDS_MAX, "seconds that it waits for a row"),
    Limit(
        "CLIENT_PING_SECONDS_MIN",
        config.CLIENT_PING_SECONDS_MIN,
        "seconds between a client's pings; a connection on which they come faster is ended",
    ),
    Limit("GATEWAYS_MAX", items.GATEWAYS_MAX, "gateways of a trunk"),
    Limit("IP_IDENTIFIERS_MAX", items.IP_IDENTIFIERS_MAX, "IP identifiers of a trunk"),
    Limit("TRUNKS_PAGE_MAX", methods.TRUNKS_PAGE_MAX, "trunks on a page"),
    Limit("NUMBERS_PAGE_MAX", numbers.NUMBERS_PAGE_MAX, "phone numbers on a page"),
    Limit("TRUNKS_BATCH_MAX", trunks.BATCH_MAX, "updates in a batch"),
    Limit("NUMBERS_BATCH_MAX", numbers.NUMBERS_BATCH_MAX, "phone numbers in a batch"),
    Limit("VIOLATIONS_MAX", errors.VIOLATIONS_MAX, "violations listed; more are counted"),
)

"""What the `OTEL_*` variables say, and what is wrong with them.

The SDK of OpenTelemetry reads most of them itself, and goes on with a default where it can't read
one. So they are looked at first. An empty one is one that is not set, as the specification has it.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

GRPC, HTTP = "grpc", "http/protobuf"
CONSOLE, NONE, OTLP = "console", "none", "otlp"
PROPAGATORS = ("tracecontext", "baggage")
TIMEOUT_MILLISECONDS = 10_000
_EXPORTERS = (OTLP, CONSOLE, NONE)
_PREFIXES = ("OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_")
"""What is for traces alone goes before what is for every signal."""
_RATIOS = ("traceidratio", "parentbased_traceidratio")
_SAMPLERS = (
    *("always_on", "always_off", "parentbased_always_on", "parentbased_always_off"),
    *_RATIOS,
)
_COUNTS = (
    *("OTEL_BSP_SCHEDULE_DELAY", "OTEL_BSP_EXPORT_TIMEOUT"),
    *("OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"),
    *(f"OTEL_{part}{limit}_LIMIT" for part in ("", "SPAN_") for limit in (
        "ATTRIBUTE_COUNT", "ATTRIBUTE_VALUE_LENGTH")),
    *("OTEL_SPAN_EVENT_COUNT_LIMIT", "OTEL_SPAN_LINK_COUNT_LIMIT"),
    *("OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT", "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT"),
)  # fmt: skip
_QUEUE_SIZE, _BATCH_SIZE = 2048, 512
_FILES = ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY")
_PAIR = re.compile(r"\s*[^\s=,]+\s*=[^,]*")


def set_ones(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of OpenTelemetry that are set."""
    return {
        name: text.strip()
        for name, text in environment.items()
        if name.startswith("OTEL_") and text.strip()
    }


def wanted(environment: Mapping[str, str]) -> bool:
    """Whether traces are: an exporter is named, or where to export to is."""
    found = set_ones(environment)
    if found.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    named = "OTEL_TRACES_EXPORTER" in found or any(f"{p}ENDPOINT" in found for p in _PREFIXES)
    return named and exporters(environment) != [NONE]


def exporters(environment: Mapping[str, str]) -> list[str]:
    """The exporters' names."""
    return _names(set_ones(environment).get("OTEL_TRACES_EXPORTER", OTLP))


def propagators(environment: Mapping[str, str]) -> list[str]:
    """The names of what carries a trace on."""
    return _names(set_ones(environment).get("OTEL_PROPAGATORS", ",".join(PROPAGATORS)))


def otlp(environment: Mapping[str, str], name: str, default: str) -> str:
    """What is said of the exporter for OTLP, for example of its `PROTOCOL`."""
    found = set_ones(environment)
    return next((found[p + name] for p in _PREFIXES if p + name in found), default)


def faults(environment: Mapping[str, str]) -> list[str]:
    """What is wrong with the variables, one line each; never a value that may be secret."""
    found = set_ones(environment)
    return [*_chosen(found), *_amounts(found), *_pairs(found), *_exporting(found)]


def _names(text: str) -> list[str]:
    return [name.strip().lower() for name in text.split(",") if name.strip()]


def _chosen(found: Mapping[str, str]) -> Iterator[str]:
    lists = {
        "OTEL_SDK_DISABLED": ("true", "false"),
        "OTEL_TRACES_EXPORTER": _EXPORTERS,
        "OTEL_PROPAGATORS": (*PROPAGATORS, NONE),
        "OTEL_TRACES_SAMPLER": _SAMPLERS,
        **{f"{p}PROTOCOL": (GRPC, HTTP) for p in _PREFIXES},
        **{f"{p}COMPRESSION": ("gzip", "none") for p in _PREFIXES},
        **{f"{p}INSECURE": ("true", "false") for p in _PREFIXES},
    }
    several = ("OTEL_TRACES_EXPORTER", "OTEL_PROPAGATORS")
    for name, known in lists.items():
        text = found.get(name, known[0]).lower()
        names = _names(text) if name in several else [text]
        if not names or not {*names} <= {*known}:
            yield f"{name}: {text!r} is none of {', '.join(known)}"
        elif NONE in names and len(names) > 1:
            yield f"{name}: none goes with no other"


def _amounts(found: Mapping[str, str]) -> Iterator[str]:
    wrong = [n for n in _COUNTS if n in found and not re.fullmatch("[0-9]{1,9}", found[n])]
    wrong += [n for n in _COUNTS[:4] if n not in wrong and found.get(n, "1").strip("0") == ""]
    for name in wrong:
        yield f"{name}: is not a whole number{' from 1' if name in _COUNTS[:4] else ''}"
    queue, batch = "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"
    if not {queue, batch} & {*wrong} and int(found.get(batch, _BATCH_SIZE)) > int(
        found.get(queue, _QUEUE_SIZE)
    ):
        yield f"{batch}: is more than {queue}"
    for name in (f"{p}TIMEOUT" for p in _PREFIXES):
        if not re.fullmatch("[0-9]{1,6}", found.get(name, "1")) or found.get(name) == "0":
            yield f"{name}: is not a number of milliseconds, 1 to 999999"
    sampler = found.get("OTEL_TRACES_SAMPLER", "").lower()
    if sampler in _RATIOS and not _is_share(found.get("OTEL_TRACES_SAMPLER_ARG", "1")):
        yield "OTEL_TRACES_SAMPLER_ARG: is not a number from 0 to 1"


def _pairs(found: Mapping[str, str]) -> Iterator[str]:
    for name in ("OTEL_RESOURCE_ATTRIBUTES", *(f"{p}HEADERS" for p in _PREFIXES)):
        for place, pair in enumerate(found.get(name, "a=b").split(","), 1):
            if pair.strip() and not _PAIR.fullmatch(pair):
                yield f"{name}: entry {place} is not KEY=VALUE"


def _exporting(found: Mapping[str, str]) -> Iterator[str]:
    for prefix in _PREFIXES:
        name = f"{prefix}ENDPOINT"
        if name in found and not _is_url(found[name]):
            yield f"{name}: is not a URL http://HOST:PORT or https://HOST:PORT"
        for name in (prefix + file for file in _FILES):
            if name in found and not Path(found[name]).is_file():
                yield f"{name}: {found[name]} is not a file"


def _is_share(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False

"""One call, as the log and its span tell of it."""

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc

from trunkline import logs
from trunkline.admission import Gate
from trunkline.auth import Identity
from trunkline.tracing import Span, Tracing

log = logging.getLogger("trunkline.call")

HEALTH = "/grpc.health.v1."
OTHER_METHOD = "_OTHER"
"""What the conventions call a method that there is not."""
_FAULTS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
"""The codes that are errors of the server by the conventions; others are answers."""


@dataclass(slots=True)
class Call:
    """What is known of a call while it lasts."""

    method: str
    request_id: str
    peer: str
    client_certificate: str | None = None
    authorization: str | None = field(default=None, repr=False)
    started: float = field(default_factory=time.perf_counter)
    identity: Identity | None = None
    seconds_max: float = math.inf
    gate: Gate | None = None
    code: str = "OK"
    reason: str | None = None
    span: Span | None = None

    def enter(self, gate: Gate | None) -> None:
        """Go through a gate, to be left when the call ends."""
        if gate is not None:
            gate.enter()
            self.gate = gate

    def trace(self, tracing: Tracing, headers: Mapping[str, str], *, known: bool) -> None:
        """Begin the call's span; health has none."""
        if self.method.startswith(HEALTH):
            return
        service, _, method = self.method[1:].rpartition("/")
        attributes = {"rpc.system": "grpc", "rpc.method": OTHER_METHOD}
        if known:
            attributes |= {"rpc.service": service, "rpc.method": method}
        self.span = tracing.begin(self._span_name(known=known), headers, attributes)

    def end(self, seconds: float, *, known: bool) -> None:
        """Tell what became of it; nothing of it changes any more."""
        logs.event(
            log,
            logging.DEBUG if self.method.startswith(HEALTH) else logging.INFO,
            "call",
            lambda: self._fields(seconds),
        )
        if self.span is not None:
            self._end_span(self.span, known=known)

    def _fields(self, seconds: float) -> dict[str, Any]:
        return {
            "method": self.method,
            "code": self.code,
            "reason": self.reason,
            "ms": round(seconds * 1000, 2),
            "request_id": self.request_id,
            "account_id": self.identity.account_id if self.identity else None,
            "token_id": self.identity.token_id if self.identity else None,
            "peer": self.peer,
            "client_certificate": self.client_certificate,
            "trace_id": self.span.trace_id if self.span else None,
            "span_id": self.span.span_id if self.span else None,
        }

    def _end_span(self, span: Span, *, known: bool) -> None:
        attributes: dict[str, Any] = {
            "rpc.grpc.status_code": grpc.StatusCode[self.code].value[0],
            "rpc.response.status_code": self.code,
            "trunkline.reason": self.reason,
            "trunkline.request_id": self.request_id,
            "trunkline.account_id": self.identity.account_id if self.identity else None,
            "trunkline.token_id": self.identity.token_id if self.identity else None,
        }
        name = self._span_name(known=known)
        span.end(name, attributes, self.code if self.code in _FAULTS else None)

    def _span_name(self, *, known: bool) -> str:
        return self.method[1:] if known else OTHER_METHOD

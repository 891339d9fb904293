"""What is outermost of the gateway: limits, ids, one log line and one count for each request."""

import contextlib
import json
import logging
import time
from collections.abc import Iterator, Sequence

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trunkline import logs
from trunkline.admission import Gate
from trunkline.errors import ExhaustedError
from trunkline.gateway import problems
from trunkline.request_ids import RequestIds
from trunkline.tallies import Tally
from trunkline.tracing import CARRIED, Span, Tracing

log = logging.getLogger("trunkline.http")

HEADERS_MAX = 100
HEADER_BYTES_MAX = 32 << 10
ROUTE = "trunkline.route"
"""The name in a request's scope of the route that it took."""
NO_ROUTE = "none"
PATH_CHARACTERS_MAX = 200
_QUIET = {"/healthz", "/readyz"}
_METHODS = {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"}
_NO_METHOD = "_OTHER", "HTTP"
"""What the conventions call a method that HTTP does not have, and the span of its request."""
_WATCH = ":watch"
TURNED_AWAY = 429
"""Its time says as little as a watch's."""


class Load:
    """What is under way.

    Args:
        requests_max: how many requests are answered at once; those for health are not counted.
        watches_max: how many watches there are at once.
        tracing: makes a span of each request; None where nobody wants one.

    Attributes:
        requests: lets requests in.
        watches: lets watches in.
        tally: what was answered.
        draining: whether the gateway is about to end: a connection is closed with its next answer.
        tracing: as given.
    """

    def __init__(self, requests_max: int, watches_max: int, tracing: Tracing | None = None) -> None:
        self.requests = Gate(requests_max, "requests")
        self.watches = Gate(watches_max, "watches")
        self.tally = Tally()
        self.draining = False
        self.tracing = tracing

    @contextlib.contextmanager
    def entered(self, path: str) -> Iterator[None]:
        """Let a request in for the length of the block.

        Raises:
            ProblemError: there are as many as there may be.
        """
        gate = self.watches if path.endswith(_WATCH) else self.requests
        if path in _QUIET:
            yield
            return
        try:
            gate.enter()
        except ExhaustedError as error:
            raise problems.ProblemError(
                TURNED_AWAY, error.reason, error.message, headers={"Retry-After": "1"}
            ) from None
        try:
            yield
        finally:
            gate.leave()


def response(problem: problems.ProblemError) -> Response:
    """The answer that a problem makes."""
    body = json.dumps(problem.body, ensure_ascii=False).encode()
    return Response(body, problem.status, problem.headers, "application/json")


def _header_fault(headers: Sequence[tuple[bytes, bytes]]) -> problems.ProblemError | None:
    if len(headers) > HEADERS_MAX:
        return problems.ProblemError(431, "TOO_MANY_HEADERS", "too many header fields")
    # The parser's own limit does not see a header that has come in one piece.
    if sum(len(name) + len(value) for name, value in headers) > HEADER_BYTES_MAX:
        return problems.ProblemError(431, "HEADER_TOO_LARGE", "the header fields are too large")
    return None


class Edge:
    """What is outermost: ids, header limits, trailing slashes, unknown errors, the log line."""

    def __init__(self, app: ASGIApp, load: Load) -> None:
        self._app = app
        self._load = load
        self._request_ids = RequestIds()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        started, status = time.perf_counter(), 499
        request_id = self._request_id(scope)
        path = scope["path"]
        if len(path) > 1:
            scope["path"] = path.rstrip("/") or "/"
        span = self._span(scope, path)
        scope.setdefault("state", {}).update(request_id=request_id, span=span)

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                more = [(b"x-request-id", request_id.encode())]
                if self._load.draining:
                    more.append((b"connection", b"close"))
                message["headers"] = [*message["headers"], *more]
            await send(message)

        try:
            await self._answer(scope, receive, tagged)
        except ClientDisconnect:
            pass
        except Exception as error:
            log.error(
                "failed",
                extra={
                    "request_id": request_id,
                    "error_class": type(error).__name__,
                    "frames": logs.frames(error),
                    "trace_id": span.trace_id if span else None,
                    "span_id": span.span_id if span else None,
                },
            )
            if status != 500:
                raise  # the answer has begun: cutting the connection is all that can be said
        finally:
            self._end(scope, path, status, started)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            fault = _header_fault(scope["headers"])
            if fault:
                raise fault
            with self._load.entered(scope["path"]):
                await self._app(scope, receive, send)
        except problems.ProblemError as problem:
            await response(problem)(scope, receive, send)

    def _span(self, scope: Scope, path: str) -> Span | None:
        tracing = self._load.tracing
        if tracing is None or scope["path"] in _QUIET:
            return None
        sent = ((k.decode("latin-1"), v.decode("latin-1")) for k, v in scope["headers"])
        method, name = _named(scope["method"])
        return tracing.begin(
            name,
            {k: v for k, v in sent if k in CARRIED},
            {
                "http.request.method": method,
                "url.path": _shown(path),
                "url.scheme": scope["scheme"],
            },
        )

    def _end(self, scope: Scope, path: str, status: int, started: float) -> None:
        """Log a request and count it; how long a watch lasted says nothing."""
        seconds = time.perf_counter() - started
        span: Span | None = scope["state"]["span"]
        request_id = scope["state"]["request_id"]
        route: str | None = scope.get(ROUTE)
        what = f"{_named(scope['method'])[0]} {route}" if route else NO_ROUTE
        untold = status == TURNED_AWAY or (route is not None and route.endswith(_WATCH))
        self._load.tally.add(what, str(status), None if untold else seconds)
        logs.event(
            log,
            logging.DEBUG if scope["path"] in _QUIET else logging.INFO,
            "request",
            lambda: {
                "method": scope["method"],
                "path": _shown(path),
                "status": status,
                "ms": round(seconds * 1000, 2),
                "request_id": request_id,
                "peer": ":".join(str(part) for part in scope.get("client") or ()),
                "trace_id": span.trace_id if span else None,
                "span_id": span.span_id if span else None,
            },
        )
        if span is None:
            return
        name = _named(scope["method"])[1]
        attributes = {
            "http.route": route,
            "http.response.status_code": status,
            "trunkline.request_id": request_id,
        }
        fault = str(status) if status >= 500 else None
        span.end(f"{name} {route}" if route else name, attributes, fault)

    def _request_id(self, scope: Scope) -> str:
        sent = (v.decode("latin-1") for name, v in scope["headers"] if name == b"x-request-id")
        return self._request_ids.of(*sent)


def _named(method: str) -> tuple[str, str]:
    """A request's method, and the name of its span without a route."""
    return (method, method) if method in _METHODS else _NO_METHOD


def _shown(path: str) -> str:
    return ascii(path[:PATH_CHARACTERS_MAX])[1:-1]

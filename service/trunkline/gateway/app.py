"""The ASGI application: routes, limits, ids, and one answer for every fault."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence

import grpc
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Scope

from trunkline import tracing
from trunkline.bounds import Bound, Bounds
from trunkline.gateway import docs, handlers, problems, replies, requests, routes, upstream
from trunkline.gateway.edge import ROUTE, Edge, Load, response

BODY_BYTES_MAX = 1 << 20
BODY_SECONDS_MAX = 20.0
SECONDS_DEFAULT = 30.0
SECONDS_MAX = 300.0
GZIP_BYTES_MIN = 1000
TIMEOUT_HEADER = "x-request-timeout"
_EXPOSED = ["ETag", "Link", "Retry-After", replies.CHANGED_FIELDS, "X-Request-Id"]


def application(
    service: upstream.Service,
    ready: Callable[[], Awaitable[bool]],
    origins: Sequence[str],
    load: Load,
) -> ASGIApp:
    """Make the application.

    Args:
        service: the gRPC service.
        ready: whether that service is ready.
        origins: that browsers may call from (CORS); none for no CORS.
        load: what is under way.
    """
    bounds = Bounds()
    table: dict[str, dict[str, routes.Binding]] = {}
    for binding in routes.bindings():
        table.setdefault(binding.route, {})[binding.verb] = binding
    # What ends in a verb comes first: to the others it looks like an id.
    found: list[Route] = [
        _Verb(path, _endpoint(service, bounds, verbs), methods=[*verbs, "OPTIONS"])
        for path, verbs in sorted(table.items(), key=lambda item: ":" not in item[0])
    ]
    found += [_Verb("/healthz", _healthz), _Verb("/readyz", _readyz(ready)), *docs.ROUTES]
    middleware = [Middleware(GZipMiddleware, minimum_size=GZIP_BYTES_MIN)]
    if origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=_EXPOSED,
        )
        middleware.insert(0, cors)
    app = Starlette(
        routes=found,
        middleware=middleware,
        exception_handlers={
            HTTPException: _http_fault,
            problems.ProblemError: _problem,
            Exception: _failed,
        },
    )
    app.router.redirect_slashes = False
    return Edge(app, load)


class _Verb(Route):
    """A route that has its path to itself, whatever the method."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if ":" in self.path and ":" not in scope["path"]:
            return Match.NONE, {}
        found, child = super().matches(scope)
        child[ROUTE] = self.path
        own = ":" in self.path and found is Match.PARTIAL
        return (Match.FULL if own else found), child


def _endpoint(
    service: upstream.Service, bounds: Bounds, verbs: dict[str, routes.Binding]
) -> Callable[[Request], Awaitable[Response]]:
    allowed = ", ".join(sorted({*verbs, "OPTIONS"} | ({"HEAD"} if "GET" in verbs else set())))

    async def endpoint(request: Request) -> Response:
        if request.method == "OPTIONS":
            return Response(status_code=204, headers={"Allow": allowed})
        binding = verbs["GET" if request.method == "HEAD" else request.method]
        handler = handlers.HANDLERS[binding.method]
        seconds = _seconds(request)
        client = upstream.Upstream(service, _carried(request), seconds)
        try:
            try:
                if binding.changes:
                    client.intent = requests.intent(request, binding.query)
                body = await _body(request, bounds.within(BODY_SECONDS_MAX))
                request._body = body  # noqa: SLF001 - Starlette's own cache of the body
                work = handler(request, client)
                return await _unless_gone(request, work, bounds.within(seconds))
            except problems.ProblemError:
                await client.admit(reads=not binding.changes)
                raise
        except grpc.aio.AioRpcError as error:
            raise problems.problem(error) from None

    return endpoint


async def _unless_gone(request: Request, work: Awaitable[Response], bound: Bound) -> Response:
    """The handler's answer; a caller who goes away, or the deadline, cancels its calls."""
    gone = asyncio.ensure_future(_gone(request))
    try:
        with bound:
            gone.add_done_callback(lambda _: None if gone.cancelled() else bound.end())
            return await work
    except TimeoutError:
        if gone.done():
            raise ClientDisconnect from None
        raise problems.ProblemError(504, "DEADLINE_EXCEEDED", problems.TIME_IS_UP) from None
    finally:
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request, bound: Bound) -> bytes:
    try:
        with bound:
            return await _bounded_body(request)
    except TimeoutError:
        raise problems.ProblemError(
            408, "BODY_TOO_SLOW", f"the body took more than {BODY_SECONDS_MAX:.0f} s to come"
        ) from None


async def _bounded_body(request: Request) -> bytes:
    too_large = problems.ProblemError(
        413, "BODY_TOO_LARGE", f"the body is larger than {BODY_BYTES_MAX} bytes"
    )
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared[:12]) > BODY_BYTES_MAX:
        raise too_large
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > BODY_BYTES_MAX:
            raise too_large
        parts.append(part)
    return b"".join(parts)


def _seconds(request: Request) -> float:
    text = request.headers.get(TIMEOUT_HEADER)
    if text is None:
        return SECONDS_DEFAULT
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= SECONDS_MAX:
        what = f"X-Request-Timeout is not a number of seconds up to {SECONDS_MAX:.0f}"
        raise problems.ProblemError(400, "BAD_HEADER", what)
    return seconds


def _carried(request: Request) -> list[tuple[str, str]]:
    span = request.state.span
    found = [("x-request-id", request.state.request_id)]
    if span is not None:
        found += span.carried()
    names = [n for n in upstream.CARRIED if span is None or n not in tracing.CARRIED]
    for name, value in ((name, request.headers.get(name)) for name in names):
        if value is None:
            continue
        if not value.isascii() or not value.isprintable():
            raise problems.ProblemError(
                400, "BAD_HEADER", f"{name} has characters that are not ASCII"
            )
        found.append((name, value))
    return found


async def _healthz(_: Request) -> Response:
    return Response('{"status":"alive"}', media_type="application/json")


def _readyz(ready: Callable[[], Awaitable[bool]]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(_: Request) -> Response:
        if await ready():
            return Response('{"status":"ready"}', media_type="application/json")
        raise problems.ProblemError(503, "NOT_READY", "the service is not ready", headers=_RETRY)

    return endpoint


_RETRY = {"Retry-After": "1"}


async def _problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, problems.ProblemError)
    return response(error)


async def _http_fault(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = {
        404: ("ROUTE_NOT_FOUND", "there is nothing at this path"),
        405: ("METHOD_NOT_ALLOWED", "the path does not take this method"),
    }
    reason, message = known.get(error.status_code, ("HTTP_ERROR", "the request can't be answered"))
    fault = problems.ProblemError(
        error.status_code, reason, message, headers=dict(error.headers or {})
    )
    return response(fault)


async def _failed(request: Request, _: Exception) -> Response:
    what = f"the service failed; its log has the request id {request.state.request_id}"
    return response(problems.ProblemError(500, "INTERNAL", what))

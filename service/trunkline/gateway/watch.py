"""The route of the stream of changes, as server-sent events (HTML Living Standard, section 9.2)."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from trunkline.gateway import problems, requests, views
from trunkline.gateway.upstream import Service, Upstream

WATCHES_MAX = 900
"""Fewer than the calls that the service takes on one connection."""
SILENCE_SECONDS_MAX = 60.0
"""A stream says something every 15 seconds, so the service is gone after this."""
RETRY_MILLISECONDS = 2000
MEDIA_TYPE = "text/event-stream"
LAST_EVENT_ID = "Last-Event-ID"
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_PARAMETERS = {"initial_state", "filter", "all_accounts", "resume_token"}


async def watch_trunks(request: Request, upstream: Upstream) -> Response:
    """GET: the changes of trunks, as they happen."""
    query = _query(request)
    if upstream.service.watching >= WATCHES_MAX:
        what = "there are as many watches as there may be"
        raise problems.ProblemError(429, "TOO_MANY_WATCHERS", what, headers={"Retry-After": "5"})
    call = upstream.watch(query)
    try:
        first = await call.read()
    except BaseException:
        call.cancel()
        raise
    if request.method == "HEAD":
        call.cancel()
        return Response(headers=_HEADERS, media_type=MEDIA_TYPE)
    return _Events(call, first, upstream.service)


def _query(request: Request) -> pb.WatchSipTrunksRequest:
    found = requests.parameters(request, _PARAMETERS)
    query = pb.WatchSipTrunksRequest(
        resume_token=found.get("resume_token", ""),
        initial_state=requests.flag(found, "initial_state"),
        filter=found.get("filter", ""),
        all_accounts=requests.flag(found, "all_accounts"),
    )
    last = request.headers.get(LAST_EVENT_ID, "")
    if last:
        # A browser comes back to the URL that it began with.
        query.resume_token = last
        query.initial_state = False
    return query


class _Events(StreamingResponse):
    """The reply that goes on until one of the two sides ends it."""

    def __init__(self, call: Any, first: Any, service: Service) -> None:
        super().__init__(_parts(call, first, service.leaving), 200, _HEADERS, MEDIA_TYPE)
        self._call = call
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._service.watching += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._service.watching -= 1
            self._call.cancel()


async def _parts(call: Any, first: Any, leaving: asyncio.Event) -> AsyncIterator[bytes]:
    """The parts of a stream, each of what one response tells."""
    yield f"retry: {RETRY_MILLISECONDS}\n".encode() + _part(first)
    token = first.resume_token
    ended = asyncio.ensure_future(leaving.wait())
    try:
        while True:
            response = await _next(call, ended)
            if response is grpc.aio.EOF:
                return
            token = response.resume_token or token
            yield _part(response)
    except grpc.aio.AioRpcError as error:
        yield _error(problems.problem(error), token)
    except problems.ProblemError as problem:
        yield _error(problem, token)
    finally:
        ended.cancel()


async def _next(call: Any, ended: "asyncio.Future[Any]") -> Any:
    """The next response of a stream.

    Raises:
        grpc.aio.AioRpcError: the service has ended it.
        Problem: the gateway is about to end, or the service has gone away unnoticed.
    """
    reading = asyncio.ensure_future(call.read())
    try:
        done, _ = await asyncio.wait(
            (reading, ended), timeout=SILENCE_SECONDS_MAX, return_when=asyncio.FIRST_COMPLETED
        )
        if reading in done:
            return await reading
        if ended in done:
            what = "the gateway is about to end: go on at another one"
            raise problems.ProblemError(503, "DRAINING", what)
        what = "the service can't be reached now: try again"
        raise problems.ProblemError(503, "UPSTREAM_UNAVAILABLE", what)
    finally:
        reading.cancel()


def _part(response: Any) -> bytes:
    events = [_event(views.kind(e), views.event(e), e.resume_token) for e in response.events]
    if response.initial_state_complete:
        token = response.resume_token
        events.append(_event("initial_state_complete", {"resume_token": token}, token))
    # An id without data moves a browser's last id and tells the page nothing.
    return b"".join(events) or b": heartbeat\n" + _id(response.resume_token) + b"\n"


def _error(problem: problems.ProblemError, token: str) -> bytes:
    token = problem.resume_token or token
    return _event("error", problem.body | {"resume_token": token or None}, token)


def _event(kind: str, data: dict[str, Any], token: str) -> bytes:
    # In ASCII: there are readers who end a line at more characters than the standard does.
    text = json.dumps(data, separators=(",", ":"))
    return _id(token) + f"event: {kind}\ndata: {text}\n\n".encode()


def _id(token: str) -> bytes:
    return f"id: {token}\n".encode() if token else b""

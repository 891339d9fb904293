"""Replies: JSON, trunks with their numbers, lists."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from siptrunk.v1 import sip_trunk_pb2
from trunkline.gateway import views
from trunkline.gateway.upstream import Changed, Upstream

CHANGED_FIELDS = "X-Changed-Fields"


async def trunk(
    shown: sip_trunk_pb2.SipTrunk,
    upstream: Upstream,
    status: int = 200,
    headers: dict[str, str] | None = None,
) -> Response:
    """A trunk with its numbers, and its etag where it has one."""
    numbers, cut = await upstream.numbers(shown)
    found = {"ETag": shown.etag} if shown.etag else {}
    return answer(views.trunk(shown, numbers, cut=cut), status, found | (headers or {}))


async def changed_trunk(changed: Changed, upstream: Upstream) -> Response:
    """A trunk after a change, with the names of the fields that changed."""
    headers = {} if changed.fields is None else {CHANGED_FIELDS: changed.fields}
    return await trunk(changed.reply, upstream, headers=headers)


async def trunks(found: Any, upstream: Upstream) -> list[dict[str, Any]]:
    """Several trunks with their numbers, asked for in few calls."""
    numbers = await upstream.numbers_of(found)
    return [views.trunk(t, numbers[t.id][0], cut=numbers[t.id][1]) for t in found]


async def array(
    request: Request,
    query: Any,
    page: Callable[[], Awaitable[tuple[list[dict[str, Any]], str]]],
    *,
    paged: bool,
) -> Response:
    """A list: a page with a Link to the next, or all of it as a stream."""
    items, token = await page()  # before the answer begins, so that errors have their status
    if paged:
        headers = {}
        if token:
            parameters = dict(request.query_params) | {"page_token": token}
            headers["Link"] = f'<{request.url.path}?{urlencode(parameters)}>; rel="next"'
        return answer(items, 200, headers)

    async def stream() -> AsyncIterator[bytes]:
        nonlocal items, token
        yield b"["
        separator = b""
        while True:
            for item in items:
                yield separator + dumped(item)
                separator = b","
            if not token:
                break
            query.page_token = token
            items, token = await page()
        yield b"]"

    return StreamingResponse(stream(), media_type="application/json")


def answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A value as a reply."""
    return Response(dumped(value), status, headers, "application/json")


def dumped(value: Any) -> bytes:
    """A value as JSON, on one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()

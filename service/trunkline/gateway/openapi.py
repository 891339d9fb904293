"""The OpenAPI 3.1 document, made from the descriptors: comments, rules and routes in one place."""

import importlib.metadata
from collections.abc import Iterator
from functools import cache
from typing import Any

from trunkline.gateway import comments, examples, schemas
from trunkline.gateway.preconditions import ETAGS_MAX
from trunkline.gateway.routes import Binding, bindings
from trunkline.gateway.schemas import ref

_ERRORS = {
    "400": "The request breaks rules; every violation is listed.",
    "401": "There is no token, or it is unknown, expired or revoked.",
    "403": "The token lacks the scope.",
    "404": "The account has no such trunk or number.",
    "409": "The name or number is taken, or the etag in the body is stale.",
    "412": "The trunk has none of the etags in If-Match. A number has no etag.",
    "413": "The body is too large.",
    "415": "The body is not application/json.",
    "422": "SDES without TLS.",
    "431": "There are too many header fields.",
    "501": "Idempotency-Key is not supported.",
    "503": "The service or its database can't be reached now.",
    "504": "The request's time is up.",
}
_ERROR_HEADERS = {
    "401": ("WWW-Authenticate", "`Bearer`."),
    "503": ("Retry-After", "Seconds after which to try again."),
}
_ALWAYS = ("400", "401", "403", "431", "503", "504")
_BODY_ERRORS = ("409", "413", "415", "422", "501")
_ABOUT = """SIP trunks and their phone numbers, each account's own.

PATCH changes the keys that the body has and no others: null clears what can be cleared, a list is
replaced whole, keys that only replies have are ignored. Every error has the same shape, with every
violation found. A trunk's etag is in its body and in `ETag`; `If-Match` makes a change conditional.

Every reply has `X-Request-Id`: the request's own, or a new one. `X-Request-Timeout` is the
request's deadline in seconds. `Idempotency-Key` is not supported: it is answered 501.
"""
_ETAG_EXAMPLE = '"1-0123456789abcdef"'
# RFC 9110 section 8.8.3, less the comma, which splits the list.
_ETAG = r'(W/)?"[!#-+\--~]*"'
_TAGS = {"SipTrunk": "Trunks", "PhoneNumber": "Phone numbers"}


@cache
def document() -> dict[str, Any]:
    """The document. One object is made and shared: do not change it."""
    paths: dict[str, Any] = {}
    for binding in bindings():
        paths.setdefault(binding.route, {})[binding.verb.lower()] = _operation(binding)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Trunkline",
            "version": importlib.metadata.version("trunkline"),
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [{"name": name} for name in _TAGS.values()],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": schemas.components(),
        },
    }


def _operation(binding: Binding) -> dict[str, Any]:
    resource = "PhoneNumber" if "PhoneNumber" in binding.method else "SipTrunk"
    has_body = bool(binding.body)
    on_one = "{" in binding.path
    codes = {*_ALWAYS, *(_BODY_ERRORS if has_body else ()), *(("404",) if on_one else ())}
    if binding.verb in ("PATCH", "DELETE"):
        codes |= {"409", "412"} if resource == "SipTrunk" else {"412"}
    if binding.verb != "GET":
        codes.add("501")
    found: dict[str, Any] = {
        "operationId": binding.method,
        "tags": [_TAGS[resource]],
        "summary": comments.of_method(binding.method).partition(".")[0] + ".",
        "description": comments.of_method(binding.method),
        "parameters": list(_parameters(binding, resource)),
        "responses": dict(_success(binding, resource))
        | {code: _error(code) for code in sorted(codes)},
    }
    if has_body:
        kind = "Number" if resource == "PhoneNumber" else "Trunk"
        use = "Create" if binding.verb == "POST" else "Update"
        content: dict[str, Any] = {"schema": ref(f"{kind}{use}")}
        if binding.method in examples.BODIES:
            content["examples"] = {
                name: {"value": value} for name, value in examples.BODIES[binding.method].items()
            }
        found["requestBody"] = {"required": True, "content": {"application/json": content}}
    return found


def _parameters(binding: Binding, resource: str) -> Iterator[dict[str, Any]]:
    for name in ("trunk_id", "id"):
        if "{" + name + "}" in binding.route:
            trunk = name == "trunk_id" or resource == "SipTrunk"
            yield {
                "name": name,
                "in": "path",
                "required": True,
                "description": "The trunk's id." if trunk else "The number's id.",
                "schema": {"type": "string", "pattern": "^[!-.0-~]{1,64}$"},
            }
    if binding.method == "ListSipTrunks":
        yield _query("is_active", {"type": "boolean"}, "Only trunks that are, or are not, active.")
        yield _query("filter", {"type": "string", "maxLength": 1000}, comments.of_query("filter"))
        orders = ["", *(n + d for n in ("id", "name", "created_at") for d in ("", " desc"))]
        yield _query("order_by", {"type": "string", "enum": orders}, comments.of_query("order_by"))
    if binding.method.startswith("List"):
        what = "Items of a page. Without it and page_token, the whole list is answered."
        yield _query("page_size", {"type": "integer", "minimum": 1, "maximum": 999999999}, what)
        yield _query("page_token", {"type": "string"}, "From the Link header of the page before.")
    if resource == "SipTrunk" and binding.verb in ("PATCH", "DELETE"):
        yield _header("If-Match", "The etags of which the trunk must have one, or *.", "*")
    if binding.method == "GetSipTrunk":
        what = "Etags known: 304 is answered where the trunk still has one of them."
        yield _header("If-None-Match", what, _ETAG_EXAMPLE)


def _query(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": description}


def _header(name: str, description: str, example: str) -> dict[str, Any]:
    etags = {"pattern": f"^{_ETAG}( *, *{_ETAG}){{0,{ETAGS_MAX - 1}}}$"}
    schema = {"type": "string", "anyOf": [{"const": "*"}, etags], "examples": [example]}
    return {"name": name, "in": "header", "schema": schema, "description": description}


def _success(binding: Binding, resource: str) -> Iterator[tuple[str, dict[str, Any]]]:
    kind = "Number" if resource == "PhoneNumber" else "Trunk"
    if binding.verb == "DELETE":
        yield "200", _answer("Gone.", ref("Message"))
        return
    if binding.method.startswith("List"):
        answer = _answer("The list.", {"type": "array", "items": ref(kind)})
        link = "The next page, where one is asked for and there is one (RFC 8288)."
        answer["headers"] = {"Link": _told(link)}
        yield "200", answer
        return
    answer = _answer("The resource as it now is.", ref(kind))
    headers = {"ETag": _told("The trunk's etag.")} if resource == "SipTrunk" else {}
    if headers:
        answer["headers"] = headers
    if binding.verb == "POST":
        answer["links"] = dict(_links(binding))
    yield "201" if binding.verb == "POST" else "200", answer
    if binding.method == "GetSipTrunk":
        same = "The trunk still has an etag of If-None-Match."
        yield "304", {"description": same, "headers": headers}


def _links(made: Binding) -> Iterator[tuple[str, dict[str, Any]]]:
    """What can be called with the ids of what a create made."""
    ids = {"id": "$response.body#/id", "trunk_id": "$response.body#/byot_trunk_id"}
    if made.method == "CreateSipTrunk":
        ids = {"id": ids["id"], "trunk_id": ids["id"]}
    for binding in bindings():
        rest = binding.route.removeprefix(made.route)
        if rest != binding.route and rest.count("{") == 1:
            names = [name for name in ids if "{" + name + "}" in binding.route]
            yield (
                binding.method,
                {"operationId": binding.method, "parameters": {n: ids[n] for n in names}},
            )


def _answer(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _error(code: str) -> dict[str, Any]:
    found = _answer(_ERRORS[code], ref("Error"))
    found["content"]["application/json"]["example"] = examples.ERRORS[code]
    if code in _ERROR_HEADERS:
        name, description = _ERROR_HEADERS[code]
        found["headers"] = {name: _told(description)}
    return found


def _told(description: str) -> dict[str, Any]:
    return {"schema": {"type": "string"}, "description": description}

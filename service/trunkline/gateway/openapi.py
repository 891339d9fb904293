"""The OpenAPI 3.1 document, made from the descriptors: comments, rules and routes in one place."""

import importlib.metadata
from collections.abc import Iterator
from functools import cache
from typing import Any

from trunkline.gateway import comments, examples, schemas, shapes
from trunkline.gateway.preconditions import ETAGS_MAX
from trunkline.gateway.problems import IDEMPOTENCY_KEY
from trunkline.gateway.replies import CHANGED_FIELDS
from trunkline.gateway.requests import VALIDATE_ONLY
from trunkline.gateway.routes import Binding, bindings
from trunkline.gateway.schemas import Schema, ref
from trunkline.gateway.watch import LAST_EVENT_ID, MEDIA_TYPE

_ERRORS = {
    "400": "The request breaks rules; every violation is listed.",
    "401": "There is no token, or it is unknown, expired or revoked.",
    "403": "The token lacks the scope.",
    "404": "The account has no such trunk, number or revision.",
    "409": "The name or number is taken, the etag in the body is stale, or a request with the same"
    " Idempotency-Key is at work.",
    "410": "The resume token can't be gone on from: start with the initial state.",
    "412": "The trunk has none of the etags in If-Match. A number and a batch have no etag.",
    "413": "The body is too large.",
    "415": "The body is not application/json.",
    "422": "SDES without TLS, or the Idempotency-Key was used for another request.",
    "429": "There are as many watches as there may be.",
    "431": "There are too many header fields.",
    "503": "The service or its database can't be reached now.",
    "504": "The request's time is up.",
}
_RETRY = ("Retry-After", "Seconds after which to try again.")
_ERROR_HEADERS = {
    "401": ("WWW-Authenticate", "`Bearer`."),
    "409": ("Retry-After", "Seconds after which to try again, where a request is at work."),
    "429": _RETRY,
    "503": _RETRY,
}
_ALWAYS = ("400", "401", "403", "431", "503", "504")
_BODY_ERRORS = ("413", "415")
_CHANGE_ERRORS = ("409", "422")
_WATCH_ERRORS = ("410", "429")
_ABOUT = """SIP trunks and their phone numbers, each account's own.

PATCH changes the keys that the body has and no others: null clears what can be cleared, a list is
replaced whole, keys that only replies have are ignored. Every error has the same shape, with every
violation found. A trunk's etag is in its body and in `ETag`; `If-Match` makes a change conditional.

Every reply has `X-Request-Id`: the request's own, or a new one. `X-Request-Timeout` is the
request's deadline in seconds. `Idempotency-Key` makes a change safe to retry, and
`?validate_only=true` checks and answers without writing.
"""
_IDEMPOTENCY_KEY = (
    "Makes the request safe to retry: within the time that the deployment keeps keys (24 hours"
    " unless set otherwise), a retry changes nothing and is answered as the first request was. The"
    " same key with another request is 422 (`REQUEST_ID_REUSED`); while the first is at work, 409"
    " with `Retry-After`. 1 to 128 visible ASCII characters, taken as they are, best a new UUID"
    " for each request. A body has no `request_id`. The `phone_numbers` of a trunk in the reply are"
    " those of now."
)
_IDEMPOTENT_UPDATE = (
    " Beside it, nothing that is stored decides what is changed, so that a retry is the same"
    ' request: a port counts as absent only where `"port_explicit": false` stands beside it, and'
    " If-Match takes one etag. Leave `phone_numbers` out: they are compared with those of now."
)
_CHANGED_FIELDS = "The names of the fields that changed, separated by commas."
_ETAG_EXAMPLE = '"1-0123456789abcdef"'
# RFC 9110 section 8.8.3, less the comma, which splits the list.
_ETAG = r'(W/)?"[!#-+\--~]*"'
_TAGS = {"SipTrunk": "Trunks", "PhoneNumber": "Phone numbers"}
_RESOURCES = {"SipTrunk": "Trunk", "PhoneNumber": "Number", "SipTrunkRevision": "Revision"}
_UPDATES = ("UpdateSipTrunk", "UpdateSipTrunks")
_WATCH_PARAMETERS = {
    "initial_state": "boolean",
    "filter": "string",
    "all_accounts": "boolean",
    "resume_token": "string",
}


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
            "schemas": schemas.components() | shapes.components(),
        },
    }


def _operation(binding: Binding) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": binding.method,
        "tags": [_TAGS[binding.resource]],
        "summary": comments.of_method(binding.method).partition(".")[0] + ".",
        "description": comments.of_method(binding.method),
        "parameters": list(_parameters(binding)),
        "responses": dict(_success(binding)) | {c: _error(c) for c in sorted(_codes(binding))},
    }
    if binding.body:
        content: dict[str, Any] = {"schema": ref(shapes.body_of(binding))}
        if binding.method in examples.BODIES:
            content["examples"] = {
                name: {"value": value} for name, value in examples.BODIES[binding.method].items()
            }
        found["requestBody"] = {"required": True, "content": {"application/json": content}}
    return found


def _codes(binding: Binding) -> set[str]:
    """The statuses of the errors that a request may be answered with."""
    codes = set(_ALWAYS)
    if binding.body:
        codes.update(_BODY_ERRORS)
    if binding.changes:
        codes.update(_CHANGE_ERRORS)
    if "{" in binding.path or binding.body == "*":
        codes.add("404")
    if binding.conditional or binding.body == "*" or binding.verb in ("PATCH", "DELETE"):
        codes.add("412")
    if binding.method.startswith("Watch"):
        codes.update(_WATCH_ERRORS)
    return codes


def _parameters(binding: Binding) -> Iterator[dict[str, Any]]:
    method = binding.method
    yield from _in_path(binding)
    if method == "ListSipTrunks":
        yield _query("is_active", {"type": "boolean"}, "Only trunks that are, or are not, active.")
        text = {"type": "string", "maxLength": 1000}
        yield _query("filter", text, comments.of_query(method, "filter"))
        orders = ["", *(n + d for n in ("id", "name", "created_at") for d in ("", " desc"))]
        order = {"type": "string", "enum": orders}
        yield _query("order_by", order, comments.of_query(method, "order_by"))
    if method.startswith("List"):
        what = "Items of a page. Without it and page_token, the whole list is answered."
        yield _query("page_size", {"type": "integer", "minimum": 1, "maximum": 999999999}, what)
        yield _query("page_token", {"type": "string"}, "From the Link header of the page before.")
    if method.startswith("Watch"):
        for name, kind in _WATCH_PARAMETERS.items():
            yield _query(name, {"type": kind}, comments.of_query(method, name))
        what = "Where to go on, in place of `resume_token`; `initial_state` is ignored beside it."
        yield _header(LAST_EVENT_ID, {"type": "string"}, what)
    for name in binding.query:
        found = shapes.query_list(binding, name)
        yield _query(name, found, found.pop("description")) | {"required": True}
    if binding.changes:
        yield _query(VALIDATE_ONLY, {"type": "boolean"}, comments.of_query(method, VALIDATE_ONLY))
        what = _IDEMPOTENCY_KEY + (_IDEMPOTENT_UPDATE if method.endswith(_UPDATES) else "")
        key = {"type": "string", "pattern": "^[!-~]{1,128}$"}
        yield _header(IDEMPOTENCY_KEY, key, what)
    if binding.conditional:
        what = "The etags of which the trunk must have one, or *."
        yield _header("If-Match", _etags("*"), what)
    if method == "GetSipTrunk":
        what = "Etags known: 304 is answered where the trunk still has one of them."
        yield _header("If-None-Match", _etags(_ETAG_EXAMPLE), what)


def _in_path(binding: Binding) -> Iterator[dict[str, Any]]:
    one_id = {"type": "string", "pattern": schemas.ID_PATTERN}
    number = "The number's id." if binding.resource == "PhoneNumber" else "The trunk's id."
    for name, schema, what in (
        ("trunk_id", one_id, "The trunk's id."),
        ("id", one_id, number),
        ("revision", shapes.REVISION, "The number of the revision."),
    ):
        if "{" + name + "}" in binding.route:
            yield {
                "name": name,
                "in": "path",
                "required": True,
                "description": what,
                "schema": schema,
            }


def _query(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": description}


def _header(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "schema": schema, "description": description}


def _etags(example: str) -> dict[str, Any]:
    etags = {"pattern": f"^{_ETAG}( *, *{_ETAG}){{0,{ETAGS_MAX - 1}}}$"}
    return {"type": "string", "anyOf": [{"const": "*"}, etags], "examples": [example]}


def _success(binding: Binding) -> Iterator[tuple[str, dict[str, Any]]]:
    if binding.method.startswith("Watch"):
        yield "200", _events()
    elif binding.reply in _RESOURCES:
        yield from _one(binding, _RESOURCES[binding.reply])
    elif binding.method.startswith("List"):
        answer = _answer("The list.", {"type": "array", "items": ref(_items(binding))})
        link = "The next page, where one is asked for and there is one (RFC 8288)."
        answer["headers"] = {"Link": _told(link)}
        yield "200", answer
    elif "Delete" in binding.method:
        yield "200", _answer("Gone, or with validate_only: can be.", ref("Message"))
    else:
        what = "As they now are, or with validate_only as they would be."
        yield "200", _answer(what, {"type": "array", "items": _tried(_items(binding))})


def _one(binding: Binding, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is answered with one resource."""
    headers = {"ETag": _told("The trunk's etag.")} if kind == "Trunk" else {}
    if binding.method.startswith("Create"):
        made = _answer("The resource as it now is.", ref(kind))
        yield "201", made | {"headers": headers, "links": dict(_links(binding))}
        yield (
            "200",
            _answer("With validate_only: the resource as it would be.", ref(f"{kind}Trial")),
        )
        return
    if not binding.changes:
        yield "200", _answer("The resource as it now is.", ref(kind)) | {"headers": headers}
        if binding.method == "GetSipTrunk":
            same = "The trunk still has an etag of If-None-Match."
            yield "304", {"description": same, "headers": headers}
        return
    if kind == "Trunk":
        headers[CHANGED_FIELDS] = _told(_CHANGED_FIELDS)
    what = "The resource as it now is, or with validate_only as it would be."
    yield "200", _answer(what, _tried(kind)) | {"headers": headers}


def _items(binding: Binding) -> str:
    """The kind of the items of a list."""
    if "Revision" in binding.method:
        return "Revision"
    return _RESOURCES[binding.resource]


def _tried(kind: str) -> Schema:
    return {"anyOf": [ref(kind), ref(f"{kind}Trial")]}


def _events() -> dict[str, Any]:
    content = {"schema": {"type": "string"}, "example": examples.EVENTS}
    return {
        "description": "Events until one of the two sides ends it.",
        "content": {MEDIA_TYPE: content},
    }


def _links(made: Binding) -> Iterator[tuple[str, dict[str, Any]]]:
    """What can be called with the ids of what a create made."""
    ids = {"id": "$response.body#/id", "trunk_id": "$response.body#/byot_trunk_id", "revision": "1"}
    bodies: dict[str, Any] = {}
    if made.method == "CreateSipTrunk":
        ids["trunk_id"] = ids["id"]
        bodies["RevertSipTrunk"] = {"revision": 1}
        bodies["BatchUpdateSipTrunks"] = {"requests": [{"id": ids["id"], "is_active": True}]}
    else:
        bodies["BatchDeletePhoneNumbers"] = {"ids": [ids["id"]]}
    for binding in bindings():
        rest = binding.route.removeprefix(made.route)
        within = rest != binding.route and rest.count("{") == 1
        revision = made.method == "CreateSipTrunk" and "{revision}" in rest
        if binding.method in bodies or within or revision:
            names = [name for name in ids if "{" + name + "}" in binding.route]
            link: dict[str, Any] = {"operationId": binding.method}
            link["parameters"] = {n: ids[n] for n in names}
            if binding.method in bodies:
                link["requestBody"] = bodies[binding.method]
            yield binding.method, link


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

"""`/openapi.json` and `/docs`, which shows it without a request to any other host."""

import gzip
import importlib.resources
import json

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from trunkline.gateway.openapi import document

_FILES = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
_CACHED = {"Cache-Control": "public, max-age=86400"}
_START = """
window.ui = SwaggerUIBundle({
  url: "openapi.json", dom_id: "#ui", deepLinking: true, persistAuthorization: false,
  validatorUrl: null, tryItOutEnabled: true
});
"""
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Trunkline</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:;"
    " connect-src 'self'; base-uri 'none'; frame-ancestors 'none'"
)


async def _openapi(_: Request) -> Response:
    return Response(json.dumps(document(), ensure_ascii=False), media_type="application/json")


async def _docs(request: Request) -> Response:
    if request.scope["raw_path"].endswith(b"/"):
        return RedirectResponse("../docs")  # what the page names is beside it
    headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}
    return Response(_PAGE, headers=headers, media_type="text/html")


async def _start(_: Request) -> Response:
    return Response(_START, media_type="text/javascript")


async def _file(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _FILES:
        raise HTTPException(404)
    viewer = importlib.resources.files("trunkline.gateway.viewer")
    data, headers = viewer.joinpath(f"{name}.gz").read_bytes(), dict(_CACHED)
    if "gzip" in request.headers.get("accept-encoding", ""):  # as the middleware asks
        headers |= {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
    else:
        data = gzip.decompress(data)
    return Response(data, headers=headers, media_type=_FILES[name])


ROUTES = (
    Route("/openapi.json", _openapi),
    Route("/docs", _docs),
    Route("/docs/start.js", _start),
    Route("/docs/{name}", _file),
)

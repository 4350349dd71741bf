"""Interactive documentation at /docs: Swagger UI from a wheel, so that no page loads scripts from elsewhere."""

import asyncio
import functools
from importlib.resources import files

import orjson
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from services.gateway.openapi import TITLE, openapi_document
from services.gateway.problems import from_status

# Swagger UI sets styles on elements; scripts come from this server's files alone.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{TITLE} API</title>
<link rel="stylesheet" href="docs/swagger-ui.css">
<link rel="icon" href="docs/favicon-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
_START = b"""SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  persistAuthorization: false,
  filter: true,
  validatorUrl: null,
});
"""
_MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css", ".png": "image/png"}
_NAMES = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png")


def add_documentation(app: FastAPI) -> None:
    """Serve /openapi.json and /docs."""

    @functools.cache
    def document() -> bytes:
        return orjson.dumps(openapi_document(app))

    async def openapi(request: Request) -> Response:
        # Put together when first asked for, beside the loop: it takes as long as the rest of the start.
        return Response(
            await asyncio.to_thread(document),
            media_type="application/json",
            headers={"Cache-Control": "public, max-age=60"},
        )

    async def page(request: Request) -> Response:
        return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _POLICY})

    async def asset(request: Request) -> Response:
        name = request.path_params["name"]
        content = _START if name == "start.js" else _read(name)
        if content is None:
            raise from_status(404)
        media_type = _MEDIA_TYPES[name[name.rindex(".") :]]
        return Response(content, media_type=media_type, headers={"Cache-Control": "public, max-age=3600"})

    app.add_route("/openapi.json", openapi, methods=["GET"], include_in_schema=False)
    app.add_route("/docs", page, methods=["GET"], include_in_schema=False)
    app.add_route("/docs/{name}", asset, methods=["GET"], include_in_schema=False)


def _read(name: str) -> bytes | None:
    """A file of Swagger UI; read when asked for, which is seldom, and never by a name from the path."""
    for known in _NAMES:
        if name == known:
            return (files("fastapi_swagger") / "resources" / known).read_bytes()
    return None

"""What any such service needs: pages without outside requests, headers, limits, errors of one line."""

import base64
import hashlib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.requests import Request
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from calrec_lite.errors import InputError, RunError

BODY = 1 << 20  # bytes of a request
FAULTS = {
    401: "no token, or another",
    422: "the request is wrong",
    503: "too many wait, or memory is short",
    504: "it took too long",
}
HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"x-frame-options": b"DENY",
    b"cache-control": b"no-store",
}
STRICT = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
# Swagger UI starts from a script in the page and draws with inline styles and data: images.
SWAGGER = f"{STRICT}; connect-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; script-src 'self' "


class Headers:
    """Adds HEADERS to every answer, and a policy that allows nothing where a page has none of its own."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                have = dict(message["headers"])
                added = {**HEADERS, b"content-security-policy": STRICT.encode()}
                message["headers"] = [*message["headers"], *((k, v) for k, v in added.items() if k not in have)]
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)


def add_protection(app: FastAPI, hosts: Sequence[str]) -> None:
    """Errors of one line, headers, a limit to what is sent, and the names by which the service may be called."""
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=BODY)
    if hosts:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    app.add_middleware(Headers)

    @app.exception_handler(HTTPException)
    def refused(request: Request, error: HTTPException) -> JSONResponse:
        return _fault(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return _fault(422, _first(error))

    @app.exception_handler(InputError)
    def wrong(request: Request, error: InputError) -> JSONResponse:
        return _fault(422, str(error))

    @app.exception_handler(RunError)
    def failed(request: Request, error: RunError) -> JSONResponse:
        return _fault(503, str(error))

    @app.exception_handler(Exception)
    def broken(request: Request, error: Exception) -> JSONResponse:
        return _fault(500, f"a fault of the service ({type(error).__name__}); its log says more")


def add_pages(app: FastAPI) -> None:
    """`/`: to try lists; `/docs`: Swagger UI with the files of an installed package. Neither asks another machine."""
    page = _page()
    policy = {"content-security-policy": _policy(page)}
    static = Path(fastapi_offline.__file__).parent / "static"
    app.mount("/swagger", StaticFiles(directory=static), name="swagger")

    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers=policy)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        shown = get_swagger_ui_html(
            openapi_url="openapi.json",
            title="calrec-lite: OpenAPI",
            swagger_js_url="swagger/swagger-ui-bundle.js",
            swagger_css_url="swagger/swagger-ui.css",
            swagger_favicon_url="data:,",
        )
        shown.headers["content-security-policy"] = SWAGGER + _hashes("script", bytes(shown.body).decode())
        return shown


@cache
def _page() -> str:
    return Path(__file__).with_name("page.html").read_text(encoding="utf-8")


def _policy(page: str) -> str:
    """The page's own script and style, and requests to where it comes from; nothing else."""
    return (
        f"{STRICT}; connect-src 'self'; img-src data:; "
        f"script-src {_hashes('script', page)}; style-src {_hashes('style', page)}"
    )


def _hashes(tag: str, page: str) -> str:
    """CSP sources of the page's inline blocks."""
    blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    digests = (hashlib.sha256(block.encode()).digest() for block in blocks)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


def _fault(code: int, message: str, headers: Any = None) -> JSONResponse:
    """One line, in which half characters of a request are escaped."""
    line = " ".join(message.split()).encode("utf-8", "backslashreplace").decode()
    return JSONResponse({"error": line}, code, headers)


def _first(error: RequestValidationError) -> str:
    """What is wrong first, and where; not what was sent."""
    first = error.errors()[0]
    where = [str(part) for part in first["loc"][1:]]
    if first["type"] == "json_invalid":
        return f"the body is no JSON ({first.get('ctx', {}).get('error', first['msg'])})"
    if len(where) > 1 and where[0] in ("history", "deny", "candidates") and where[1].isdigit():
        if first["type"] == "string_too_long":
            return f"`{where[0]}.{where[1]}`: {first['msg']}"
        return f'`{where[0]}.{where[1]}`: write a title, or an id as a number or as {{"item": id}}'
    return f"`{'.'.join(where)}`: {first['msg']}" if where else f"the body: {first['msg']}"

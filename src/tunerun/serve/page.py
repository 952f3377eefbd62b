"""The chat page at `/`: files of the package, readable without a key, and nothing on it comes from elsewhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tunerun.paths import ASSET_SCHEME, resolve_asset

_FOLDER = Path(resolve_asset(f"{ASSET_SCHEME}chat_page"))
_ENTRY = "index.html"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# Scripts and styles from this server only, no address but this server's to connect to, no page to be framed in, and
# no text that becomes HTML (trusted types).
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    # After an update, the page is the new one.
    "cache-control": "no-cache",
}

FILES = {
    "/" if file.name == _ENTRY else f"/page/{file.name}": file
    for file in sorted(_FOLDER.iterdir())
    if file.suffix in _TYPES
}
"""The page's files by path on the server."""


def routes() -> list[Route]:
    """Returns a route for each file of the page."""
    return [Route(path, _endpoint(file), methods=["GET"]) for path, file in FILES.items()]


def _endpoint(file: Path) -> Callable[[Request], Awaitable[Response]]:
    content, kind = file.read_bytes(), _TYPES[file.suffix]

    async def send(_: Request) -> Response:
        return Response(content, media_type=kind, headers=_HEADERS)

    return send

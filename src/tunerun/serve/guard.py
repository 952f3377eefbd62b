"""What stands before the gateway: who may ask, how much, and how errors look."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from tunerun.serve import page, replies

BODY_SECONDS = 30.0
# A client reads no answer before it has sent its body: so many times the longest are taken and thrown away.
_DISCARDED_TIMES = 16
# They hold nothing secret.
_OPEN_PATHS = frozenset(("/health", *page.FILES))
_JSON = "application/json"


class ApiError(HTTPException):
    """An error with a body in OpenAI's shape."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Takes the HTTP status, one sentence, a short stable name and the request's field at fault."""
        super().__init__(status, message, headers)
        self.code, self.field = code, field


def error_response(error: HTTPException) -> JSONResponse:
    """Turns an error into its response, the framework's own (404, 405) included."""
    code, field = (error.code, error.field) if isinstance(error, ApiError) else (None, None)
    body = replies.error(error.status_code, error.detail, code=code, field=field)
    return JSONResponse(body, error.status_code, error.headers)


def guarded(
    app: ASGIApp, *, key: str | None, hosts: frozenset[str] | None, origins: frozenset[str] = frozenset()
) -> ASGIApp:
    """Puts the checks of key, host and origin in front of an app.

    Args:
        app: What answers requests that pass.
        key: What clients must send as `Authorization: Bearer KEY`, except to /health and the chat page.
        hosts: Names that the Host header may have; None allows all. A page on the web can point its own name at
            the loopback address (DNS rebinding): without a key the name is what gives it away.
        origins: Web origins whose pages may ask, besides the server's own.
    """

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        refusal = _refusal(scope, key, hosts, origins) if scope["type"] == "http" else None
        await (app if refusal is None else error_response(refusal))(scope, receive, send)

    return guard


async def read_body(request: Request, longest: int) -> bytes:
    """Reads a JSON request's body.

    Args:
        request: Whose body it is.
        longest: Most bytes it may have.

    Raises:
        ApiError: It is not declared as JSON, too large, or too slow.
    """
    # Browsers send other types to any address without asking first; JSON they do not.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _JSON:
        raise ApiError(415, f"The content type must be {_JSON}.")
    body, received = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                received += len(chunk)
                if received <= longest:
                    body += chunk
                elif received > _DISCARDED_TIMES * longest:
                    break
    except TimeoutError as error:
        raise ApiError(408, f"The body did not come within {BODY_SECONDS:g} seconds.") from error
    except ClientDisconnect as error:
        raise ApiError(400, "The client went away.") from error
    if received > longest:
        raise ApiError(413, f"The body has more than {longest} bytes.", headers={"connection": "close"})
    return bytes(body)


def _refusal(scope: Scope, key: str | None, hosts: frozenset[str] | None, origins: frozenset[str]) -> ApiError | None:
    headers = Headers(scope=scope)
    if hosts is not None and _host_name(headers.get("host", "")) not in hosts:
        return ApiError(403, "The Host header names another server.")
    origin = headers.get("origin")
    if origin is not None and origin not in origins and origin.partition("://")[2] != headers.get("host", ""):
        return ApiError(403, "Pages of this origin may not ask here; serve.cors_origins lists those that may.")
    if key is None or scope["path"] in _OPEN_PATHS:
        return None
    expected = f"Bearer {key}".encode()
    if hmac.compare_digest(headers.get("authorization", "").encode("latin-1"), expected):
        return None
    return ApiError(401, "A valid API key is needed.", code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def _host_name(header: str) -> str:
    if header.startswith("["):
        return header.partition("]")[0].removeprefix("[").lower()
    return header.partition(":")[0].lower()

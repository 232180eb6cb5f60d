"""Errors on the wire: RFC 9457 problem documents, one stable ``type`` each."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from mhs_ray.domain import errors as e

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of problem: its slug (the end of ``type``), status and title."""

    slug: str
    status: int
    title: str


INVALID: Final = Kind("invalid-input", 422, "The request has faults")
INTERNAL: Final = Kind("internal", 500, "The platform failed")
TOO_LARGE: Final = Kind("too-large", 413, "The request body is too large")
MALFORMED: Final = Kind("malformed", 400, "The request cannot be read")
METHOD: Final = Kind("method-not-allowed", 405, "This method is not for this path")
NO_ROUTE: Final = Kind("no-such-path", 404, "There is nothing at this path")

TABLE: Final[Mapping[type[e.MhsError], Kind]] = {
    e.InvalidInputError: INVALID,
    e.SlideError: Kind("slide", 422, "The slide cannot be used"),
    e.NotFoundError: Kind("not-found", 404, "There is no such thing"),
    e.ConflictError: Kind("conflict", 409, "Not now"),
    e.UnauthenticatedError: Kind("unauthenticated", 401, "Who are you?"),
    e.ForbiddenError: Kind("forbidden", 403, "You may not do this"),
    e.OverloadedError: Kind("overloaded", 503, "Come back later"),
    e.RateLimitedError: Kind("rate-limited", 429, "Too many requests"),
    e.RegistryError: Kind("registry", 502, "The image registry failed"),
    e.BlobsFullError: Kind("storage-full", 507, "There is no room for more"),
    e.BlobError: Kind("blob-store", 502, "The blob store failed"),
    e.TransitionError: Kind("conflict", 409, "Not now"),
}
KINDS: Final = (*dict.fromkeys(TABLE.values()), INTERNAL, TOO_LARGE, MALFORMED, METHOD, NO_ROUTE)


class ProblemFault(BaseModel):
    """One fault of a request."""

    path: str = Field(description="JSON path of what is wrong", examples=["$.scanResults[0].scanId"])
    message: str


class Problem(BaseModel):
    """An RFC 9457 problem document."""

    type: str = Field(examples=["/problems/invalid-input"])
    title: str
    status: int
    detail: str
    errors: list[ProblemFault] = []


class TooLargeError(e.MhsError):
    """A body beyond the limit."""


def problem(
    kind: Kind, detail: str, faults: list[dict[str, str]] | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Return the response for one problem."""
    body: dict[str, Any] = {
        "type": f"/problems/{kind.slug}",
        "title": kind.title,
        "status": kind.status,
        "detail": detail,
        "errors": faults or [],
    }
    return JSONResponse(body, kind.status, headers=dict(headers or {}), media_type="application/problem+json")


def json_path(loc: tuple[int | str, ...]) -> str:
    """Return ``$.a[0].b`` for pydantic's location; the leading ``body``, ``query`` or ``path`` is left out."""
    steps = loc[1:] if loc and loc[0] in {"body", "query", "path", "header"} else loc
    return "$" + "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in steps)


def install(app: FastAPI) -> None:
    """Make `app` answer every error as a problem document."""

    @app.exception_handler(e.MhsError)
    async def on_error(request: Request, error: e.MhsError) -> JSONResponse:
        if isinstance(error, TooLargeError):
            return problem(TOO_LARGE, str(error))
        kind = next((kind for cls, kind in TABLE.items() if isinstance(error, cls)), None)
        if kind is None:
            return await on_bug(request, error)
        faults = [{"path": f.path, "message": f.message} for f in getattr(error, "faults", ())]
        headers = {}
        if isinstance(error, e.OverloadedError | e.BlobsFullError | e.RateLimitedError):
            headers["Retry-After"] = str(error.retry_after_s)
        if isinstance(error, e.UnauthenticatedError):
            headers["WWW-Authenticate"] = 'Bearer realm="mhs", Basic realm="mhs"'
        return problem(kind, str(error), faults, headers)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        faults = [
            {"path": "$", "message": "the body is no JSON"}
            if f["type"] == "json_invalid"  # whose location is a position in the text
            else {"path": json_path(tuple(f["loc"])), "message": f["msg"]}
            for f in error.errors()
        ]
        return problem(INVALID, "; ".join(f"{f['path']}: {f['message']}" for f in faults), faults)

    @app.exception_handler(HTTPException)
    async def on_http(_request: Request, error: HTTPException) -> JSONResponse:
        known = {k.status: k for k in (MALFORMED, NO_ROUTE, METHOD, TOO_LARGE)}
        kind = known.get(error.status_code) or replace(MALFORMED, status=error.status_code)
        return problem(kind, str(error.detail), headers=error.headers)

    @app.exception_handler(ClientDisconnect)
    async def on_gone(_request: Request, _error: ClientDisconnect) -> JSONResponse:
        # Nobody reads this answer; a caller that hangs up again and again must not fill the log.
        return problem(MALFORMED, "the request ended before its body did")

    @app.exception_handler(Exception)
    async def on_bug(request: Request, error: Exception) -> JSONResponse:
        # The path only: a query can hold a signature.
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return problem(INTERNAL, "the platform failed on this request; its log has the cause")

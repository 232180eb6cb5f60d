"""A database that is away or full is no bug: the caller is told to come back, and nothing of the request is done."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from sqlalchemy import exc

from api.errors import TABLE, problem
from mhs_ray.domain.errors import BlobsFullError, OverloadedError

log = logging.getLogger(__name__)

_RETRY_S = 5
_FULL = ("disk is full", "no space left", "diskfull", "could not extend file")


def install(app: FastAPI) -> None:
    """Answer 503 while the database cannot be reached, 507 while its disk is full."""

    async def on_database(request: Request, error: Exception) -> JSONResponse:
        said = str(getattr(error, "orig", None) or error).lower()
        log.error("%s %s: the database failed (%s)", request.method, request.url.path, type(error).__name__)
        if any(word in said for word in _FULL):
            detail = "the database's disk is full; nothing was changed, and it can be tried again once there is room"
            return problem(TABLE[BlobsFullError], detail, headers={"Retry-After": "120"})
        detail = "the database does not answer just now; nothing was changed, so send the request again"
        return problem(TABLE[OverloadedError], detail, headers={"Retry-After": str(_RETRY_S)})

    # OperationalError: refused, cut, locked, full; InterfaceError: cut; TimeoutError: no connection was free in time.
    for kind in (exc.OperationalError, exc.InterfaceError, exc.TimeoutError):
        app.add_exception_handler(kind, on_database)

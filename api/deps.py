"""What every route needs: the services, who calls, and bodies of bounded size."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any

from fastapi import Depends, Path, Query, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import AfterValidator

from api.errors import Problem, TooLargeError
from api.schemas.base import MAX_ROW_ID, storable
from mhs_ray.auth.buckets import Buckets
from mhs_ray.auth.tokens import AttemptIdentity
from mhs_ray.domain.errors import ForbiddenError, RateLimitedError, UnauthenticatedError
from mhs_ray.domain.models import Principal
from mhs_ray.services.core import Core
from mhs_ray.store.sql.scope import Page


# What only looks at memory is `async`: FastAPI sends everything else to a thread and back, at a tenth of a millisecond.
async def core_of(request: Request) -> Core:
    """Return the services of this replica."""
    core: Core = request.app.state.core
    return core


CoreDep = Annotated[Core, Depends(core_of)]


def basic_credentials(header: str) -> tuple[str, str]:
    """Return (user, password) of a Basic header. Raises UnauthenticatedError."""
    try:
        user, colon, password = base64.b64decode(header[6:].strip(), validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        colon = ""
    if not colon:
        raise UnauthenticatedError("the Basic authorization header is malformed: it is base64 of id:secret")
    return user, password


# These three call each other: FastAPI takes longer to put a chain of dependencies together than they take to answer.
async def caller(request: Request) -> AttemptIdentity | Principal:
    """Return who calls, by Bearer token or by Basic id:secret. Raises UnauthenticatedError, RateLimitedError."""
    known: AttemptIdentity | Principal | None = getattr(request.state, "caller", None)
    if known is not None:  # one request counts once, however many ask
        return known
    who = await _identify(request.headers.get("authorization", ""), request.app.state.core)
    limit_rate(request, f"job-{who.job_id}" if isinstance(who, AttemptIdentity) else who.client_id)
    request.state.caller = who
    return who


def limit_rate(request: Request, key: str) -> None:
    """Count one request of a caller. Raises RateLimitedError."""
    buckets: Buckets = request.app.state.rates
    if wait_s := buckets.take(key):
        raise RateLimitedError("this client sends more requests than it may; slow down", wait_s)


async def _identify(header: str, core: Core) -> AttemptIdentity | Principal:
    scheme = header[:7].lower()
    if scheme == "bearer ":
        return await run_in_threadpool(_holder, core, header[7:].strip())
    if scheme.startswith("basic "):
        client_id, secret = basic_credentials(header)
        known = core.verifier.remembered(client_id, secret)
        return known if known is not None else await run_in_threadpool(core.verifier.verify, client_id, secret)
    raise UnauthenticatedError(
        "no credential: send Authorization: Bearer <token>, or Basic with a client's id and secret"
    )


def _holder(core: Core, token: str) -> AttemptIdentity | Principal:
    if provider := core.outsiders.provider_of(token):
        return core.outsiders.verify(provider, token)
    holder = core.tokens.verify(token)
    return holder if isinstance(holder, AttemptIdentity) else core.verifier.current(holder.client_id)


CallerDep = Annotated[AttemptIdentity | Principal, Depends(caller)]


async def principal(request: Request) -> Principal:
    """Return the client that calls; a model container has no business here."""
    who = await caller(request)
    if isinstance(who, AttemptIdentity):
        raise ForbiddenError("the token of a model container is good for posting its results only")
    return who


async def writer(request: Request) -> Principal:
    """Return the client that calls if it may change things; what it does is audited (`api.audited`)."""
    who = await principal(request)
    request.state.writer = who
    if not who.may_write:
        raise ForbiddenError("a viewer can look but not change anything")
    return who


WhoDep = Annotated[Principal, Depends(principal)]
WriterDep = Annotated[Principal, Depends(writer)]
CursorQuery = Annotated[str | None, Query(description="`next_cursor` of the page before", max_length=100)]
IdPath = Annotated[int, Path(ge=1, le=MAX_ROW_ID)]
IdQuery = Annotated[int | None, Query(ge=1, le=MAX_ROW_ID)]
NameQuery = Annotated[str | None, Query(description="part of the name", max_length=200), AfterValidator(storable)]
TextQuery = Annotated[str | None, Query(max_length=200), AfterValidator(storable)]
LimitQuery = Annotated[int, Query(ge=1, le=500, description="items per page")]


async def read_body(request: Request, limit: int) -> bytes:
    """Return the whole body. Raises TooLargeError beyond `limit` bytes, at once where the length is told."""
    told = request.headers.get("content-length")
    if told and told.isascii() and told.isdigit() and int(told[:20]) > limit:
        raise TooLargeError(f"the body has {told} bytes; at most {limit} are taken")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise TooLargeError(f"the body has more than {limit} bytes")
    return bytes(body)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI entries of the problem documents a route can answer with; these five always."""
    return {
        status: {"model": Problem, "description": "problem document (RFC 9457)"}
        for status in sorted({401, 403, 422, 429, 503, *statuses})
    }


def page_out(page: Page[Any]) -> dict[str, Any]:
    """Return a page for the wire."""
    return {"items": page.items, "next_cursor": page.next_cursor}

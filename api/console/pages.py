"""Rendering: templates with the visitor's surroundings, security headers, and errors as pages."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Coroutine
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from starlette.exceptions import HTTPException

from api.audited import note
from api.console import assets, formats, session
from api.console.session import SignInNeededError, Visitor
from api.errors import TABLE, TooLargeError
from mhs_ray.domain.errors import InvalidInputError, MhsError, UnauthenticatedError
from mhs_ray.domain.instances import INSTANCE_TYPES

log = logging.getLogger(__name__)

HERE: Final = Path(__file__).resolve().parent
STATIC: Final = HERE / "static"
_NAV: Final = (
    ("Home", "/console/"),
    ("Docker Images", "/console/images"),
    ("Runnable Containers", "/console/containers"),
    ("Case Algorithms", "/console/algorithms"),
    ("Scans", "/console/scans"),
    ("Cohorts", "/console/cohorts"),
    ("Jobs and Logs", "/console/jobs"),
    ("Cluster", "/console/cluster"),
    ("Access", "/console/access"),
)
_TITLES: Final = {
    401: "Please sign in", 403: "You may not do this", 404: "There is nothing here", 409: "Not now",
    413: "Too much at once", 422: "That is not right", 429: "Too many tries",
    502: "A part of the platform does not answer", 503: "Come back in a moment",
}  # fmt: skip


@cache
def _environment() -> Environment:
    env = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters.update(
        ago=formats.ago, duration=formats.duration, size=formats.size, number=formats.number, badge=formats.badge,
        digest=formats.short_digest,
    )  # fmt: skip
    env.globals.update(asset=asset_url, nav=_NAV, instance_types=INSTANCE_TYPES, zip=zip, len=len)
    return env


def asset_url(name: str) -> str:
    """Return the URL of a static file; it changes with the content, so browsers may keep the file for good."""
    return f"/console/static/{_content_tag()}/{name}"


@cache
def _content_tag() -> str:
    digest = hashlib.sha256()
    for file in sorted(p for p in STATIC.rglob("*") if p.is_file()):
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def is_partial(request: Request) -> bool:
    """Say whether htmx asks for a piece of the page."""
    return request.headers.get("hx-request") == "true" and request.headers.get("hx-history-restore-request") != "true"


def page(
    request: Request, template: str, status: int = 200, /, *, connect: str | None = None, **values: Any
) -> HTMLResponse:
    """Render a page or, where the template's name begins with ``_``, a piece of one.

    connect: a further origin that the page's scripts may talk to, e.g. the blob store's for an upload.
    """
    seen: Visitor | None = getattr(request.state, "visitor", None)
    tz = formats.zone(request.cookies.get("mhs_tz", ""))
    text = _environment().get_template(template).render(
        request=request,
        visitor=seen,
        path=request.url.path,
        query=request.url.query,
        form_key=seen.session.form_key if seen else "",
        missing_assets=assets.missing(),
        when=formats.time_filter(tz),
        zone_name=str(tz),
        here=quote(request.url.path + (f"?{request.url.query}" if request.url.query else ""), safe=""),
        **values,
    )  # fmt: skip
    response = HTMLResponse(text, status, headers={"Vary": "HX-Request, Cookie"})
    response.headers["Cache-Control"] = "no-store"
    secure(response, connect)
    return response


def secure(response: Response, connect: str | None = None) -> None:
    """Set the headers that keep a page to our own scripts, and away from other sites' frames."""
    policy = (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; "
        f"connect-src 'self'{f' {connect}' if connect else ''}; worker-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    )
    response.headers.setdefault("Content-Security-Policy", policy)
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Referrer-Policy", "same-origin")
    response.headers.setdefault("Cross-Origin-Opener-Policy", "same-origin")
    response.headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")


def go(path: str, notice: str = "") -> RedirectResponse:
    """Lead on to another page after a write; notice: one sentence that is shown there."""
    if notice:
        path += ("&" if "?" in path else "?") + urlencode({"notice": notice})
    return RedirectResponse(path, 303)


class ConsoleRoute(APIRoute):
    """Answers every error as a page a person can read, checks where writes come from, and sets security headers."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap FastAPI's own handler."""
        inner = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                if request.method not in {"GET", "HEAD"}:
                    session.check_origin(request)
                response = await inner(request)
                await _audit(request, response, self.name)
                session.renew(request.app.state.core, request, response)
            except Exception as error:
                response = await _error(request, error)
            secure(response)
            return response

        return handle


async def _audit(request: Request, response: Response, name: str) -> None:
    """Note what a form did: its route's name, and where it led. Tasks are noted in the transaction that makes them."""
    who = getattr(request.state, "writer", None)
    if who is None or response.status_code >= 400 or name in _NOT_NOTED:
        return
    section = request.url.path.split("/")[2].removesuffix("s")
    action = name.replace("_", " ") if "_" in name else f"{name} {section}"
    target = getattr(request.state, "audit_target", None)
    await note(request, who, action, target or urlsplit(response.headers.get("location", request.url.path)).path)


_NOT_NOTED: Final = frozenset({"ai_request", "test", "switch"})


async def _error(request: Request, error: Exception) -> Response:
    match error:
        case SignInNeededError():
            return _sign_in(request)
        case UnauthenticatedError():
            return error_page(request, 401, str(error))
        case InvalidInputError():
            return error_page(request, 422, "; ".join(f.message for f in error.faults))
        case TooLargeError():
            return error_page(request, 413, str(error))
        case MhsError():
            kind = next((kind for cls, kind in TABLE.items() if isinstance(error, cls)), None)
            if kind is not None:
                return error_page(request, kind.status, str(error))
        case RequestValidationError():
            wrong = ", ".join(str(e["loc"][-1]) for e in error.errors())
            return error_page(request, 404, f"the address is not one of a page here (look at: {wrong})")
        case HTTPException():
            return error_page(request, error.status_code, str(error.detail))
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return error_page(request, 500, "the platform failed on this request; its log has the cause")


def error_page(request: Request, status: int, detail: str) -> HTMLResponse:
    """Return what a person sees when something cannot be done."""
    title = _TITLES.get(status, "Something went wrong" if status >= 500 else "That did not work")
    template = "_error.html" if is_partial(request) or _wants_piece(request) else "error.html"
    return page(request, template, status, title=title, detail=detail[:1].upper() + detail[1:], status_code=status)


def _wants_piece(request: Request) -> bool:
    return request.headers.get("sec-fetch-dest", "document") not in {"document", ""}


def _sign_in(request: Request) -> Response:
    """Lead to the sign-in page and back: by a redirect for a page, by a status that our scripts know for a piece."""
    here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    if request.method not in {"GET", "HEAD"}:  # what was typed is kept by the page that comes after
        referer = urlsplit(request.headers.get("referer", ""))
        here = referer.path + (f"?{referer.query}" if referer.query else "")
    target = f"/console/sign-in?next={quote(session.safe_next(here), safe='')}"
    if is_partial(request) or _wants_piece(request):
        return Response(status_code=401, headers={"X-Sign-In": target})
    if session.COOKIE not in request.cookies and request.headers.get("sec-fetch-site") == "cross-site":
        # A link in another site's page: the strict cookie stays out of its request, but not out of our own reload.
        return page(request, "again.html")
    return RedirectResponse(target, 303)

"""Who looks at the console: a signed cookie that only this site's own pages send, and a key that every write brings.

The cookie (HttpOnly, SameSite=Strict) names API clients; their company, role and revocation are looked up at each
request. It is good for the console's paths only: the ``/v1`` API never reads it, so no other site can use it there.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final
from urllib.parse import parse_qsl, urlsplit

from fastapi import Depends, Request, Response

from api.deps import CoreDep, read_body
from mhs_ray.auth.oidc import SSO_PREFIX
from mhs_ray.auth.tokens import Session
from mhs_ray.domain.errors import ForbiddenError, MhsError, UnauthenticatedError
from mhs_ray.domain.models import Principal, Role
from mhs_ray.services.core import Core

COOKIE: Final = "mhs_session"
LIFE: Final = timedelta(hours=8)
PATH: Final = "/console"
_MAX_FORM: Final = 1 << 20
_MAX_CLIENTS: Final = 8
_FORM_KEY_HEADER: Final = "x-form-key"


class SignInNeededError(MhsError):
    """Nobody is signed in, or the session has ended; the answer leads to the sign-in page and back."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """A signed-in browser. who: the client that it works as; others: (index, client) that it can switch to."""

    who: Principal
    session: Session
    company: str
    others: tuple[tuple[int, Principal, str], ...] = ()

    @property
    def may_write(self) -> bool:
        """Viewers only look."""
        return self.who.may_write

    @property
    def sees_access(self) -> bool:
        """Who has access is an admin's page."""
        return self.who.may_administer

    @property
    def is_operator(self) -> bool:
        """Operators see the cluster."""
        return self.who.role is Role.OPERATOR

    @property
    def sees_cluster(self) -> bool:
        """The cluster is the operators' page."""
        return self.is_operator


class Form(Mapping[str, str]):
    """Fields of a posted form; a name that comes several times gives its last value, `every` all of them."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self._pairs = pairs
        self._last = dict(pairs)

    def __getitem__(self, name: str) -> str:
        return self._last[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._last)

    def __len__(self) -> int:
        return len(self._last)

    def text(self, name: str) -> str:
        """Return a field without the space around it, "" when it is not there."""
        return self._last.get(name, "").strip()

    def every(self, name: str) -> list[str]:
        """Return all values of a field."""
        return [value for key, value in self._pairs if key == name]


def start(core: Core, response: Response, request: Request, who: Principal, former: Session | None) -> None:
    """Sign `who` in; clients that this browser signed in with before can be switched to."""
    known = tuple(c for c in (former.clients if former else ()) if c != who.client_id)[-(_MAX_CLIENTS - 1) :]
    session = Session((*known, who.client_id), len(known), secrets.token_urlsafe(24))
    put_cookie(core, response, request, session)


def put_cookie(core: Core, response: Response, request: Request, session: Session) -> None:
    """Send the session to the browser."""
    response.set_cookie(
        COOKIE, core.tokens.for_session(session, LIFE), max_age=int(LIFE.total_seconds()), path=PATH,
        httponly=True, samesite="strict", secure=is_https(request),
    )  # fmt: skip


def end(response: Response, request: Request) -> None:
    """Sign this browser out."""
    response.delete_cookie(COOKIE, path=PATH, httponly=True, samesite="strict", secure=is_https(request))


def is_https(request: Request) -> bool:
    """Say whether people reach this page by TLS, also where a proxy ends it."""
    public = request.app.state.core.settings.api.public_url
    return request.url.scheme == "https" or str(public or "").startswith("https:")


def session_of(request: Request, core: Core) -> Session | None:
    """Return the session that the browser sent, None when there is none that is good."""
    try:
        return core.tokens.verify_session(request.cookies.get(COOKIE, ""))
    except (UnauthenticatedError, KeyError, TypeError, ValueError):
        return None


def visitor(request: Request, core: CoreDep) -> Visitor:
    """Return who looks. Raises SignInNeededError."""
    session = session_of(request, core)
    if session is None or not 0 <= session.active < len(session.clients):
        raise SignInNeededError("please sign in")
    clients = [c if c and c[0].enabled else None for c in (core.clients.lookup(c) for c in session.clients)]
    found = clients[session.active]
    if found is None:  # revoked meanwhile, or its company was switched off
        raise SignInNeededError("please sign in")
    names = core.clients.company_names({c[0].company_id for c in clients if c})
    others = tuple(
        (i, c[0], names.get(c[0].company_id, "")) for i, c in enumerate(clients) if c and i != session.active
    )
    seen = Visitor(found[0], session, names.get(found[0].company_id, ""), others)
    request.state.visitor = seen
    return seen


VisitorDep = Annotated[Visitor, Depends(visitor)]


@dataclass(frozen=True, slots=True)
class Write:
    """A write by somebody who may: from a page of ours, with the session's key."""

    visitor: Visitor
    form: Form

    @property
    def who(self) -> Principal:
        """The client that writes."""
        return self.visitor.who


async def read_form(request: Request) -> Form:
    """Return the fields of an urlencoded form; no field can be sent as a file."""
    body = (await read_body(request, _MAX_FORM)).decode("utf-8", "replace")
    form = Form(parse_qsl(body, keep_blank_values=True, max_num_fields=5000))
    request.state.form = form
    return form


async def write(request: Request, seen: VisitorDep) -> Write:
    """Return who writes what. Raises ForbiddenError for a viewer, and for a form that is not one of our pages'."""
    form = await read_form(request)
    given = request.headers.get(_FORM_KEY_HEADER) or form.get("form_key", "")
    if not hmac.compare_digest(given.encode(), seen.session.form_key.encode()):
        raise ForbiddenError("this form belongs to an earlier session; reload the page and send it again")
    if not seen.may_write and request.url.path not in _ANYBODYS:
        raise ForbiddenError("a viewer can look but not change anything")
    request.state.writer = seen.who
    return Write(seen, form)


_ANYBODYS: Final = frozenset({"/console/sign-out", "/console/switch"})
WriteDep = Annotated[Write, Depends(write)]


def check_origin(request: Request) -> None:
    """Refuse a write that another site's page sends; the cookie alone would stop it too. Raises ForbiddenError."""
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is not None and site not in {"same-origin", "none"}:
        raise ForbiddenError("this request came from another site's page")
    if origin is not None and origin != "null":
        host = urlsplit(origin).netloc
        known = {request.headers.get("host", ""), urlsplit(request.app.state.core.settings.api.public_url or "").netloc}
        if host not in known:
            raise ForbiddenError("this request came from another site's page")
    elif origin == "null" and site is None:
        raise ForbiddenError("this request does not say which page it came from")


def renew(core: Core, request: Request, response: Response) -> None:
    """Give an active browser a fresh cookie once half of the session's life is over."""
    seen: Visitor | None = getattr(request.state, "visitor", None)
    if seen is None or seen.session.expires_at is None or request.method != "GET":
        return
    if seen.who.client_id.startswith(SSO_PREFIX):
        return  # whether the provider still vouches for it is seen at the next sign-in
    if seen.session.expires_at - datetime.now(UTC) < LIFE / 2 and "set-cookie" not in response.headers:
        put_cookie(core, response, request, replace(seen.session, expires_at=None))


def safe_next(wanted: str | None) -> str:
    """Return a path of the console to go to; anything else becomes the console's first page."""
    wanted = wanted or ""
    parts = urlsplit(wanted)
    fine = not parts.scheme and not parts.netloc and (parts.path == PATH or parts.path.startswith(f"{PATH}/"))
    if not fine or "\\" in wanted or any(ord(c) < 32 for c in wanted) or parts.path == f"{PATH}/sign-in":
        return f"{PATH}/"
    return wanted


def shown(value: Any) -> str:
    """Return a value as a form's field shows it."""
    return "" if value is None else str(value)

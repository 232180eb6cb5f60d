"""Signing in at an OpenID provider: authorization code with PKCE, state and nonce.

What must come back is in a cookie that is sealed by the platform's vault, good for ten minutes and for this path only.
It is SameSite=Lax, as the provider's redirect is another site's; the session's own cookie stays strict.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from typing import Annotated, Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from api.console import session
from api.console.pages import ConsoleRoute, go
from api.deps import CoreDep
from mhs_ray.auth.oidc import Provider
from mhs_ray.domain.errors import MhsError, NotFoundError, UnauthenticatedError
from mhs_ray.services.core import Core

router = APIRouter(prefix="/console/oidc", include_in_schema=False, route_class=ConsoleRoute)
_COOKIE: Final = "mhs_oidc"
_PATH: Final = "/console/oidc"
_LIFE_S: Final = 600
Text = Annotated[str, Query(max_length=4000)]


@router.get("/start/{number}")
def start(request: Request, core: CoreDep, number: int, next_: Annotated[str, Query(alias="next")] = "") -> Response:
    """Lead to the provider."""
    provider = _provider(core, number)
    state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
    asked = {
        "response_type": "code", "client_id": provider.settings.client_id, "scope": provider.settings.scopes,
        "redirect_uri": _callback(request, core), "state": state, "nonce": nonce, "code_challenge": challenge,
        "code_challenge_method": "S256",
    }  # fmt: skip
    url = provider.endpoint("authorization_endpoint")
    response = RedirectResponse(f"{url}{'&' if '?' in url else '?'}{urlencode(asked)}", 303)
    kept = {
        "provider": number, "state": state, "nonce": nonce, "verifier": verifier,
        "next": session.safe_next(next_[:2000]), "until": time.time() + _LIFE_S,
    }  # fmt: skip
    sealed = core.db.vault.seal(kept).decode()
    response.set_cookie(
        _COOKIE, sealed, max_age=_LIFE_S, path=_PATH, httponly=True, samesite="lax", secure=session.is_https(request)
    )
    return response


@router.get("/callback")
def callback(request: Request, core: CoreDep, code: Text = "", state: Text = "", error: Text = "") -> Response:
    """Take what the provider says, and lead back to where one was."""
    kept = _kept(request, core)
    if not hmac.compare_digest(state.encode(), str(kept["state"]).encode()):
        raise UnauthenticatedError("this sign-in was not begun in this browser; begin again")
    if error or not code:
        raise UnauthenticatedError("the identity provider did not let you in; begin again, or ask your lab's admin")
    provider = _provider(core, kept["provider"])
    token = provider.exchange(code, _callback(request, core), kept["verifier"])
    claims = provider.claims(token, str(provider.settings.client_id))
    if not hmac.compare_digest(str(claims.get("nonce", "")).encode(), str(kept["nonce"]).encode()):
        raise UnauthenticatedError("the identity provider's answer belongs to another sign-in; begin again")
    who = core.outsiders.admit(provider, claims)
    target = kept["next"]
    response = go(f"{target}{'&' if '?' in target else '?'}resumed=1")
    # The session's strict cookie did not come along with this redirect: companies signed in to before are not known.
    session.start(core, response, request, who, session.session_of(request, core))
    core.audit.note(who, "sign in", f"/console by {provider.settings.name}")
    response.delete_cookie(_COOKIE, path=_PATH, httponly=True, samesite="lax", secure=session.is_https(request))
    return response


def _kept(request: Request, core: Core) -> dict[str, Any]:
    try:
        kept: dict[str, Any] = core.db.vault.open(request.cookies.get(_COOKIE, "").encode())
        good = kept["until"] > time.time()
    except (MhsError, KeyError, TypeError, ValueError):
        good = False
    if not good:
        raise UnauthenticatedError("this sign-in took longer than ten minutes, or was begun elsewhere; begin again")
    return kept


def _provider(core: Core, number: int) -> Provider:
    providers = core.outsiders.providers
    if not 0 <= number < len(providers) or providers[number].settings.client_id is None:
        raise NotFoundError("identity provider", number)
    return providers[number]


def _callback(request: Request, core: Core) -> str:
    base = core.settings.api.public_url or str(request.base_url)
    return f"{base.rstrip('/')}{_PATH}/callback"

"""Tokens of OpenID providers (Techcyte's, or a lab's own): RS256 and ES256, verified by the provider's published keys.

Keys rotate: an unknown ``kid`` has the key set fetched again, at most once in half a minute. While the provider does
not answer, the keys that are known go on counting for a day.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import httpx
import jwt

from mhs_ray.auth.clients import enabled
from mhs_ray.domain.errors import ForbiddenError, OverloadedError, UnauthenticatedError
from mhs_ray.domain.models import Principal, Role
from mhs_ray.domain.sections import IssuerSettings
from mhs_ray.store.sql.clients import Clients
from mhs_ray.store.sql.companies import Companies

log = logging.getLogger(__name__)

LEEWAY_S: Final = 60
SSO_PREFIX: Final = "sso-"
ALGORITHMS: Final = ("RS256", "ES256")
_KEY_TYPES: Final = {"RS256": "RSA", "ES256": "EC"}
_FRESH_S: Final = 600.0
_STALE_S: Final = 86_400.0
_AGAIN_S: Final = 30.0
_REMEMBER_S: Final = 60.0
_TIMEOUT_S: Final = 10.0
_MAX_BYTES: Final = 1 << 20
_MAX_KNOWN: Final = 5000


class Provider:
    """One issuer: its metadata and its keys, fetched when they are needed. Safe to share between threads."""

    def __init__(self, settings: IssuerSettings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched = self._tried = float("-inf")
        self._metadata: dict[str, Any] | None = None

    def claims(self, token: str, audience: str) -> dict[str, Any]:
        """Return the claims of a token of this issuer for `audience`. Raises UnauthenticatedError, OverloadedError."""
        try:
            header = jwt.get_unverified_header(token)
            algorithm, kid = header.get("alg"), header.get("kid")
            if algorithm not in ALGORITHMS:
                raise UnauthenticatedError("the token is signed in a way that is not taken; RS256 and ES256 are")
            key = self._key(kid, algorithm)
            claims: dict[str, Any] = jwt.decode(
                token, key.key, algorithms=[algorithm], audience=audience, issuer=self.settings.issuer,
                leeway=LEEWAY_S, options={"require": ["exp", "iat", "sub", "aud", "iss"]},
            )  # fmt: skip
        except jwt.ExpiredSignatureError:
            raise UnauthenticatedError("the token has expired; get a new one") from None
        except jwt.InvalidAudienceError:
            raise UnauthenticatedError("the token was issued for another audience than this platform") from None
        except jwt.PyJWTError:
            raise UnauthenticatedError("the bearer token is malformed or was not issued by its issuer") from None
        return claims

    def endpoint(self, name: str) -> str:
        """Return the URL that the issuer's metadata names so, or what the settings say instead."""
        own = {
            "jwks_uri": self.settings.jwks_url, "authorization_endpoint": self.settings.authorize_url,
            "token_endpoint": self.settings.token_url,
        }.get(name)  # fmt: skip
        if own:
            return own
        if self._metadata is None:
            found = _get_json(self.settings.issuer.rstrip("/") + "/.well-known/openid-configuration")
            if found.get("issuer") != self.settings.issuer:
                raise OverloadedError("the identity provider's metadata names another issuer; ask the operator")
            self._metadata = found
        url = self._metadata.get(name)
        if not isinstance(url, str):
            raise OverloadedError(f"the identity provider's metadata has no {name}; ask the operator")
        return url

    def exchange(self, code: str, redirect_uri: str, verifier: str) -> str:
        """Trade an authorization code for an id token. Raises UnauthenticatedError, OverloadedError."""
        form = {
            "grant_type": "authorization_code", "code": code, "redirect_uri": redirect_uri,
            "code_verifier": verifier, "client_id": self.settings.client_id or "",
        }  # fmt: skip
        if self.settings.client_secret is not None:
            form["client_secret"] = self.settings.client_secret.get_secret_value()
        try:
            answer = httpx.post(self.endpoint("token_endpoint"), data=form, timeout=_TIMEOUT_S, follow_redirects=False)
        except httpx.HTTPError:
            raise OverloadedError("the identity provider does not answer; try again", retry_after_s=10) from None
        if answer.status_code != 200:
            raise UnauthenticatedError("the identity provider did not confirm the sign-in; begin again")
        try:
            token = answer.json()["id_token"]
        except (ValueError, KeyError, TypeError):
            raise UnauthenticatedError("the identity provider's answer has no id token") from None
        return str(token)

    def _key(self, kid: object, algorithm: str) -> jwt.PyJWK:
        with self._lock:
            now = time.monotonic()
            unknown = self._find(kid, algorithm) is None
            if (unknown or now - self._fetched > _FRESH_S) and now - self._tried > _AGAIN_S:
                self._tried = now
                self._fetch(now)
            if not self._keys or now - self._fetched > _STALE_S:
                raise OverloadedError("the identity provider's keys cannot be had now; try again", retry_after_s=30)
            key = self._find(kid, algorithm)
        if key is None:
            raise UnauthenticatedError(
                "the key that this token is signed with is not one of its issuer's; get a new one"
            )
        return key

    def _find(self, kid: object, algorithm: str) -> jwt.PyJWK | None:
        fitting = {k: v for k, v in self._keys.items() if v.key_type == _KEY_TYPES[algorithm]}
        if kid is None:  # a provider with one key may leave its name out
            return next(iter(fitting.values())) if len(fitting) == 1 else None
        return fitting.get(str(kid))

    def _fetch(self, now: float) -> None:
        try:
            keys = _keys(_get_json(self.endpoint("jwks_uri")))
        except OverloadedError as error:
            log.warning("the keys of %s: %s", self.settings.issuer, error)
            return
        self._keys, self._fetched = keys, now


class Outsiders:
    """People and programs that a provider vouches for, as clients of the company that their token names."""

    def __init__(self, issuers: Sequence[IssuerSettings], clients: Clients, companies: Companies) -> None:
        self.providers = [Provider(i) for i in issuers]
        self._clients, self._companies = clients, companies
        self._known: dict[bytes, tuple[float, Principal]] = {}

    def provider_of(self, token: str) -> Provider | None:
        """Return the provider that a token says it is from; nothing about the token is believed by that."""
        if not self.providers:
            return None
        try:
            said = jwt.decode(token, options={"verify_signature": False}).get("iss")
        except jwt.PyJWTError:
            return None
        return next((p for p in self.providers if p.settings.issuer == said), None)

    def verify(self, provider: Provider, token: str) -> Principal:
        """Return who holds an access token. Raises UnauthenticatedError, ForbiddenError, OverloadedError."""
        digest = hashlib.sha256(token.encode()).digest()
        known = self._known.get(digest)
        if known and known[0] > time.monotonic():
            return known[1]
        if provider.settings.audience is None:
            raise UnauthenticatedError("tokens of this issuer are taken for signing in to the console only")
        claims = provider.claims(token, provider.settings.audience)
        who = self.admit(provider, claims)
        if len(self._known) > _MAX_KNOWN:
            self._known.clear()
        life = min(_REMEMBER_S, float(claims["exp"]) + LEEWAY_S - time.time())
        self._known[digest] = (time.monotonic() + life, who)
        return who

    def admit(self, provider: Provider, claims: Mapping[str, Any]) -> Principal:
        """Return whom verified claims name, kept as a client. Raises ForbiddenError, UnauthenticatedError."""
        settings = provider.settings
        external = claims.get(settings.company_claim)
        company = self._companies.by_external_id(str(external)) if isinstance(external, (str, int)) else None
        if company is None:
            raise ForbiddenError("your account's company is not known to this platform; ask its operator to add it")
        role = _role(settings, claims.get(settings.role_claim))
        if role is None:
            raise ForbiddenError(
                "your account has none of the roles that may use this platform; ask your admin for one"
            )
        client_id = client_id_of(settings.issuer, str(claims["sub"]))
        name = next(
            (str(claims[k]) for k in ("name", "preferred_username", "email", "sub") if claims.get(k)), client_id
        )
        name = "".join(c for c in name if c.isprintable())[:200] or client_id
        if not self._clients.refresh(client_id, company.id, name, role, settings.name):
            raise UnauthenticatedError("your access to this platform was revoked; ask your lab's admin")
        return enabled(Principal(company.id, name, role, client_id, company.mhs_enabled))


def client_id_of(issuer: str, subject: str) -> str:
    """Return the id under which a provider's subject is kept here."""
    return SSO_PREFIX + hashlib.sha256(f"{issuer}\0{subject}".encode()).hexdigest()[:24]


def _role(settings: IssuerSettings, told: Any) -> Role | None:
    names: Iterable[Any] = told if isinstance(told, list) else [told]
    for name in names:
        if not isinstance(name, str):
            continue
        if name in settings.roles:
            return settings.roles[name]
        # An operator rules over all companies: only a name that the settings list makes one.
        if name in set(Role) and name != Role.OPERATOR:
            return Role(name)
    return settings.default_role


def _keys(document: Mapping[str, Any]) -> dict[str, jwt.PyJWK]:
    found: dict[str, jwt.PyJWK] = {}
    for number, raw in enumerate(document.get("keys") or ()):
        if not isinstance(raw, dict) or raw.get("use", "sig") != "sig" or raw.get("kty") not in _KEY_TYPES.values():
            continue
        if raw.get("kty") == "EC" and raw.get("crv") != "P-256":
            continue
        try:
            found[str(raw.get("kid", f"#{number}"))] = jwt.PyJWK(raw, "RS256" if raw["kty"] == "RSA" else "ES256")
        except jwt.PyJWTError:
            continue
    return found


def _get_json(url: str) -> dict[str, Any]:
    try:
        with httpx.stream("GET", url, timeout=_TIMEOUT_S, follow_redirects=False) as answer:
            body = bytearray()
            for piece in answer.iter_bytes():
                body += piece
                if len(body) > _MAX_BYTES:
                    raise OverloadedError("the identity provider's answer is too long")
        if answer.status_code != 200:
            raise OverloadedError(f"the identity provider answers {answer.status_code}", retry_after_s=30)
        found = httpx.Response(200, content=bytes(body)).json()
    except (httpx.HTTPError, ValueError) as error:
        raise OverloadedError(f"the identity provider cannot be asked ({type(error).__name__})", 30) from None
    if not isinstance(found, dict):
        raise OverloadedError("the identity provider's answer is no JSON object")
    return found

"""Who may do what in the registry: scopes, the passwords we hand out and the bearer tokens they buy.

A *credential* is the password of ``docker login`` (JWT, HS256, ours alone to read): a push credential is for one image
definition and 12 hours, a pull credential for one trusted repository and minutes. The *realm*
(:meth:`RegistryTokens.token_response`) trades it for a bearer token (JWT, ES256) that the registry verifies against our
certificate. The format is that of distribution 2.8's ``auth.token``: ``x5c`` holds the DER certificate in base64,
``aud`` is one string, scopes are per repository.
"""

from __future__ import annotations

import base64
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import jwt

from mhs_ray.domain.errors import ForbiddenError, InvalidInputError, UnauthenticatedError
from mhs_ray.registry.keys import RegistryKeys

USERNAME: Final = "AWS"
"""The user name of every login, as the contract's ``docker login`` command has it."""

TOKEN_LIFE: Final = timedelta(minutes=5)
PUSH_LIFE: Final = timedelta(hours=12)
PULL_LIFE: Final = timedelta(hours=2)  # engines log in anew for each late layer
_AUDIENCE: Final = "mhs-registry"
_LEEWAY: Final = timedelta(seconds=60)
_TYPE: Final = re.compile(r"(?P<type>[a-z0-9]+)(?:\((?P<cls>[a-z0-9]*)\))?")
_ACTIONS: Final = re.compile(r"(?:[a-z]+|\*)(?:,(?:[a-z]+|\*))*")
_MAX_SCOPES: Final = 20


def quarantine_repository(image_id: int) -> str:
    """Return the one repository that an image definition's owner may push to."""
    return f"quarantine/{image_id}"


def trusted_repository(image_id: int) -> str:
    """Return the repository of a definition's promoted versions; only the platform writes there."""
    return f"trusted/{image_id}"


@dataclass(frozen=True, slots=True)
class Access:
    """Actions on one resource, as the registry's protocol names them. cls: resource class, "" for plain images."""

    name: str
    actions: tuple[str, ...]
    type: str = "repository"
    cls: str = ""


def parse_scopes(scopes: Iterable[str]) -> list[Access]:
    """Return what a client asks for; one item may hold several scopes, parted by spaces.

    ``repository:HOST:PORT/NAME:push,pull`` is split at the first and the last colon. Raises InvalidInputError.
    """
    asked = [part for scope in scopes for part in scope.split(" ") if part]
    if len(asked) > _MAX_SCOPES:
        raise InvalidInputError.at("$.scope", f"{len(asked)} scopes in one request; at most {_MAX_SCOPES} are taken")
    return [_parse_scope(part) for part in asked]


def _parse_scope(text: str) -> Access:
    kind, _, rest = text.partition(":")
    name, _, actions = rest.rpartition(":")
    match = _TYPE.fullmatch(kind)
    if not match or not name or not _ACTIONS.fullmatch(actions):
        raise InvalidInputError.at("$.scope", f"{text[:100]!r} is no scope such as repository:quarantine/7:push,pull")
    return Access(name, tuple(dict.fromkeys(actions.split(","))), match["type"], match["cls"] or "")


@dataclass(frozen=True, slots=True)
class PushCredential:
    """Proves the right to push to one image definition until `expires_at`."""

    image_id: int
    company_id: int
    expires_at: datetime

    @property
    def subject(self) -> str:
        """Name this credential in tokens and the registry's notifications."""
        return f"company-{self.company_id}/image-{self.image_id}"


@dataclass(frozen=True, slots=True)
class PullCredential:
    """Proves the right to pull from one trusted repository until `expires_at`."""

    repository: str
    expires_at: datetime

    @property
    def subject(self) -> str:
        """Name this credential in tokens and the registry's notifications."""
        return "node"


Credential = PushCredential | PullCredential


def grant(credential: Credential, requested: Sequence[Access]) -> list[Access]:
    """Return what of `requested` the credential gives; pure.

    A push credential gives pull and push on its definition's quarantine repository and nothing else: never ``delete``,
    and no other repository's ``pull``, so that ``mount=…&from=OTHER`` fails. A pull credential gives pull on its own.
    """
    if isinstance(credential, PushCredential):
        repository, allowed = quarantine_repository(credential.image_id), {"pull", "push"}
    else:
        repository, allowed = credential.repository, {"pull"}
    granted = []
    for access in requested:
        actions = tuple(action for action in access.actions if action in allowed)
        if access.type == "repository" and access.cls in {"", "image"} and access.name == repository and actions:
            granted.append(Access(repository, actions))
    return granted


class RegistryTokens:
    """Issues and verifies everything that opens the registry.

    issuer, service: must be the ones in the registry's configuration.
    may_push: asked at each login whether (image_id, company_id) is still a definition of that company, and may raise
    what stands against a push now, such as OverloadedError; None: nothing does.
    """

    def __init__(
        self, keys: RegistryKeys, issuer: str, service: str, may_push: Callable[[int, int], bool] | None = None
    ) -> None:
        self._keys, self.issuer, self.service, self._may_push = keys, issuer, service, may_push

    def issue(self, subject: str, access: Sequence[Access], ttl: timedelta = TOKEN_LIFE) -> str:
        """Return a bearer token for the registry that gives exactly `access`."""
        now = datetime.now(UTC)
        claims = {
            "iss": self.issuer,
            "sub": subject,
            "aud": self.service,
            "nbf": now - _LEEWAY,
            "iat": now,
            "exp": now + ttl,
            "jti": secrets.token_urlsafe(12),
            "access": [{"type": a.type, "name": a.name, "actions": list(a.actions)} for a in access],
        }
        x5c = base64.b64encode(self._keys.certificate_der).decode()
        return jwt.encode(claims, self._keys.private_key, algorithm="ES256", headers={"x5c": [x5c]})

    def push_credential(self, image_id: int, company_id: int, expires_at: datetime) -> str:
        """Return the password with which a lab's user pushes to this one image definition."""
        claims = {"kind": "push", "image": image_id, "company": company_id}
        return self._sign(claims, expires_at)

    def node_token(self, repository: str, life: timedelta = PULL_LIFE) -> str:
        """Return the password with which a node pulls from this one trusted repository."""
        if not repository.startswith("trusted/"):
            raise ForbiddenError(f"nodes pull trusted images only, and {repository!r} is none")
        return self._sign({"kind": "pull", "repository": repository}, datetime.now(UTC) + life)

    def verify_push_credential(self, password: str) -> PushCredential:
        """Return what a push credential stands for. Raises UnauthenticatedError."""
        credential = self.verify(password)
        if not isinstance(credential, PushCredential):
            raise UnauthenticatedError("this password is not for pushing; take the one from Docker Push Instructions")
        return credential

    def verify(self, password: str) -> Credential:
        """Return what a password that we handed out stands for. Raises UnauthenticatedError, never repeating it."""
        try:
            claims = jwt.decode(
                password, self._keys.credential_secret, algorithms=["HS256"], audience=_AUDIENCE, issuer=self.issuer,
                leeway=_LEEWAY, options={"require": ["exp", "aud", "iss"]},
            )  # fmt: skip
            expires_at = datetime.fromtimestamp(claims["exp"], UTC)
            if claims["kind"] == "push":
                return PushCredential(int(claims["image"]), int(claims["company"]), expires_at)
            return PullCredential(str(claims["repository"]), expires_at)
        except jwt.ExpiredSignatureError:
            raise UnauthenticatedError(
                "this password has expired; take a new one from Docker Push Instructions and log in again"
            ) from None
        except (jwt.PyJWTError, KeyError, ValueError, TypeError):
            raise UnauthenticatedError(
                "this is not a password of this registry; copy the login command from Docker Push Instructions"
            ) from None

    def token_response(
        self, basic_user: str | None, basic_password: str | None, service: str | None, scopes: Iterable[str]
    ) -> dict[str, Any]:
        """Answer a client of the realm: the JSON body of a 200.

        No scope at all is a ``docker login``: the token then gives nothing. Of several scopes those that the credential
        does not give are left out, since docker asks for a mount's source along with its target and goes on without it.
        Raises UnauthenticatedError (401), ForbiddenError (403) when nothing of what was asked is given,
        InvalidInputError (400); :func:`error_body` is what clients read of them.
        """
        if not basic_password or basic_user != USERNAME:
            raise UnauthenticatedError(f"log in as user {USERNAME} with the password from Docker Push Instructions")
        if service and service != self.service:
            raise ForbiddenError(f"tokens are given for the service {self.service} only")
        credential = self.verify(basic_password)
        requested = parse_scopes(scopes)
        if isinstance(credential, PushCredential):
            self._check_still_owned(credential)
        access = grant(credential, requested)
        if requested and not access:
            raise ForbiddenError(_refusal(credential, requested))
        token = self.issue(credential.subject, access)
        return {
            "token": token,
            "access_token": token,
            "expires_in": int(TOKEN_LIFE.total_seconds()),
            "issued_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }

    def _check_still_owned(self, credential: PushCredential) -> None:
        if self._may_push is not None and not self._may_push(credential.image_id, credential.company_id):
            raise ForbiddenError(f"image {credential.image_id} is no longer there to push to; create a new image")

    def _sign(self, claims: dict[str, Any], expires_at: datetime) -> str:
        common = {"iss": self.issuer, "aud": _AUDIENCE, "iat": datetime.now(UTC), "exp": expires_at}
        return jwt.encode({**claims, **common}, self._keys.credential_secret, algorithm="HS256")


def _refusal(credential: Credential, requested: Sequence[Access]) -> str:
    asked = " and ".join(f"{','.join(a.actions)} on {a.name}" for a in requested)
    if isinstance(credential, PushCredential):
        own = quarantine_repository(credential.image_id)
        return (
            f"the password you logged in with is for pushing to {own} only, not for {asked}; "
            "run the login command from that image's own Docker Push Instructions first"
        )
    return f"a node may only pull from {credential.repository}, not {asked}"


def error_body(error: Exception) -> dict[str, Any]:
    """Return the OCI error document for a realm's failure; docker prints its message to the person who pushes."""
    code = "UNAUTHORIZED" if isinstance(error, UnauthenticatedError) else "DENIED"
    if isinstance(error, InvalidInputError):
        code = "UNSUPPORTED"
    return {"errors": [{"code": code, "message": str(error), "detail": None}]}

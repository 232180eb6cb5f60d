"""Our own tokens: HS256 JWTs for API sessions and for attempts, told apart by their audience.

Keys rotate: the newest signs, named by ``kid``; older ones still verify until they are removed from the key file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import jwt

from mhs_ray.domain.errors import UnauthenticatedError
from mhs_ray.domain.models import Principal, Role

ISSUER: Final = "mhs-ray"
API: Final = "mhs-api"
ATTEMPT: Final = "mhs-attempt"
SESSION: Final = "mhs-session"
LEEWAY: Final = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class AttemptIdentity:
    """A model container in one attempt: it may post results of its task, and nothing else."""

    company_id: int
    task_number: int
    job_id: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Session:
    """A browser that signed in: no rights of its own, the clients are looked up at each request.

    clients: ids of the API clients it signed in with, `active` the index of the one it works as. form_key: what a
    write must bring along from the page. expires_at: None until it is signed.
    """

    clients: tuple[str, ...]
    active: int
    form_key: str
    expires_at: datetime | None = None

    @property
    def client_id(self) -> str:
        """The client that this browser works as."""
        return self.clients[self.active]


class Tokens:
    """Signs and verifies. keys: kid → secret of 32 bytes or more, oldest first."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        self._keys = dict(keys)
        self._current = list(self._keys)[-1]

    def for_attempt(self, who: AttemptIdentity, life: timedelta) -> str:
        """Return the JWT_TOKEN of a container; the gateway also asks whether the attempt still lives."""
        claims = {"company": who.company_id, "task": who.task_number, "job": who.job_id, "attempt": who.attempt}
        return self._sign(ATTEMPT, f"job-{who.job_id}-{who.attempt}", life, claims)

    def for_client(self, who: Principal, life: timedelta) -> str:
        """Return the access token that ``POST /api/v3/token`` trades a client's id and secret for."""
        claims = {"company": who.company_id, "name": who.name, "role": who.role.value}
        return self._sign(API, who.client_id, life, claims)

    def for_session(self, session: Session, life: timedelta) -> str:
        """Return the value of a console's cookie; it is good for the console only, never as a bearer token."""
        claims = {"clients": list(session.clients), "active": session.active, "form_key": session.form_key}
        return self._sign(SESSION, session.client_id, life, claims)

    def verify_session(self, token: str) -> Session:
        """Return the session of a console's cookie. Raises UnauthenticatedError."""
        claims = self._claims(token, [SESSION])
        clients, active = tuple(claims["clients"]), int(claims["active"])
        return Session(clients, active, claims["form_key"], datetime.fromtimestamp(claims["exp"], UTC))

    def verify(self, token: str) -> AttemptIdentity | Principal:
        """Return who holds `token`. Raises UnauthenticatedError that says what is wrong with it."""
        claims = self._claims(token, [API, ATTEMPT])
        if claims["aud"] == ATTEMPT:
            return AttemptIdentity(claims["company"], claims["task"], claims["job"], claims["attempt"])
        return Principal(claims["company"], claims["name"], Role(claims["role"]), claims["sub"])

    def _claims(self, token: str, audiences: list[str]) -> dict[str, Any]:
        try:
            kid = str(jwt.get_unverified_header(token).get("kid"))
            key = self._keys.get(kid)
            if key is None:
                raise UnauthenticatedError("this token was not issued here, or its key has been retired; get a new one")
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=["HS256"],
                audience=audiences,
                issuer=ISSUER,
                leeway=LEEWAY,
                options={"require": ["exp", "iat", "sub", "aud", "iss"]},
            )
        except jwt.ExpiredSignatureError:
            raise UnauthenticatedError("the token has expired; get a new one") from None
        except jwt.InvalidTokenError:
            raise UnauthenticatedError("the bearer token is malformed or was not issued here") from None
        return claims

    def _sign(self, audience: str, subject: str, life: timedelta, claims: Mapping[str, Any]) -> str:
        now = datetime.now(UTC)
        payload = {**claims, "iss": ISSUER, "aud": audience, "sub": subject, "iat": now, "exp": now + life}
        return jwt.encode(payload, self._keys[self._current], algorithm="HS256", headers={"kid": self._current})

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
LEEWAY: Final = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class AttemptIdentity:
    """A model container in one attempt: it may post results of its task, and nothing else."""

    company_id: int
    task_number: int
    job_id: int
    attempt: int


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

    def verify(self, token: str) -> AttemptIdentity | Principal:
        """Return who holds `token`. Raises UnauthenticatedError that says what is wrong with it."""
        try:
            kid = str(jwt.get_unverified_header(token).get("kid"))
            key = self._keys.get(kid)
            if key is None:
                raise UnauthenticatedError("this token was not issued here, or its key has been retired; get a new one")
            claims = jwt.decode(
                token,
                key,
                algorithms=["HS256"],
                audience=[API, ATTEMPT],
                issuer=ISSUER,
                leeway=LEEWAY,
                options={"require": ["exp", "iat", "sub", "aud", "iss"]},
            )
        except jwt.ExpiredSignatureError:
            raise UnauthenticatedError("the token has expired; get a new one") from None
        except jwt.InvalidTokenError:
            raise UnauthenticatedError("the bearer token is malformed or was not issued here") from None
        if claims["aud"] == ATTEMPT:
            return AttemptIdentity(claims["company"], claims["task"], claims["job"], claims["attempt"])
        return Principal(claims["company"], claims["name"], Role(claims["role"]), claims["sub"])

    def _sign(self, audience: str, subject: str, life: timedelta, claims: Mapping[str, Any]) -> str:
        now = datetime.now(UTC)
        payload = {**claims, "iss": ISSUER, "aud": audience, "sub": subject, "iat": now, "exp": now + life}
        return jwt.encode(payload, self._keys[self._current], algorithm="HS256", headers={"kid": self._current})

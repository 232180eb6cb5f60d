"""API clients: an id and a secret that is shown once and kept as an argon2 hash."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import threading
import time
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from mhs_ray.auth.buckets import Buckets
from mhs_ray.domain.errors import ForbiddenError, RateLimitedError, UnauthenticatedError
from mhs_ray.domain.models import Principal
from mhs_ray.store.sql.clients import Clients

_HASHER: Final = PasswordHasher()
_REMEMBER_S: Final = 60.0  # how long a revocation, a new role or a new secret may lag
_MAX_REMEMBERED: Final = 10_000
_WRONG_RATE: Final = 0.2  # wrong secrets a second for one id, after the first few
_WRONG_BURST: Final = 10
_WRONG: Final = "the client id or the client secret is wrong, or the client was revoked"


def enabled(who: Principal) -> Principal:
    """Return `who`. Raises ForbiddenError when the feature is switched off for its company."""
    if not who.enabled:
        raise ForbiddenError("the Model Hosting Service is switched off for your company; an operator can switch it on")
    return who


def hash_secret(secret: str) -> str:
    """Return the argon2 hash that is kept of a secret."""
    return _HASHER.hash(secret)


def new_client() -> tuple[str, str, str]:
    """Return (id, secret, hash of the secret) of a fresh client."""
    secret = secrets.token_urlsafe(32)
    return f"mhs-{secrets.token_hex(8)}", secret, _HASHER.hash(secret)


class ClientVerifier:
    """Checks id and secret. argon2 is slow by design, so a good answer is remembered for a minute as a keyed digest."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._pepper = os.urandom(32)
        self._known: dict[str, tuple[bytes, float, Principal]] = {}
        self._alive: dict[str, tuple[float, Principal]] = {}
        self._lock = threading.Lock()
        self._wrong = Buckets(_WRONG_RATE, _WRONG_BURST)

    def forget(self, client_id: str) -> None:
        """Look this client up anew at its next call, here; other replicas do within a minute."""
        with self._lock:
            self._known.pop(client_id, None)
            self._alive.pop(client_id, None)

    def remembered(self, client_id: str, secret: str) -> Principal | None:
        """Return who this is if it was verified a moment ago; never blocks."""
        known = self._known.get(client_id)
        if known and known[1] > time.monotonic() and hmac.compare_digest(known[0], self._digest(client_id, secret)):
            return known[2]
        return None

    def _digest(self, client_id: str, secret: str) -> bytes:
        return hmac.digest(self._pepper, f"{client_id}\0{secret}".encode(), hashlib.sha256)

    def verify(self, client_id: str, secret: str) -> Principal:
        """Return who this is.

        Raises UnauthenticatedError, the same for every cause; ForbiddenError for a client that proved who it is but
        whose company is switched off; RateLimitedError after too many wrong secrets for one id.
        """
        if "\x00" in client_id:
            raise UnauthenticatedError(_WRONG)
        known = self.remembered(client_id, secret)
        if known is not None:
            return known
        wait_s = self._wrong.wait_s(client_id)
        if wait_s:
            raise RateLimitedError("too many wrong secrets for this client id; wait before the next try", wait_s)
        found = self._clients.lookup(client_id)
        if found is None:  # ids are random, so that nothing is given away by answering sooner
            raise UnauthenticatedError(_WRONG)
        try:
            _HASHER.verify(found[1], secret)
        except (VerificationError, InvalidHashError):
            self._wrong.take(client_id)
            raise UnauthenticatedError(_WRONG) from None
        principal = enabled(found[0])
        self._clients.used(client_id)
        with self._lock:
            if len(self._known) > _MAX_REMEMBERED:
                self._known.clear()
            self._known[client_id] = (self._digest(client_id, secret), time.monotonic() + _REMEMBER_S, principal)
        return principal

    def current(self, client_id: str) -> Principal:
        """Return what a client that holds a token of ours is now: its role may have changed since it was issued.

        Raises UnauthenticatedError when it was revoked, ForbiddenError when its company is switched off.
        """
        known = self._alive.get(client_id)
        if known and known[0] > time.monotonic():
            return known[1]
        found = self._clients.lookup(client_id)
        if found is None:
            raise UnauthenticatedError("the client that this token was issued to was revoked")
        enabled(found[0])
        with self._lock:
            if len(self._alive) > _MAX_REMEMBERED:
                self._alive.clear()
            self._alive[client_id] = (time.monotonic() + _REMEMBER_S, found[0])
        return found[0]

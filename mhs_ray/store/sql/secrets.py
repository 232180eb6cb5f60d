"""Sealing of secret columns: Fernet (AES-128-CBC + HMAC-SHA256) with keys that rotate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from mhs_ray.domain.errors import MhsError


class Vault:
    """Seals JSON values. The first key seals; all of them open."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._fernet = MultiFernet([Fernet(key) for key in keys])

    def seal(self, value: Any) -> bytes:
        """Return `value` (anything JSON holds) encrypted."""
        return self._fernet.encrypt(json.dumps(value, separators=(",", ":")).encode())

    def open(self, sealed: bytes) -> Any:
        """Return what was sealed. Raises MhsError when no key fits."""
        try:
            return json.loads(self._fernet.decrypt(bytes(sealed)))
        except InvalidToken:
            raise MhsError(
                "a stored secret cannot be opened: the key file is not the one it was sealed with; restore keys/vault"
            ) from None

    @staticmethod
    def new_key() -> bytes:
        """Return a fresh key."""
        return Fernet.generate_key()

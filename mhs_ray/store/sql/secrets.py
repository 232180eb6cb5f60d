"""Sealing of secret columns: Fernet (AES-128-CBC + HMAC-SHA256) with keys that rotate."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Sequence
from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from mhs_ray.domain.errors import MhsError


class Vault:
    """Seals JSON values. The first key seals; all of them open."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._fernet = MultiFernet([Fernet(key) for key in keys])
        self._marks = hashlib.sha256(b"marks" + keys[0]).digest()

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

    def mark(self, value: Any) -> str:
        """Return a name for `value` (anything JSON holds) that tells nothing of it and is the same for the same one."""
        text = json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
        return hmac.new(self._marks, text, hashlib.sha256).hexdigest()

    @staticmethod
    def new_key() -> bytes:
        """Return a fresh key."""
        return Fernet.generate_key()

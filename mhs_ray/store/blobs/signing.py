"""Signed URLs of a local blob store: HMAC-SHA256 over method, key, expiry and file name, with keys that rotate.

A URL names the version of the key that signed it. To rotate, add a version and make it `current`; drop the
old one once the last URL it signed has expired (at most seven days later).
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qs, quote, urlencode

PATH_PREFIX: Final = "/blobs/"
"""Where blobs live below a server's base URL."""
_EXPIRES, _METHOD, _FILENAME, _VERSION, _SIGNATURE = (
    "X-Mhs-Expires",
    "X-Mhs-Method",
    "X-Mhs-Filename",
    "X-Mhs-Key",
    "X-Mhs-Signature",
)
MIN_SECRET_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class SigningKeys:
    """Secrets by version, and the version that signs from now on."""

    current: str
    secrets: Mapping[str, bytes] = field(repr=False)

    def __post_init__(self) -> None:
        if self.current not in self.secrets:
            raise ValueError(f"the current signing key {self.current!r} is not among the versions given")
        short = sorted(v for v, secret in self.secrets.items() if len(secret) < MIN_SECRET_BYTES)
        if short:
            raise ValueError(f"signing key {short[0]!r} is shorter than {MIN_SECRET_BYTES} bytes")


@dataclass(frozen=True, slots=True)
class Grant:
    """What a good signature allows: `method` (GET or PUT) on `key`, and under which name a browser saves it."""

    method: str
    key: str
    filename: str | None


class SignatureError(Exception):
    """A URL that gives no right; `code` as S3 names it, the message fit for whoever holds the URL."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code, self.message = code, message


def _mac(secret: bytes, version: str, method: str, key: str, expires: int, filename: str | None) -> str:
    # JSON, since joining by a separator would let one field run into the next.
    text = json.dumps(["mhs-blob-1", version, method, key, expires, filename])
    return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()


def signed_path(keys: SigningKeys, method: str, key: str, expires: int, filename: str | None) -> str:
    """Return path and query that grant `method` on `key` until the Unix time `expires`."""
    query = {_EXPIRES: str(expires), _METHOD: method, _VERSION: keys.current}
    if filename is not None:
        query[_FILENAME] = filename
    query[_SIGNATURE] = _mac(keys.secrets[keys.current], keys.current, method, key, expires, filename)
    return f"{PATH_PREFIX}{quote(key)}?{urlencode(query)}"


def verify(keys: SigningKeys, path: str, query: str, now: float) -> Grant:
    """Return what the URL grants. path: percent-decoded. Raises SignatureError when forged or expired.

    The signature is checked before the time: only who holds a real URL learns that it has expired.
    """
    fields = parse_qs(query, keep_blank_values=True, max_num_fields=20)
    if any(len(values) > 1 for values in fields.values()):
        raise SignatureError("SignatureDoesNotMatch", "A query parameter is given twice.")
    one = {name: values[0] for name, values in fields.items()}
    if _SIGNATURE not in one:
        raise SignatureError("AccessDenied", "The URL is not signed.")
    method, version, filename = one.get(_METHOD, ""), one.get(_VERSION, ""), one.get(_FILENAME)
    expires_text, key = one.get(_EXPIRES, ""), path.removeprefix(PATH_PREFIX)
    expires = int(expires_text) if expires_text.isascii() and expires_text.isdigit() and len(expires_text) < 16 else -1
    secret = keys.secrets.get(version)
    if (
        secret is None
        or not path.startswith(PATH_PREFIX)
        or str(expires) != expires_text
        or not hmac.compare_digest(
            _mac(secret, version, method, key, expires, filename).encode(), one[_SIGNATURE].encode()
        )
    ):
        raise SignatureError("SignatureDoesNotMatch", "The signature does not fit this URL.")
    if now >= expires:
        raise SignatureError("AccessDenied", "Request has expired; ask for a new URL.")
    return Grant(method, key, filename)

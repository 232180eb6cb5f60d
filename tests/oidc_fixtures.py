"""An OpenID provider on loopback: real keys, real signatures, the authorization code flow with PKCE."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

CLIENT_ID, CLIENT_SECRET = "console", "oidc-client-s3cret"


@dataclass
class OpenIdProvider:
    """keys: kid → private key, all of them published. claims: of whoever signs in next."""

    url: str = ""
    keys: dict[str, Any] = field(default_factory=dict)
    claims: dict[str, Any] = field(default_factory=dict)
    down: bool = False
    asked_for_keys: int = 0
    codes: dict[str, dict[str, str]] = field(default_factory=dict)

    def add_key(self, kid: str, algorithm: str = "RS256") -> None:
        """Publish one more key."""
        self.keys[kid] = (
            rsa.generate_private_key(65537, 2048) if algorithm == "RS256" else ec.generate_private_key(ec.SECP256R1())
        )

    def token(self, kid: str, algorithm: str = "RS256", **claims: Any) -> str:
        """Return a signed token; claims replace the usual ones, and None leaves one out."""
        now = int(time.time())
        usual = {"iss": self.url, "sub": "user-1", "aud": "mhs", "iat": now, "exp": now + 600, **self.claims, **claims}
        payload = {k: v for k, v in usual.items() if v is not None}
        return jwt.encode(payload, self.keys[kid], algorithm=algorithm, headers={"kid": kid})

    def key_set(self) -> dict[str, Any]:
        """Return the JWKS document."""
        found = []
        for kid, key in self.keys.items():
            algorithm = (
                jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
            )
            found.append({**json.loads(algorithm.to_jwk(key.public_key())), "kid": kid, "use": "sig"})
        return {"keys": found}


@contextmanager
def open_id_provider() -> Iterator[OpenIdProvider]:
    """Run a provider with one RSA key, ``k1``, for as long as the block lasts."""
    provider = OpenIdProvider()
    provider.add_key("k1")

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def _json(self, status: int, body: Any) -> None:
            raw = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            if provider.down:
                self._json(503, {})
            elif parts.path == "/.well-known/openid-configuration":
                self._json(200, {
                    "issuer": provider.url, "jwks_uri": f"{provider.url}/keys",
                    "authorization_endpoint": f"{provider.url}/authorize", "token_endpoint": f"{provider.url}/token",
                })  # fmt: skip
            elif parts.path == "/keys":
                provider.asked_for_keys += 1
                self._json(200, provider.key_set())
            elif parts.path == "/authorize":  # whoever asks is signed in already
                asked = {k: v[0] for k, v in parse_qs(parts.query).items()}
                code = secrets.token_urlsafe(8)
                provider.codes[code] = asked
                back = f"{asked['redirect_uri']}?{urlencode({'code': code, 'state': asked['state']})}"
                self.send_response(302)
                self.send_header("Location", back)
                self.end_headers()
            else:
                self._json(404, {})

        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            given = {k: v[0] for k, v in form.items()}
            asked = provider.codes.pop(given.get("code", ""), None)
            challenge = base64.urlsafe_b64encode(hashlib.sha256(given.get("code_verifier", "").encode()).digest())
            good = (
                asked is not None and challenge.decode().rstrip("=") == asked["code_challenge"]
                and given["redirect_uri"] == asked["redirect_uri"]
                and (given["client_id"], given.get("client_secret")) == (CLIENT_ID, CLIENT_SECRET)
            )  # fmt: skip
            if not good or asked is None:
                self._json(400, {"error": "invalid_grant"})
                return
            self._json(200, {"id_token": provider.token("k1", aud=CLIENT_ID, nonce=asked["nonce"])})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    provider.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield provider
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

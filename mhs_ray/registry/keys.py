"""The registry's secrets: signing key, certificate and the secret of the passwords, in files of mode 0600."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mhs_ray.domain.errors import RegistryError

_CERTIFICATE_LIFE: Final = timedelta(days=3650)
_RENEW_BEFORE: Final = timedelta(days=60)


@dataclass(frozen=True, slots=True)
class RegistryKeys:
    """What signs bearer tokens (ES256, trusted by the registry through its certificate) and passwords (HS256)."""

    private_key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate_pem: bytes
    credential_secret: bytes = field(repr=False)

    @property
    def certificate_der(self) -> bytes:
        """Return the certificate as a token's ``x5c`` header carries it (before base64)."""
        return x509.load_pem_x509_certificate(self.certificate_pem).public_bytes(serialization.Encoding.DER)

    @classmethod
    def create(cls) -> RegistryKeys:
        """Make a new P-256 key, its self-signed certificate and a new secret."""
        key = ec.generate_private_key(ec.SECP256R1())
        return cls(key, _self_sign(key), secrets.token_bytes(32))

    @classmethod
    def load_or_create(cls, folder: Path) -> RegistryKeys:
        """Return the keys kept in `folder`, made on first use; a certificate near its end is made anew.

        Files: ``token.key``, ``token.crt`` (what the registry's configuration names), ``credential.secret``.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            key_pem = _read_or_make(folder / "token.key", _new_key_pem)
            key = serialization.load_pem_private_key(key_pem, None)
            if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
                raise RegistryError(f"{folder / 'token.key'} is no P-256 key; remove it and a new one is made")
            certificate = _read_or_make(folder / "token.crt", lambda: _self_sign(key))
            if not _is_good(certificate, key):
                certificate = _self_sign(key)
                write_secret(folder / "token.crt", certificate)
            secret = _read_or_make(folder / "credential.secret", lambda: secrets.token_hex(32).encode())
        except (OSError, ValueError) as error:
            raise RegistryError(f"the registry's keys in {folder} cannot be read or made: {error}") from error
        return cls(key, certificate, secret)


def write_secret(path: Path, data: bytes) -> None:
    """Write `data` so that only we can read it, atomically: a reader sees the old file or the whole new one."""
    part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _read_or_make(path: Path, make: Callable[[], bytes]) -> bytes:
    """Return the file's bytes; of two processes that start together one makes it and both read the same."""
    if not path.exists():
        part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
        write_secret(part, make())
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(part)
        part.unlink()
    return path.read_bytes()


def _new_key_pem() -> bytes:
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _self_sign(key: ec.EllipticCurvePrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mhs-ray registry tokens")])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # a registry whose clock is behind
        .not_valid_after(now + _CERTIFICATE_LIFE)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


def _is_good(pem: bytes, key: ec.EllipticCurvePrivateKey) -> bool:
    certificate = x509.load_pem_x509_certificate(pem)
    fresh = certificate.not_valid_after_utc - datetime.now(UTC) > _RENEW_BEFORE
    return fresh and certificate.public_key() == key.public_key()

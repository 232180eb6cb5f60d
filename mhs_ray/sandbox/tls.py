"""A private certificate authority that lives as long as one attempt and can vouch for its hosts only."""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import certifi
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mhs_ray.domain.errors import SandboxError
from mhs_ray.sandbox.state import write_private

SYSTEM_ROOTS: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, Amazon Linux
    "/etc/ssl/ca-bundle.pem",  # SUSE
)
_LIFETIME: Final = timedelta(days=7)  # far above any time limit; the key is destroyed with the attempt anyway
_SKEW: Final = timedelta(days=1)
_EVERY_IP: Final = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))


class AttemptCa:
    """CA certificate and key (EC P-256), kept 0600 in a private folder so that a restarted process is still trusted."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate, self._key = certificate, key

    @classmethod
    def open(cls, private: Path, hosts: Sequence[str]) -> AttemptCa:
        """Load the CA kept in `private`, or make one there that may sign for `hosts` and nothing else."""
        path = private / "ca.pem"
        if not path.exists():
            write_private(path, cls._create(hosts))
        try:
            pem = path.read_bytes()
            key = serialization.load_pem_private_key(pem, None)
            certificate = x509.load_pem_x509_certificate(pem)
        except ValueError as e:
            raise SandboxError("the attempt's kept CA cannot be read; remove the attempt's sandbox and retry") from e
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise SandboxError("the attempt's kept CA has a foreign key; remove the attempt's sandbox and retry")
        return cls(certificate, key)

    @staticmethod
    def _create(hosts: Sequence[str]) -> bytes:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mhs-ray attempt CA")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _SKEW)
            .not_valid_after(now + _LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.NameConstraints([x509.DNSName(h) for h in hosts], [x509.IPAddress(n) for n in _EVERY_IP]),
                critical=True,
            )
            .sign(key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM) + _pem(key)

    @property
    def certificate_pem(self) -> bytes:
        """The CA's certificate, which the container has to trust."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def leaf(self, hosts: Sequence[str]) -> bytes:
        """Return PEM of a new server certificate for `hosts` and its key, as OpenSSL's strict mode wants it."""
        key = ec.generate_private_key(ec.SECP256R1())
        authority = self._key.public_key()
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mhs-ray")]))
            .issuer_name(self._certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._certificate.not_valid_before_utc)
            .not_valid_after(self._certificate.not_valid_after_utc)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(h) for h in hosts]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM) + _pem(key)

    def server_context(self, hosts: Sequence[str]) -> ssl.SSLContext:
        """Return a TLS server context with a fresh certificate for `hosts`; its key never touches a disk."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        # OpenSSL loads a key from a path only; a memory file has one.
        fd = os.memfd_create("leaf", os.MFD_CLOEXEC)
        try:
            os.write(fd, self.leaf(hosts))
            context.load_cert_chain(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
        return context


def system_roots() -> Path:
    """Return the bundle of roots that this node trusts, certifi's where it has none."""
    found = (Path(path) for path in SYSTEM_ROOTS)
    return next((path for path in found if path.is_file() and path.stat().st_size > 0), Path(certifi.where()))


def trust_bundle(ca: AttemptCa, roots: Path | None = None) -> bytes:
    """Return one PEM bundle: `roots` (the node's own if not given) and the attempt's CA."""
    return (roots or system_roots()).read_bytes().rstrip(b"\n") + b"\n" + ca.certificate_pem


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )

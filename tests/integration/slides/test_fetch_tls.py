"""The connection goes to an address that was judged, yet the certificate is still checked against the name."""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mhs_ray.domain.errors import SlideFetchError
from mhs_ray.slides.fetch import FetchLimits, fetch
from mhs_ray.slides.url_guard import UrlPolicy

QUICK = FetchLimits(stall_s=2, connect_s=2, backoff_s=0.01, retries=0)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "slides.example")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("slides.example")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "cert.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def names_lead_here(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *a, **k: real("127.0.0.1" if host.endswith(".example") else host, *a, **k)
    )


@pytest.mark.usefixtures("names_lead_here")
@pytest.mark.parametrize(("host", "good"), [("slides.example", True), ("other.example", False)])
def test_the_certificate_must_be_the_names(
    secure_storage: Any, certificate: Path, tmp_path: Path, host: str, good: bool
) -> None:
    storage = secure_storage(certificate)
    storage.put("/s", b"pixels" * 1000)
    url = f"https://{host}:{storage.port}/s?sig=SECRET"
    trusted = ssl.create_default_context(cafile=str(certificate))
    policy = UrlPolicy(allow_private=True)
    if good:
        assert fetch(url, tmp_path / "s", limits=QUICK, policy=policy, tls=trusted).size == 6000
        return
    with pytest.raises(SlideFetchError, match=r"certificate|CERTIFICATE") as error:
        fetch(url, tmp_path / "s", limits=QUICK, policy=policy, tls=trusted)
    assert error.value.reason == "unreachable"
    assert storage.requests == []


@pytest.mark.usefixtures("names_lead_here")
def test_a_certificate_nobody_trusts_is_refused_and_https_never_falls_back(
    secure_storage: Any, storage: Any, certificate: Path, tmp_path: Path
) -> None:
    secure = secure_storage(certificate)
    policy = UrlPolicy(allow_private=True)
    with pytest.raises(SlideFetchError):
        fetch(f"https://slides.example:{secure.port}/s", tmp_path / "s", limits=QUICK, policy=policy)
    plain = storage.put("/s", b"pixels")
    secure.answers["/r"] = lambda handler: handler.head(302, Location=plain, Content_Length=0)
    with pytest.raises(SlideFetchError, match="from https to") as error:
        fetch(
            f"https://slides.example:{secure.port}/r", tmp_path / "s", limits=QUICK, policy=policy,
            tls=ssl.create_default_context(cafile=str(certificate)),
        )  # fmt: skip
    assert error.value.reason == "refused"
    assert "SECRET" not in str(error.value)
    assert storage.requests == []

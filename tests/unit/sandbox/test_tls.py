import contextlib
import ssl
import stat
from pathlib import Path

import pytest

from mhs_ray.domain.errors import SandboxError
from mhs_ray.sandbox.tls import AttemptCa, trust_bundle

HOSTS = ["api.app.example.com", "files.mhs.internal"]


def shake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    """Do a TLS handshake in memory. Raises ssl.SSLError."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    a = client.wrap_bio(down, up, server_hostname=name)
    b = server.wrap_bio(up, down, server_side=True)
    for _ in range(4):
        for side in (a, b):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    assert a.getpeercert()


def strict_client(bundle: bytes, tmp_path: Path) -> ssl.SSLContext:
    path = tmp_path / "bundle.pem"
    path.write_bytes(bundle)
    context = ssl.create_default_context(cafile=str(path))
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN  # as Python 3.13 does
    return context


@pytest.mark.parametrize("host", HOSTS)
def test_a_strict_client_with_the_bundle_trusts_each_host(tmp_path: Path, host: str) -> None:
    ca = AttemptCa.open(tmp_path, HOSTS)
    shake(ca.server_context(HOSTS), strict_client(trust_bundle(ca), tmp_path), host)


@pytest.mark.parametrize("host", ["pypi.org", "app.example.com", "evil.mhs.example"])
def test_the_ca_cannot_vouch_for_another_host(tmp_path: Path, host: str) -> None:
    ca = AttemptCa.open(tmp_path, HOSTS)
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
        shake(ca.server_context([host]), strict_client(trust_bundle(ca), tmp_path), host)


def test_another_attempts_ca_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    ours, other = AttemptCa.open(tmp_path / "a", HOSTS), AttemptCa.open(tmp_path / "b", HOSTS)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(other.server_context(HOSTS), strict_client(trust_bundle(ours), tmp_path), HOSTS[0])


def test_a_kept_ca_is_the_same_after_a_restart_and_private(tmp_path: Path) -> None:
    first = AttemptCa.open(tmp_path, HOSTS)
    again = AttemptCa.open(tmp_path, HOSTS)
    assert again.certificate_pem == first.certificate_pem
    assert [stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()] == [0o600]
    shake(again.server_context(HOSTS), strict_client(trust_bundle(first), tmp_path), HOSTS[0])


def test_a_damaged_ca_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nonsense")
    with pytest.raises(SandboxError, match="remove the attempt's sandbox"):
        AttemptCa.open(tmp_path, HOSTS)


def test_the_bundle_holds_the_nodes_roots_and_the_ca_but_no_key(tmp_path: Path) -> None:
    roots = tmp_path / "roots.pem"
    roots.write_text("SOME ROOTS")
    ca = AttemptCa.open(tmp_path, HOSTS)
    bundle = trust_bundle(ca, roots)
    assert bundle == b"SOME ROOTS\n" + ca.certificate_pem
    assert b"PRIVATE" not in trust_bundle(ca)

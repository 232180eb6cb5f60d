from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from mhs_ray.domain.redact import redact_text, redact_url
from mhs_ray.slides.presigned import expires_at, refusal, stable_identity

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
V4 = (
    "https://bucket.s3.us-east-1.amazonaws.com/scans/7?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIA%2F20261123"
    "&X-Amz-Date=20261123T110000Z&X-Amz-Expires=600&X-Amz-SignedHeaders=host&X-Amz-Signature=deadbeef"
)


def xml(code: str, message: str) -> bytes:
    return f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'.encode()


def test_a_redacted_url_keeps_where_and_loses_the_signature() -> None:
    assert redact_url(V4) == "https://bucket.s3.us-east-1.amazonaws.com/scans/7?…"
    assert redact_url("https://user:secret@host:8443/a#frag") == "https://host:8443/a"
    assert "secret" not in redact_url("https://[::bad?secret")
    assert redact_text(f"GET {V4} failed") == "GET https://bucket.s3.us-east-1.amazonaws.com/scans/7?… failed"


@pytest.mark.parametrize(
    ("url", "end"),
    [
        (V4, datetime(2026, 11, 23, 11, 10, tzinfo=UTC)),
        ("https://h/x?AWSAccessKeyId=A&Expires=1790000000&Signature=S", datetime.fromtimestamp(1790000000, UTC)),
        ("https://h/x?se=2026-11-23T11%3A00%3A00Z&sig=S", datetime(2026, 11, 23, 11, 0, tzinfo=UTC)),
        ("https://h/x?X-Mhs-Expires=1790000000&X-Mhs-Signature=S", datetime.fromtimestamp(1790000000, UTC)),
        ("https://h/x?Expires=soon", None),
        ("https://h/x?Expires=99999999999999999999", None),
        ("https://h/x", None),
    ],
)
def test_a_presigned_url_says_when_it_ends(url: str, end: datetime | None) -> None:
    assert expires_at(url) == end


def test_two_signings_of_one_object_have_one_identity_and_two_versions_two() -> None:
    again = V4.replace("deadbeef", "cafe").replace("110000Z", "113000Z")
    assert stable_identity(V4) == stable_identity(again)
    assert stable_identity(V4 + "&versionId=1") != stable_identity(V4 + "&versionId=2")
    assert stable_identity("https://h/get?file=1&Signature=a") != stable_identity("https://h/get?file=2&Signature=a")


@pytest.mark.parametrize(
    ("status", "body", "url", "reason", "transient"),
    [
        (403, xml("AccessDenied", "Request has expired"), "https://h/x", "expired", False),
        (400, xml("ExpiredToken", "The provided token has expired."), "https://h/x", "expired", False),
        (403, b"", V4, "expired", False),
        (403, xml("SignatureDoesNotMatch", "no"), "https://h/x", "forbidden", False),
        (401, b"", "https://h/x", "forbidden", False),
        (404, xml("NoSuchKey", "no"), "https://h/x", "not-found", False),
        (410, b"", "https://h/x", "not-found", False),
        (503, xml("SlowDown", "Please reduce"), "https://h/x", "unreachable", True),
        (429, b"", "https://h/x", "unreachable", True),
        (400, b"what", "https://h/x", "refused", False),
    ],
)
def test_a_storages_refusal_has_its_own_reason(
    status: int, body: bytes, url: str, reason: str, transient: bool
) -> None:
    error = refusal(url, status, {}, body, NOW)
    assert (error.reason, error.transient) == (reason, transient)
    assert "Signature=" not in str(error)
    assert "deadbeef" not in str(error)


def test_a_storages_words_are_shown_without_the_urls_in_them() -> None:
    error = refusal("https://h/x", 403, {}, xml("AccessDenied", "for https://h/x?Signature=abc &amp; more"), NOW)
    assert "AccessDenied: for (URL) & more" in str(error)


def test_an_end_in_the_future_does_not_make_a_refusal_an_expiry() -> None:
    assert refusal(V4, 403, {}, b"", NOW - timedelta(hours=1)).reason == "forbidden"

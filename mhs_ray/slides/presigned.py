"""What a presigned URL says about itself, and what a storage's refusal means. Pure."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from mhs_ray.domain.errors import SlideFetchError
from mhs_ray.domain.redact import redact_url

_EXPIRED_CODES: Final = frozenset({"ExpiredToken", "TokenRefreshRequired", "ExpiredTokenException", "RequestExpired"})
_NOT_FOUND_CODES: Final = frozenset({"NoSuchKey", "NoSuchBucket", "NoSuchVersion", "BlobNotFound", "NotFound"})
_SIGNATURE: Final = re.compile(
    r"x-amz-.*|x-goog-.*|x-mhs-.*|awsaccesskeyid|googleaccessid|signature|expires|policy|key-pair-id|response-.*|"
    r"sig|se|sp|sv|sr|st|spr|sip|skoid|sktid|skt|ske|sks|skv",
    re.IGNORECASE,
)


def expires_at(url: str) -> datetime | None:
    """Return when a presigned URL ends (S3, CloudFront, Google, Azure, our own), None when it does not say."""
    try:
        query = {k.lower(): v for k, v in parse_qsl(urlsplit(url).query)}
        for prefix in ("x-amz", "x-goog"):
            if f"{prefix}-date" in query and f"{prefix}-expires" in query:
                signed = datetime.strptime(query[f"{prefix}-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
                return signed + timedelta(seconds=int(query[f"{prefix}-expires"]))
        for name in ("expires", "x-mhs-expires"):
            if name in query:
                return datetime.fromtimestamp(int(query[name]), UTC)
        if "se" in query and "sig" in query:
            return datetime.fromisoformat(query["se"]).astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return None


def stable_identity(url: str) -> str:
    """Return `url` without what changes from one signing to the next: what names the object, not the permission."""
    parts = urlsplit(url)
    kept = sorted((k, v) for k, v in parse_qsl(parts.query, keep_blank_values=True) if not _SIGNATURE.fullmatch(k))
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2].lower()}{parts.path}?{urlencode(kept)}"


def refusal(url: str, status: int, headers: Mapping[str, str], body: bytes, now: datetime) -> SlideFetchError:
    """Return the error for an answer that is neither 200 nor 206. body: its first bytes, S3's XML or anything."""
    shown = redact_url(url)
    code, message = _xml(body, "Code"), _xml(body, "Message")
    said = f" ({code}: {message})" if code else ""
    end = expires_at(url)
    if status in (400, 401, 403):
        if code in _EXPIRED_CODES or "has expired" in message or "time frame" in message or (end and end < now):
            when = f" at {end:%Y-%m-%d %H:%M:%S} UTC" if end else ""
            return SlideFetchError("expired", f"the slide's URL expired{when}: {shown}; submit the task again")
        if status != 400 or code:
            return SlideFetchError(
                "forbidden",
                f"the slide's storage answered {status}{said} to {shown}; check that the URL is complete and signed",
            )
    if status in (404, 410) or code in _NOT_FOUND_CODES:
        return SlideFetchError("not-found", f"there is no slide at {shown}: the storage answered {status}{said}")
    if status in (408, 425, 429) or status >= 500:
        return SlideFetchError("unreachable", f"the slide's storage answered {status}{said} to {shown}", True)
    return SlideFetchError("refused", f"the slide's storage answered {status}{said} to {shown}")


def _xml(body: bytes, tag: str) -> str:
    """S3's error body is flat, so no XML parser meets a stranger's bytes. Its words may quote the request: no URLs."""
    found = re.search(rf"<{tag}>([^<]{{1,300}})</{tag}>", body[:65536].decode("utf-8", "replace"))
    text = html.unescape(found.group(1)) if found else ""
    return re.sub(r"https?://\S+", "(URL)", "".join(c for c in text if c.isprintable()))

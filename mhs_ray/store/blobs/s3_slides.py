"""Slides in buckets that are not ours: which ones may be named, and URLs that nodes read them by."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mhs_ray.domain.errors import InvalidInputError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


class S3Slides:
    """allowed: ``bucket`` or ``bucket/prefix`` each; the platform's own role may well read more than people should."""

    def __init__(self, allowed: Sequence[str], endpoint: str | None, region: str) -> None:
        self._allowed = [entry.strip("/").partition("/") for entry in allowed]
        self._endpoint, self._region = endpoint, region
        self._lock = threading.Lock()
        self._client: S3Client | None = None

    def check(self, url: str) -> tuple[str, str]:
        """Return bucket and key of an ``s3://`` URL. Raises InvalidInputError where it may not be read here."""
        parts = urlsplit(url)
        bucket, key = parts.netloc, url.split("://", 1)[1].partition("/")[2]  # ? and # are part of a key
        if not bucket or not key or key.endswith("/"):
            raise InvalidInputError.at("slide", f"{url[:200]} names no object: s3://bucket/key")
        for known, slash, prefix in self._allowed:
            if bucket == known and (not slash or key.startswith(f"{prefix}/")):
                return bucket, key
        raise InvalidInputError.at(
            "slide", f"the bucket of {url[:200]} is not one that slides are taken from; an operator can allow it"
            " with MHS_SLIDES__S3_BUCKETS",
        )  # fmt: skip

    def sign(self, url: str, life: timedelta) -> str:
        """Return a URL of the object that works for `life`, or as long as the platform's own credentials do."""
        bucket, key = self.check(url)
        with self._lock:
            if self._client is None:
                self._client = _client(self._endpoint, self._region)
        signed: str = self._client.generate_presigned_url(
            "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=int(life.total_seconds())
        )
        return signed


def _client(endpoint: str | None, region: str) -> S3Client:
    import boto3  # takes long to import
    from botocore.config import Config

    config = Config(signature_version="s3v4", s3={"addressing_style": "path" if endpoint else "auto"})
    return boto3.session.Session(region_name=region).client("s3", endpoint_url=endpoint, config=config)

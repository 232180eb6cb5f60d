"""Blobs in an S3 bucket, Amazon's or another's that speaks S3."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal, Self, cast
from urllib.parse import quote

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError

from mhs_ray.domain.errors import BlobError, BlobNotFoundError
from mhs_ray.ports import BlobInfo
from mhs_ray.store.blobs.keys import check_expiry, check_range, split_key

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

_READ_BUFFER: Final = 256 << 10
_PART: Final = 16 << 20
"""10,000 parts, S3's most, make 156 GiB: more than any slide."""
_READ_TRIES: Final = 4
_NOT_FOUND: Final = frozenset({"404", "NoSuchKey", "NotFound"})


class S3Blobs:
    """BlobStore in a bucket, below `prefix`, which ends with ``/`` or is empty.

    presign_client: signs URLs, when those who get them reach the store under another address than we do. A URL
    signed with temporary credentials ends with them, however long it was asked to live.
    """

    def __init__(self, client: S3Client, bucket: str, prefix: str = "", presign_client: S3Client | None = None) -> None:
        if prefix and not prefix.endswith("/"):
            raise BlobError(f"the prefix {prefix!r} of bucket {bucket} must end with '/'")
        self.bucket, self.prefix = bucket, prefix
        self._client, self._presign_client = client, presign_client or client
        # Two parts in flight bound the memory of one upload to about 64 MiB.
        self._transfer = TransferConfig(multipart_threshold=_PART, multipart_chunksize=_PART, max_concurrency=2)

    @classmethod
    def connect(
        cls,
        bucket: str,
        prefix: str = "",
        *,
        endpoint: str | None = None,
        presign_endpoint: str | None = None,
        region: str | None = None,
        access_key: str | None = None,
        secret_key: str | None = None,
    ) -> Self:
        """Return the store with clients of its own; without keys boto3 looks where it always does.

        endpoint: URL of an S3 that is not Amazon's; presign_endpoint: the same as users of signed URLs reach it.
        """

        def client(url: str | None) -> S3Client:
            config = Config(
                signature_version="s3v4",
                # Other stores have no DNS name per bucket.
                s3={"addressing_style": "path" if url else "auto"},
                # A checksum in the query of a signed PUT would bind its URL to content nobody knows yet.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                retries={"mode": "standard", "max_attempts": 5},
                connect_timeout=5,
                read_timeout=60,
            )
            # A session of its own: boto3's default one may not be used from several threads at once.
            session = boto3.session.Session(access_key, secret_key, region_name=region)
            return session.client("s3", endpoint_url=url, config=config)

        return cls(client(endpoint), bucket, prefix, client(presign_endpoint) if presign_endpoint else None)

    def put(self, key: str, data: BinaryIO | bytes) -> BlobInfo:
        """Store all of `data` under `key`, in parts when it is large."""
        name = self._name(key)
        with _translated("store", key):
            if isinstance(data, bytes):
                self._client.put_object(Bucket=self.bucket, Key=name, Body=data)
            else:
                source = cast(BinaryIO, _Unclosed(data))
                self._client.upload_fileobj(source, self.bucket, name, Config=self._transfer)
        info = self.stat(key)
        if info is None:
            raise BlobError(f"blob {key} was stored in bucket {self.bucket} and is gone already")
        return info

    def open(self, key: str, start: int = 0, end: int | None = None) -> BinaryIO:
        """Return a stream of bytes [start, end), cut at the blob's own end; a cut connection is taken up again."""
        check_range(key, start, end)
        info = self.stat(key)
        if info is None:
            raise BlobNotFoundError(key)
        stop = info.size if end is None else min(end, info.size)
        stream = _S3Stream(self._client, self.bucket, self._name(key), info, start, stop)
        return cast(BinaryIO, io.BufferedReader(stream, _READ_BUFFER))

    def stat(self, key: str) -> BlobInfo | None:
        """Return the blob's facts, None when there is none."""
        try:
            with _translated("look at", key):
                head = self._client.head_object(Bucket=self.bucket, Key=self._name(key))
        except BlobNotFoundError:
            return None
        return BlobInfo(key, head["ContentLength"], head["ETag"].strip('"'), head["LastModified"])

    def delete(self, key: str) -> None:
        """Remove the blob; nothing happens if there is none."""
        with _translated("delete", key):
            self._client.delete_object(Bucket=self.bucket, Key=self._name(key))

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        """Yield the blobs whose key starts with `prefix`, in the order of their keys' bytes."""
        if prefix:
            split_key(prefix.rstrip("/") or "/")
        with _translated("list", prefix):
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=self.prefix + prefix):
                for found in page.get("Contents", []):
                    key = found["Key"].removeprefix(self.prefix)
                    yield BlobInfo(key, found["Size"], found["ETag"].strip('"'), found["LastModified"])

    def sign(self, key: str, method: Literal["GET", "PUT"], expires_in: timedelta, filename: str | None = None) -> str:
        """Return a presigned URL; made here, without asking S3."""
        parameters = {"Bucket": self.bucket, "Key": self._name(key)}
        if method == "GET":
            parameters["ResponseContentType"] = "application/octet-stream"
            if filename is not None:
                parameters["ResponseContentDisposition"] = f"attachment; filename*=UTF-8''{quote(filename, safe='')}"
        with _translated("sign a URL of", key):
            return self._presign_client.generate_presigned_url(
                "get_object" if method == "GET" else "put_object",
                Params=parameters,
                ExpiresIn=check_expiry(expires_in),
                HttpMethod=method,
            )

    def _name(self, key: str) -> str:
        split_key(key)
        return self.prefix + key


class _S3Stream(io.RawIOBase):
    """Bytes [position, stop) of one version of an object, asked for when first read."""

    def __init__(self, client: S3Client, bucket: str, name: str, info: BlobInfo, position: int, stop: int) -> None:
        self._client, self._bucket, self._name, self._info = client, bucket, name, info
        self._position, self._stop = position, stop
        self._body: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        wanted = min(len(buffer), self._stop - self._position)
        if wanted <= 0:
            return 0
        with _translated("read", self._info.key):
            piece = self._read(wanted)
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def _read(self, wanted: int) -> bytes:
        for tries_left in reversed(range(_READ_TRIES)):
            try:
                if self._body is None:
                    span = f"bytes={self._position}-{self._stop - 1}"
                    # If-Match: what goes on after a cut must be the same object.
                    tag = f'"{self._info.etag}"'
                    answer = self._client.get_object(Bucket=self._bucket, Key=self._name, Range=span, IfMatch=tag)
                    self._body = answer["Body"]
                piece: bytes = self._body.read(wanted)
                if piece:
                    return piece
                raise IncompleteReadError(actual_bytes=self._position, expected_bytes=self._stop)
            except (IncompleteReadError, HTTPClientError) as error:
                self._drop()
                if not tries_left:
                    raise
                log.info("blob %s: going on at byte %d after %s", self._info.key, self._position, type(error).__name__)
        raise AssertionError("the last try returns or raises")

    def _drop(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None

    def close(self) -> None:
        self._drop()
        super().close()


class _Unclosed:
    """A source that an upload reads and does not close: boto3 closes what it is given."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source

    def read(self, size: int = -1) -> bytes:
        return self._source.read(size)


@contextmanager
def _translated(doing: str, key: str) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "unknown")
        if code in _NOT_FOUND:
            raise BlobNotFoundError(key) from error
        if code in {"PreconditionFailed", "412"}:
            raise BlobError(f"blob {key} was replaced while it was read; read it again") from error
        raise BlobError(f"S3 refused to {doing} blob {key}: {code}{_advice(code)}") from error
    except BotoCoreError as error:
        # The class alone: the text of some of these holds the URL with its query.
        raise BlobError(f"could not {doing} blob {key} on S3: {type(error).__name__}; try again") from error


def _advice(code: str) -> str:
    if code in {"AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch"}:
        return "; check the credentials and the bucket's policy"
    if code == "NoSuchBucket":
        return "; create the bucket or mend the setting"
    return ""

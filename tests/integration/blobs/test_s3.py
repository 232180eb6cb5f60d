"""What only S3 can do wrong: cut connections, other people's buckets, wrong keys."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from mhs_ray.domain.errors import BlobError
from mhs_ray.store.blobs.s3 import S3Blobs
from tests.s3_fixtures import S3Server, free_ports, seaweedfs

DATA = bytes(range(256)) * 8192  # 2 MiB


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with seaweedfs() as server:
        yield server


def cut(stream: Any) -> None:
    """End the connection under a stream, as a network does."""
    stream.raw._body._raw_stream.close()


def test_a_stream_that_is_cut_goes_on_where_it_was(s3: S3Server) -> None:
    store = s3.blobs("streams")
    store.put("slide", DATA)
    with store.open("slide", 100) as stream:
        got = stream.read(1000)
        cut(stream)
        got += stream.read(1 << 20)
        cut(stream)
        got += stream.read()
    assert got == DATA[100:]


def test_a_stream_never_goes_on_with_another_blob(s3: S3Server) -> None:
    store = s3.blobs("streams")
    store.put("slide", DATA)
    with store.open("slide") as stream:
        stream.read(1000)
        store.put("slide", DATA[::-1])
        cut(stream)
        with pytest.raises(BlobError, match="was replaced while it was read"):
            stream.read()


def test_wrong_keys_are_told_without_showing_them(s3: S3Server) -> None:
    store = S3Blobs.connect(
        "streams", endpoint=s3.endpoint, region="us-east-1", access_key=s3.access_key, secret_key="wrong-secret"
    )
    with pytest.raises(BlobError, match="check the credentials") as refused:
        store.put("x", b"x")
    assert "wrong-secret" not in str(refused.value)


def test_a_bucket_that_is_not_there_is_told(s3: S3Server) -> None:
    store = S3Blobs.connect(
        "no-such-bucket", endpoint=s3.endpoint, region="us-east-1", access_key=s3.access_key, secret_key=s3.secret_key
    )
    with pytest.raises(BlobError, match="NoSuchBucket; create the bucket"):
        list(store.list(""))


def test_a_server_that_cannot_be_reached_is_told_without_a_url() -> None:
    (port,) = free_ports(1)
    store = S3Blobs.connect(
        "b", endpoint=f"http://127.0.0.1:{port}", region="us-east-1", access_key="a", secret_key="b"
    )
    with pytest.raises(BlobError, match="EndpointConnectionError; try again"):
        store.stat("x")


def test_two_prefixes_of_a_bucket_do_not_see_each_other(s3: S3Server) -> None:
    one, other = s3.blobs("shared", "one/"), s3.blobs("shared", "other/")
    one.put("x", b"1")
    assert other.stat("x") is None
    assert [b.key for b in one.list("")] == ["x"]
    assert list(other.list("")) == []
    with pytest.raises(BlobError, match="must end with '/'"):
        s3.blobs("shared", "one")


def test_urls_are_signed_for_the_address_their_users_reach(s3: S3Server) -> None:
    store = S3Blobs.connect(
        "b", endpoint=s3.endpoint, presign_endpoint="https://slides.lab.test", region="us-east-1",
        access_key="a", secret_key="b",
    )  # fmt: skip
    assert store.sign("x", "GET", timedelta(hours=1)).startswith("https://slides.lab.test/b/x?")

"""Against the real stores, S3 and our own blob server: their signatures, their refusals, their Range."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from mhs_ray.domain.errors import InvalidInputError, SlideFetchError
from mhs_ray.ports import BlobStore
from mhs_ray.slides.cache import SlideCache, SlideSource
from mhs_ray.slides.fetch import FetchLimits, fetch
from mhs_ray.slides.fingerprint import glance
from mhs_ray.slides.url_guard import UrlPolicy
from mhs_ray.store.blobs.s3_slides import S3Slides
from tests.blob_server_fixtures import blob_server
from tests.s3_fixtures import seaweedfs

HERE = UrlPolicy(allow_private=True)
QUICK = FetchLimits(stall_s=10, connect_s=5, backoff_s=0.05, retries=2)
HOUR = timedelta(hours=1)


@pytest.fixture(scope="module", params=["s3", "local"])
def blobs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BlobStore]:
    if request.param == "s3":
        with seaweedfs() as server:
            yield server.blobs("slides")
    else:
        with blob_server(tmp_path_factory.mktemp("blobs")) as local:
            yield local.store


def reason_of(url: str, dest: Path) -> str:
    with pytest.raises(SlideFetchError) as error:
        fetch(url, dest, limits=QUICK, policy=HERE)
    assert "X-" not in str(error.value)
    assert "?…" in str(error.value) or "?" not in url
    assert not error.value.transient
    return error.value.reason


def test_a_presigned_url_is_fetched_and_each_refusal_is_told_apart(
    blobs: BlobStore, slide_bytes: bytes, tmp_path: Path
) -> None:
    blobs.put("scans/1/slide", slide_bytes)
    short = blobs.sign("scans/1/slide", "GET", timedelta(seconds=1))
    good = blobs.sign("scans/1/slide", "GET", HOUR)
    result = fetch(good, tmp_path / "slide", limits=QUICK, policy=HERE)
    assert result.sha256 == hashlib.sha256(slide_bytes).hexdigest()
    assert reason_of(good[:-4] + "0000", tmp_path / "a") == "forbidden"
    assert reason_of(good.partition("?")[0], tmp_path / "b") == "forbidden"
    assert reason_of(blobs.sign("scans/none", "GET", HOUR), tmp_path / "c") == "not-found"
    time.sleep(2.1)
    assert reason_of(short, tmp_path / "d") == "expired"


def test_the_node_keeps_one_copy_until_the_object_changes(blobs: BlobStore, slide_bytes: bytes, tmp_path: Path) -> None:
    cache = SlideCache(tmp_path, fetch_limits=QUICK, policy=HERE)
    blobs.put("scans/2/slide", slide_bytes)
    for was_cached in (False, True):
        with cache.get(SlideSource((blobs.sign("scans/2/slide", "GET", HOUR),))) as slide:
            assert slide.was_cached is was_cached
        time.sleep(1.1)  # so that the next signature is another one
    blobs.put("scans/2/slide", slide_bytes + b"\0")
    with cache.get(SlideSource((blobs.sign("scans/2/slide", "GET", HOUR),))) as slide:
        assert not slide.was_cached
        assert slide.size == len(slide_bytes) + 1
    with (
        pytest.raises(SlideFetchError) as error,
        cache.get(SlideSource((blobs.sign("scans/2/slide", "GET", HOUR).partition("?")[0],))),
    ):
        pass
    assert error.value.reason == "forbidden"


def test_a_slide_in_a_bucket_that_is_allowed_is_looked_at_and_signed_anew(
    slide_bytes: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with seaweedfs() as server:
        blobs = server.blobs("pathology")
        blobs.put("lung/a.svs", slide_bytes)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
        s3 = S3Slides(["pathology/lung"], server.endpoint, "us-east-1")
        (tmp_path / "same.svs").write_bytes(slide_bytes)
        here = UrlPolicy(allow_private=True, file_roots=(tmp_path,))
        far = glance(s3.sign("s3://pathology/lung/a.svs", HOUR), here)
        assert far == glance((tmp_path / "same.svs").as_uri(), here), "a copy is known wherever it lies"
        signed = s3.sign("s3://pathology/lung/a.svs", HOUR)
        assert fetch(signed, tmp_path / "slide", limits=QUICK, policy=HERE).size == len(slide_bytes)
        with pytest.raises(SlideFetchError) as missing:
            glance(s3.sign("s3://pathology/lung/none.svs", HOUR), here)
        assert missing.value.reason == "not-found"
    for refused in (
        "s3://pathology/liver/a.svs",
        "s3://pathology/lungs/a.svs",
        "s3://other/lung/a.svs",
        "s3://pathology",
    ):
        with pytest.raises(InvalidInputError):
            s3.sign(refused, HOUR)

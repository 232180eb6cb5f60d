"""What every blob store does: a folder through its own server process, and a real S3."""

from __future__ import annotations

import hashlib
import io
import itertools
import pickle
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

import httpx
import pytest

from mhs_ray.domain.errors import BlobError, BlobNotFoundError
from mhs_ray.ports import BlobStore
from tests.blob_server_fixtures import blob_server
from tests.s3_fixtures import seaweedfs

HOUR = timedelta(hours=1)
_numbers = itertools.count()


@pytest.fixture(scope="module", params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BlobStore]:
    if request.param == "local":
        with blob_server(tmp_path_factory.mktemp("blobs")) as server:
            yield server.store
    else:
        with seaweedfs() as s3:
            yield s3.blobs("contract", "some/prefix/")


@pytest.fixture
def key() -> str:
    return f"scans/{next(_numbers)}/slide"


class Endless(io.RawIOBase):
    """`size` bytes that are never all in memory, not seekable, with their SHA-256."""

    def __init__(self, size: int) -> None:
        self._left, self._block = size, hashlib.sha512(b"block").digest() * 1024
        self.sha256 = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        piece = (self._block * (wanted // len(self._block) + 1))[:wanted]
        self._left -= wanted
        self.sha256.update(piece)
        return piece


def test_what_is_put_can_be_read_and_described(store: BlobStore, key: str) -> None:
    info = store.put(key, b"hello slide")
    assert store.stat(key) == info
    assert (info.key, info.size) == (key, 11)
    assert abs(info.modified_at - datetime.now(UTC)) < timedelta(minutes=5)
    with store.open(key) as stream:
        assert stream.read() == b"hello slide"


def test_an_empty_blob_is_a_blob(store: BlobStore, key: str) -> None:
    assert store.put(key, b"").size == 0
    with store.open(key) as stream:
        assert stream.read() == b""


def test_a_part_is_read_by_offsets_cut_at_the_end_of_the_blob(store: BlobStore, key: str) -> None:
    store.put(key, b"0123456789")
    for start, end, expected in [
        (2, 5, b"234"), (7, None, b"789"), (7, 99, b"789"), (10, None, b""), (99, 100, b""), (3, 3, b""), (0, 1, b"0"),
    ]:  # fmt: skip
        with store.open(key, start, end) as stream:
            assert stream.read() == expected, (start, end)


@pytest.mark.parametrize(("start", "end"), [(-1, None), (5, 4)])
def test_offsets_that_make_no_sense_are_refused(store: BlobStore, key: str, start: int, end: int | None) -> None:
    store.put(key, b"0123456789")
    with pytest.raises(BlobError, match="0 ≤ start ≤ end"):
        store.open(key, start, end)


def test_a_missing_blob_has_no_facts_and_cannot_be_opened(store: BlobStore, key: str) -> None:
    assert store.stat(key) is None
    with pytest.raises(BlobNotFoundError, match=key):
        store.open(key)


def test_deleting_removes_and_may_be_repeated(store: BlobStore, key: str) -> None:
    store.put(key, b"x")
    store.delete(key)
    store.delete(key)
    assert store.stat(key) is None


def test_a_new_blob_replaces_the_old_one_and_has_another_etag(store: BlobStore, key: str) -> None:
    old = store.put(key, b"first")
    new = store.put(key, b"again")
    assert new.etag != old.etag
    with store.open(key) as stream:
        assert stream.read() == b"again"


def test_a_reader_sees_the_old_blob_or_the_whole_new_one(store: BlobStore, key: str) -> None:
    store.put(key, b"a" * 100_000)
    seen: set[bytes] = set()
    wrong: list[str] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            try:
                with store.open(key) as stream:
                    data = stream.read()
            except BlobError:  # replaced between two requests: told, not mixed
                continue
            if len(data) != 100_000 or len(set(data)) != 1:
                wrong.append(f"{len(data)} bytes of {set(data)}")
            seen.add(data[:1])

    reader = threading.Thread(target=read)
    reader.start()
    for letter in b"bcdefghijk":
        store.put(key, io.BytesIO(bytes([letter]) * 100_000))
    stop.set()
    reader.join()
    assert not wrong
    assert seen


def test_a_source_that_fails_leaves_nothing_and_keeps_the_old_blob(store: BlobStore, key: str) -> None:
    class Failing(io.RawIOBase):
        def __init__(self) -> None:
            self.calls = 0

        def read(self, size: int = -1) -> bytes:
            self.calls += 1
            if self.calls > 3:
                raise OSError(5, "the camera fell off")
            return b"x" * max(size, 1)

    source: BinaryIO = Failing()  # type: ignore[assignment]
    with pytest.raises((OSError, BlobError)):
        store.put(key, source)
    assert store.stat(key) is None
    store.put(key, b"old")
    with pytest.raises((OSError, BlobError)):
        store.put(key, Failing())  # type: ignore[arg-type]
    with store.open(key) as stream:
        assert stream.read() == b"old"


def test_a_source_is_not_closed(store: BlobStore, key: str) -> None:
    source = io.BytesIO(b"mine")
    store.put(key, source)
    assert not source.closed


def test_blobs_are_listed_in_the_order_of_their_keys(store: BlobStore) -> None:
    keys = ["list/1/log/00002", "list/1/log/00001", "list/1/result", "list/10/log", "list/2/x", "listed/x"]
    for k in keys:
        store.put(k, k.encode())
    assert [b.key for b in store.list("list/")] == sorted(k for k in keys if k != "listed/x")
    assert [b.key for b in store.list("list/1/")] == ["list/1/log/00001", "list/1/log/00002", "list/1/result"]
    assert [b.key for b in store.list("list/1/log/0000")] == ["list/1/log/00001", "list/1/log/00002"]
    assert [b.size for b in store.list("list/2/")] == [8]
    assert list(store.list("nothing/here/")) == []


@pytest.mark.parametrize(
    "bad",
    ["", "/etc", "a//b", "a/../b", "../x", "a/.", "a/", "a\\b", "a\nb", "é/x", "a\x00b", "x" * 1025, "a?b", "a%2e"]
)  # fmt: skip
def test_a_key_that_is_no_key_is_refused_everywhere(store: BlobStore, bad: str) -> None:
    with pytest.raises(BlobError, match="is no blob key"):
        store.put(bad, b"x")
    with pytest.raises(BlobError, match="is no blob key"):
        store.open(bad)
    with pytest.raises(BlobError, match="is no blob key"):
        store.stat(bad)
    with pytest.raises(BlobError, match="is no blob key"):
        store.delete(bad)
    with pytest.raises(BlobError, match="is no blob key"):
        store.sign(bad, "GET", HOUR)


def test_odd_but_allowed_characters_survive_a_round_trip_by_url(store: BlobStore) -> None:
    key = "odd/a b+c@d=e~f,(1)!'$&*;:x/.hidden"
    store.put(key, b"odd")
    assert httpx.get(store.sign(key, "GET", HOUR)).content == b"odd"
    assert [b.key for b in store.list("odd/")] == [key]


# ---- signed URLs


def test_a_signed_url_gives_the_blob_with_its_etag_and_length(store: BlobStore, key: str) -> None:
    info = store.put(key, b"0123456789")
    answer = httpx.get(store.sign(key, "GET", HOUR))
    assert (answer.status_code, answer.content) == (200, b"0123456789")
    assert answer.headers["etag"] == f'"{info.etag}"'
    assert answer.headers["content-length"] == "10"
    assert answer.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize(
    ("wanted", "body", "span"),
    [("bytes=2-4", b"234", "bytes 2-4/10"), ("bytes=7-", b"789", "bytes 7-9/10"), ("bytes=-3", b"789", "bytes 7-9/10"),
     ("bytes=8-500", b"89", "bytes 8-9/10"), ("bytes=0-0", b"0", "bytes 0-0/10")],
)  # fmt: skip
def test_a_range_answers_206_with_just_that(store: BlobStore, key: str, wanted: str, body: bytes, span: str) -> None:
    store.put(key, b"0123456789")
    answer = httpx.get(store.sign(key, "GET", HOUR), headers={"Range": wanted})
    assert (answer.status_code, answer.content, answer.headers["content-range"]) == (206, body, span)


def test_a_range_behind_the_end_answers_416(store: BlobStore, key: str) -> None:
    store.put(key, b"0123456789")
    answer = httpx.get(store.sign(key, "GET", HOUR), headers={"Range": "bytes=10-"})
    assert answer.status_code == 416
    assert "InvalidRange" in answer.text


def test_a_download_is_saved_under_the_name_asked_for(store: BlobStore, key: str) -> None:
    store.put(key, b"x")
    answer = httpx.get(store.sign(key, "GET", HOUR, "Größe 1\r\nX-Evil: 1.svs"))
    disposition = answer.headers["content-disposition"]
    assert disposition.startswith("attachment")
    assert "filename*=UTF-8''Gr%C3%B6%C3%9Fe%201%0D%0AX-Evil%3A%201.svs" in disposition
    assert "x-evil" not in answer.headers


def test_a_signed_put_stores_the_body(store: BlobStore, key: str) -> None:
    answer = httpx.put(store.sign(key, "PUT", HOUR), content=b"debug files")
    assert answer.status_code == 200
    info = store.stat(key)
    assert info is not None
    assert answer.headers["etag"] == f'"{info.etag}"'
    with store.open(key) as stream:
        assert stream.read() == b"debug files"


def test_put_with_if_none_match_never_replaces(store: BlobStore, key: str) -> None:
    url = store.sign(key, "PUT", HOUR)
    assert httpx.put(url, content=b"1", headers={"If-None-Match": "*"}).status_code == 200
    assert httpx.put(url, content=b"2", headers={"If-None-Match": "*"}).status_code == 412
    with store.open(key) as stream:
        assert stream.read() == b"1"


def test_a_url_is_good_for_its_method_only(store: BlobStore, key: str) -> None:
    store.put(key, b"mine")
    assert httpx.put(store.sign(key, "GET", HOUR), content=b"yours").status_code == 403
    assert httpx.get(store.sign(key, "PUT", HOUR)).status_code == 403
    with store.open(key) as stream:
        assert stream.read() == b"mine"


def test_a_tampered_url_answers_403(store: BlobStore, key: str) -> None:
    store.put(key, b"mine")
    other = f"{key}-other"
    store.put(other, b"theirs")
    url = store.sign(key, "GET", HOUR)
    path, query = url.split("?")
    signature = next(p for p in query.split("&") if "Signature" in p)
    wrong_signature = signature[:-1] + ("0" if signature[-1] != "0" else "1")
    for forged in (
        f"{path}-other?{query}",
        f"{path}?{query.replace(signature, wrong_signature)}",
        f"{path}?{query.replace('Expires=', 'Expires=9')}",
        path,
    ):
        answer = httpx.get(forged)
        assert answer.status_code == 403, forged
        assert b"mine" not in answer.content
        assert b"theirs" not in answer.content


def test_a_url_answers_403_once_it_has_expired(store: BlobStore, key: str) -> None:
    store.put(key, b"mine")
    url = store.sign(key, "GET", timedelta(seconds=1))
    deadline = time.monotonic() + 30
    while (answer := httpx.get(url)).status_code == 200:
        assert time.monotonic() < deadline
        time.sleep(0.3)
    assert answer.status_code == 403
    assert "<Code>AccessDenied</Code>" in answer.text
    assert "expired" in answer.text


@pytest.mark.parametrize("life", [timedelta(0), timedelta(seconds=-5), timedelta(days=8)])
def test_a_life_that_a_url_cannot_have_is_refused(store: BlobStore, key: str, life: timedelta) -> None:
    with pytest.raises(BlobError, match="1 second to 7 days"):
        store.sign(key, "GET", life)


def test_a_url_of_a_missing_blob_answers_404(store: BlobStore, key: str) -> None:
    answer = httpx.get(store.sign(key, "GET", HOUR))
    assert answer.status_code == 404
    assert "NoSuchKey" in answer.text


def test_a_large_stream_goes_in_and_out_unchanged(store: BlobStore, key: str) -> None:
    source = Endless(40_000_001)  # three parts on S3
    assert store.put(key, source).size == 40_000_001  # type: ignore[arg-type]
    digest = hashlib.sha256()
    with httpx.stream("GET", store.sign(key, "GET", HOUR)) as answer:
        for piece in answer.iter_bytes():
            digest.update(piece)
    assert digest.digest() == source.sha256.digest()
    with store.open(key, 39_999_999) as stream:
        assert len(stream.read()) == 2


def test_what_says_where_a_blob_is_never_says_a_secret(store: BlobStore, key: str, tmp_path: Path) -> None:
    with pytest.raises(BlobError) as refused:
        store.open(key)
    for text in (str(refused.value), repr(store), str(pickle.loads(pickle.dumps(refused.value)))):
        assert "5e5e5e" not in text
        assert "test-secret" not in text
